"""What a model fixes about its data, and how a screen becomes a dataset of minibatches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import scipy.sparse as sp

from scvi_tahoe.data._alignment import align_genes
from scvi_tahoe.data._dataset import CellSetDataset
from scvi_tahoe.data._disk_store import DiskRows, is_sharded
from scvi_tahoe.data._make_store import make_store
from scvi_tahoe.data._sampler import RandomSampler, SetPlan

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from scvi_tahoe.data._alignment import GeneAlignment
    from scvi_tahoe.data._embedding_table import EmbeddingTable
    from scvi_tahoe.data._make_store import StoreKind
    from scvi_tahoe.data._screen import Screen, ScreenKeys

Representation = Literal["expression", "embedding", "expression+embedding"]
REPRESENTATIONS: tuple[Representation, ...] = get_args(Representation)

Output = Literal["expression", "delta", "counts", "embedding", "prior"]
OUTPUTS: tuple[Output, ...] = get_args(Output)


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What a model fixes about its data.

    Attributes
    ----------
    keys
        Where a screen keeps its parts.
    genes
        Names of the genes, ``[G]``, in the network's order.
    table
        Perturbation embeddings, ``[labels, P]``.
    batches
        Technical batches as the network counts them; None if it does not look at them.
    representation
        What the network takes in and gives out.
    set_size
        Cells of a set.
    """

    keys: ScreenKeys
    genes: np.ndarray
    table: EmbeddingTable
    batches: tuple[str, ...] | None
    representation: Representation
    set_size: int

    def with_composed(self, screen: Screen) -> DataSpec:
        """Add table rows for combinations and doses of a screen, as far as their components have rows."""
        return replace(self, table=self.table.with_composed(screen.perturbation.names))

    def rows_of_labels(self, screen: Screen) -> np.ndarray:
        """Row of the embedding table for each perturbation code of a screen, int64 ``[codes]``."""
        table = self.table.with_composed(screen.perturbation.names)
        return np.array([table.row(name) for name in screen.perturbation.names])

    def batch_of_cell(self, screen: Screen) -> np.ndarray | None:
        """Technical batch of each cell as the network counts them, int64 ``[cells]``; None if it does not look."""
        if self.batches is None:
            return None
        known = {name: i for i, name in enumerate(self.batches)}
        if screen.batch is None or (unknown := [n for n in screen.batch.names if n not in known]):
            missing = "no batches" if screen.batch is None else f"batches that the model does not know: {unknown[:5]}"
            raise ValueError(
                f"the network was trained with {len(known)} technical batches, and the data have {missing}."
            )
        return np.array([known[n] for n in screen.batch.names], dtype=np.int64)[screen.batch.codes]


def cell_set_dataset(
    spec: DataSpec,
    screen: Screen,
    device: torch.device,
    *,
    store: StoreKind = "auto",
    alignment: GeneAlignment | None = None,
    full_precision: bool = False,
    pinned_rows: np.ndarray | None = None,
    rows: np.ndarray | None = None,
) -> CellSetDataset:
    """Make the dataset of a screen's minibatches; options as of :func:`make_store`, genes are matched by name."""
    alignment = alignment or align_genes(spec.genes, screen.genes)
    expression = make_store(
        screen.expression,
        device,
        kind=store,
        alignment=None if alignment.is_identity else alignment,
        full_precision=full_precision,
        pinned_rows=pinned_rows,
        rows=rows,
    )
    embedding = None if spec.representation == "expression" else make_store(screen.cell_embedding, device)
    embeds = spec.representation == "embedding"
    return CellSetDataset(
        cells=embedding if embeds and embedding else expression,
        genes=expression if embeds else None,
        embedding=embedding if spec.representation == "expression+embedding" else None,
        table=spec.table.matrix,
        batch_of_cell=spec.batch_of_cell(screen),
    )


def random_minibatches(
    spec: DataSpec, screen: Screen, device: torch.device, *, n_sets: int, seed: int, as_controls: bool = False
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield minibatches of random sets of any perturbed cells.

    With ``as_controls``, each set gets the control's embedding instead of its perturbation's.
    """
    spec, index = spec.with_composed(screen), screen.index
    plan = SetPlan(
        index=index,
        pools=index.control_pools(),
        row_of_label=spec.rows_of_labels(screen),
        rows=np.flatnonzero(~index.is_control),
        set_size=spec.set_size,
        sets_per_step=min(8, n_sets),
    )
    dataset = cell_set_dataset(spec, screen, device)
    for request in RandomSampler(plan, n_steps=-(-n_sets // plan.sets_per_step), seed=seed):
        if as_controls:
            control = spec.table.row(screen.control)
            request = replace(request, perturbation_S=np.full_like(request.perturbation_S, control))
        yield dataset.to_tensors(dataset[request], device)


def aligned_expression(spec: DataSpec, screen: Screen) -> Any:
    """Expression of the whole screen by rows, in the model's gene order: in memory, unless the store is on disk."""
    alignment = align_genes(spec.genes, screen.genes, max_missing=1.0)
    matrix = screen.expression
    if not (isinstance(matrix, np.ndarray) or sp.issparse(matrix)):
        if is_sharded(matrix):
            return DiskRows(matrix, alignment)
        matrix = matrix.to_memory() if hasattr(matrix, "to_memory") else np.asarray(matrix[:])
    return alignment.apply(matrix.tocsr() if sp.issparse(matrix) else matrix)
