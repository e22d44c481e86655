"""A model as it lies in a folder, ours or Arc's: network, weights, labels of its axes, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scvi_tahoe.pretrained._origin import LossSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from scvi_tahoe.nn import NetworkConfig
    from scvi_tahoe.pretrained._origin import Provenance
    from scvi_tahoe.pretrained._report import LoadingReport

__all__ = ["UNNAMED_GENES", "Labels", "PerturbationTable", "PretrainedModel", "is_embedding"]

#: How the note begins that asks for names of genes; it goes when they are given.
UNNAMED_GENES = "the folder does not name the genes of the network"


@dataclass(frozen=True, eq=False)
class PerturbationTable:
    """Names of perturbations and the vector of each, in the order the network was trained with.

    Parameters
    ----------
    names
        One name a row.
    matrix
        ``(names, P)`` in float32. ``None`` stands for one-hot vectors in the order of ``names``.
    columns
        Where the encoder's inputs stand for labels (one-hot, or several-hot of combinations): their names. ``None``
        for features. Left out, it is ``names`` without a matrix.

    Raises
    ------
    ValueError
        If a name occurs twice, or names and rows disagree.
    """

    names: tuple[str, ...]
    matrix: np.ndarray | None = None
    columns: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        columns = self.names if self.matrix is None else self.columns
        object.__setattr__(self, "columns", None if columns is None else tuple(columns))
        if len(set(self.names)) != len(self.names):
            raise ValueError("A perturbation name occurs twice in the table; names must be unique.")
        if self.matrix is not None and (self.matrix.ndim != 2 or len(self.matrix) != len(self.names)):
            raise ValueError(
                f"{len(self.names)} perturbation names and a matrix of shape {self.matrix.shape} disagree."
            )

    @property
    def is_one_hot(self) -> bool:
        """Whether every perturbation has an input of its own and no features."""
        return self.matrix is None

    @property
    def width(self) -> int:
        """Width of a perturbation vector."""
        return len(self.names) if self.matrix is None else self.matrix.shape[1]

    @property
    def zero_names(self) -> tuple[str, ...]:
        """Names whose vector is all zeros: usually the control, and labels that had no features."""
        if self.matrix is None:
            return ()
        return tuple(name for name, row in zip(self.names, self.matrix, strict=True) if not row.any())

    def vectors(self, names: Sequence[str]) -> np.ndarray:
        """Return the vectors of some perturbations, ``(names, P)``.

        Raises
        ------
        KeyError
            If a name is not in the table.
        """
        index = {name: i for i, name in enumerate(self.names)}
        unknown = [name for name in names if name not in index]
        if unknown:
            raise KeyError(f"{unknown[:5]} not among the {len(self.names)} perturbations of the table.")
        rows = np.array([index[name] for name in names], dtype=np.int64)
        if self.matrix is not None:
            return self.matrix[rows]
        vectors = np.zeros((len(rows), len(self.names)), dtype=np.float32)
        vectors[np.arange(len(rows)), rows] = 1.0
        return vectors


@dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """What the axes of a network stand for.

    Parameters
    ----------
    genes
        Names of the input and output columns where cells are expression; ``None`` where they are embeddings, or where
        the folder does not say.
    decoder_genes
        Names of the gene decoder's output columns.
    perturbations
        Perturbation names and vectors.
    control
        The perturbation name of control cells.
    batches
        Technical batches, in the order of the batch encoder's rows.
    contexts
        Cell lines, cell types or donors seen in training.
    embedding
        ``obsm`` key of the cell embedding the network works on, or ``None`` for expression.
    set_size
        Cells in a set during training.
    """

    genes: tuple[str, ...] | None
    perturbations: PerturbationTable
    control: str | None
    set_size: int
    decoder_genes: tuple[str, ...] | None = None
    batches: tuple[str, ...] | None = None
    contexts: tuple[str, ...] | None = None
    embedding: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class PretrainedModel:
    """Everything a folder holds that is of use: network, weights, labels, training settings, origin.

    Parameters
    ----------
    config
        The network.
    state_dict
        Its weights in our names, float32.
    labels
        What its axes stand for.
    loss
        How it was trained.
    output_space
        ``'gene'`` (highly variable genes), ``'all'`` genes, or ``'embedding'``, as the folder says.
    provenance
        Where it came from.
    report
        What happened to every tensor of the folder.
    notes
        Remarks a user should read.
    extra
        Plain values that travel along in our own format (see :func:`export_model`).
    prior
        What the prior of the model keeps of its training data, by the names of the fields of
        :class:`~scvi_tahoe.data.CellPrior`; genes as in ``labels``.
    """

    config: NetworkConfig
    state_dict: dict[str, Tensor] = field(repr=False)
    labels: Labels
    loss: LossSettings = field(default_factory=LossSettings)
    output_space: Literal["gene", "all", "embedding"] = "gene"
    provenance: Provenance
    report: LoadingReport | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict, repr=False)
    prior: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def genes(self) -> tuple[str, ...] | None:
        """Names of input and output columns, or ``None``."""
        return self.labels.genes

    @property
    def perturbations(self) -> PerturbationTable:
        """Names and vectors of the perturbations."""
        return self.labels.perturbations

    @property
    def batches(self) -> tuple[str, ...] | None:
        """Technical batches in the order of the batch encoder."""
        return self.labels.batches

    @property
    def contexts(self) -> tuple[str, ...] | None:
        """Cell lines, cell types or donors of the training."""
        return self.labels.contexts

    @property
    def control(self) -> str | None:
        """Label of control cells."""
        return self.labels.control

    @property
    def set_size(self) -> int:
        """Cells in a set during training."""
        return self.labels.set_size

    @property
    def embed_key(self) -> str | None:
        """``obsm`` key of the cell embedding, or ``None`` for expression."""
        return self.labels.embedding

    @property
    def embeds(self) -> bool:
        """Whether cells are embeddings rather than expression."""
        return is_embedding(self.labels.embedding)

    def with_genes(self, genes: Sequence[str]) -> PretrainedModel:
        """Return the model with names for the genes of its input and output, where the folder lacks them.

        Raises
        ------
        ValueError
            If their number differs from the network's width, a name occurs twice, or cells are not expression.
        """
        genes = tuple(genes)
        if self.config.n_input != self.config.n_output or is_embedding(self.labels.embedding):
            raise ValueError("The cells of this model are embeddings; their columns have no gene names.")
        if len(genes) != self.config.n_output or len(set(genes)) != len(genes):
            raise ValueError(
                f"{len(genes)} gene names ({len(set(genes))} different) were given; the network has "
                f"{self.config.n_output} genes. Give the names of its columns, in their order."
            )
        notes = tuple(note for note in self.notes if not note.startswith(UNNAMED_GENES))
        return replace(self, labels=replace(self.labels, genes=genes), notes=notes)

    def build(self) -> Any:
        """Return a :class:`~scvi_tahoe.nn.SetTransformer` with these weights, sharing their memory, in eval mode."""
        import torch

        from scvi_tahoe.nn import SetTransformer

        with torch.device("meta"):
            network = SetTransformer(self.config)
        network.load_state_dict(self.state_dict, strict=True, assign=True)
        return network.eval()


def is_embedding(key: str | None) -> bool:
    """Return whether cells under an ``obsm`` key are embeddings rather than expression (of all or variable genes)."""
    return key not in (None, "X_hvg")
