"""Where the cells of a run are, and how they are labelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["DATASETS", "MADE_EMBEDDING", "DataConfig"]

#: Screens that come with the package.
DATASETS = ("papalexi_few_shot", "papalexi_thp1", "norman_k562", "simulated")

#: Key of ``obsm`` under which an embedding made from the data is kept.
MADE_EMBEDDING = "X_components"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The cells of a run.

    Attributes
    ----------
    path
        h5ad file with log1p expression.
    dataset
        A screen of the package instead, whose labels are known.
    held_out
        h5ad file of observed cells to be predicted and scored, with controls; None takes the test part of the split.
    perturbation_key, control, layer, context_key, batch_key, cell_embedding_key, perturbation_embedding_key
        As :meth:`~scvi_tahoe.TahoeST.setup_anndata` takes them.
    cell_embedding_components
        Make a cell embedding of this many principal components of the control cells, every cell scaled to length 1: a
        stand-in where a pretrained embedding is not at hand, which has not seen perturbed cells either.
    n_genes
        For ``dataset='simulated'``.
    sha256
        What the content of the cells must hash to; a finished run writes it, so that a rebuild on other data stops.
    """

    path: str | None = None
    dataset: Literal["papalexi_few_shot", "papalexi_thp1", "norman_k562", "simulated"] | None = None
    held_out: str | None = None
    perturbation_key: str | None = None
    control: str | None = None
    layer: str | None = None
    context_key: str | None = None
    batch_key: str | None = None
    cell_embedding_key: str | None = None
    cell_embedding_components: int | None = None
    perturbation_embedding_key: str | None = None
    n_genes: int | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.dataset is None):
            raise ValueError(f"data takes either path (an h5ad file) or dataset (one of {', '.join(DATASETS)}).")
        if self.path is not None and (self.perturbation_key is None or self.control is None):
            raise ValueError("data.path needs perturbation_key (column of obs) and control (label of control cells).")
        if self.dataset is not None and (self.perturbation_key or self.control):
            raise ValueError("data.dataset brings perturbation_key and control along; leave them out.")
        if self.n_genes is not None and self.dataset != "simulated":
            raise ValueError("data.n_genes is for dataset: simulated only.")
        if self.cell_embedding_components is not None:
            if self.cell_embedding_components < 1:
                raise ValueError(
                    f"data.cell_embedding_components is {self.cell_embedding_components}; it is 1 or more."
                )
            if self.cell_embedding_key is not None:
                raise ValueError("data takes cell_embedding_key or cell_embedding_components, not both.")

    @property
    def has_cell_embedding(self) -> bool:
        """Whether cells have an embedding."""
        return self.embedding_key is not None

    @property
    def embedding_key(self) -> str | None:
        """Key of ``obsm`` with the cell embedding."""
        return MADE_EMBEDDING if self.cell_embedding_components is not None else self.cell_embedding_key
