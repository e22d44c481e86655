"""Requests to tensors: the cells that a sampler chose, as one minibatch.

S sets, N cells of a set, X width of a cell at the network's input or output, G genes, E width of a cell embedding,
P width of a perturbation embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from scvi_tahoe._constants import TENSORS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from scvi_tahoe.data._conditions import Condition
    from scvi_tahoe.data._sampler import CellSetRequest
    from scvi_tahoe.data._store import CellStore


@dataclass(eq=False, kw_only=True)
class CellSetDataset(Dataset):
    """Reads the cells that a request names.

    ``dataset[request]`` runs in the loader and holds what :class:`CellStore` hands over; :meth:`to_tensors` finishes
    the minibatch on the device.

    Attributes
    ----------
    cells
        What the network takes in and gives out: expression, or cell embeddings.
    table
        float32 ``[labels, P]`` perturbation embeddings.
    genes
        Expression in addition to embeddings, for a gene decoder; None otherwise.
    embedding
        Cell embeddings in addition to expression, as an auxiliary signal; None otherwise.
    batch_of_cell
        Technical batch of every cell as the network counts them; None if it does not look.
    residual_input
        The cells of a prior, to which the network's change is added; None without such a prior.
    residual_input_rows
        Rows of ``residual_input`` that each condition draws from.
    residual_shift
        float32 ``[conditions, X]``: change of the mean that a prior adds to the controls; None without such a prior.
    of_condition
        By key of the minibatch, what the objective compares with: float32 ``[conditions, X]`` each.
    """

    cells: CellStore
    table: np.ndarray
    genes: CellStore | None = None
    embedding: CellStore | None = None
    batch_of_cell: np.ndarray | None = None
    residual_input: CellStore | None = None
    residual_input_rows: Mapping[Condition, np.ndarray] | None = None
    residual_shift: np.ndarray | None = None
    of_condition: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # pandas hands out arrays that may not be written to, and torch warns of them
        self._table: Tensor = torch.from_numpy(np.require(self.table, requirements="W"))
        by_condition = dict(self.of_condition)
        if self.residual_shift is not None:
            by_condition[TENSORS.RESIDUAL_SHIFT] = self.residual_shift
        self._of_condition = {key: torch.from_numpy(rows) for key, rows in by_condition.items()}

    @property
    def expression(self) -> CellStore:
        """Expression of the cells, also where the network works on embeddings."""
        return self.genes or self.cells

    @property
    def stores(self) -> list[CellStore]:
        """All stores that minibatches are read from."""
        stores = (self.cells, self.genes, self.embedding, self.residual_input)
        return [store for store in stores if store is not None]

    @property
    def prefetch_factor(self) -> int:
        """Number of minibatches to prefetch."""
        return max(store.prefetch_factor for store in self.stores)

    def _reads(self, request: CellSetRequest) -> list[tuple[str, CellStore, np.ndarray]]:
        """List key, store and rows of everything that a minibatch reads."""
        observed = request.observed_SN
        reads = [
            (TENSORS.CONTROL, self.cells, request.control_SN),
            (TENSORS.OBSERVED, self.cells, observed),
            (TENSORS.OBSERVED_GENES, self.genes, observed),
            (TENSORS.OBSERVED_EMBEDDING, self.embedding, observed),
            (TENSORS.RESIDUAL_INPUT, self.residual_input, request.residual_input_SN),
        ]
        return [(key, store, rows) for key, store, rows in reads if store is not None and rows is not None]

    def __getitem__(self, request: CellSetRequest) -> dict[str, Any]:
        payload: dict[str, Any] = {key: store.fetch(rows) for key, store, rows in self._reads(request)}
        payload[TENSORS.PERTURBATION] = torch.from_numpy(request.perturbation_S)
        payload[TENSORS.CONDITION] = torch.from_numpy(request.condition_S)
        if self.batch_of_cell is not None:
            # the batch of the predicted cells: that of the observed ones, else of those that the prediction starts from
            rows = request.control_SN if request.observed_SN is None else request.observed_SN
            payload[TENSORS.BATCH] = torch.from_numpy(self.batch_of_cell[rows])
        return payload

    def prefetch(self, request: CellSetRequest) -> None:
        """Let the stores begin to read what is asked for soon."""
        for _, store, rows in self._reads(request):
            store.prefetch(rows)

    def to_tensors(self, payload: dict[str, Any], device: torch.device, *, compact: bool = False) -> dict[str, Tensor]:
        """Finish a minibatch on the device; its keys name its shapes.

        With ``compact``, cells that their store holds in float16 stay so; otherwise every cell is float32.
        """
        stores = {
            TENSORS.CONTROL: self.cells,
            TENSORS.OBSERVED: self.cells,
            TENSORS.OBSERVED_GENES: self.genes,
            TENSORS.OBSERVED_EMBEDDING: self.embedding,
            TENSORS.RESIDUAL_INPUT: self.residual_input,
        }
        tensors = {
            key: (store.compact if compact else store.dense)(payload[key], device)
            for key, store in stores.items()
            if store and key in payload
        }
        if self._table.device != device:
            self._table = self._table.to(device)
        for key, rows in self._of_condition.items():
            if rows.device != device:
                self._of_condition[key] = rows = rows.to(device)
            tensors[key] = rows[payload[TENSORS.CONDITION].to(device, non_blocking=True)]
        for key in (TENSORS.CONDITION, TENSORS.BATCH):
            if key in payload:
                tensors[key] = payload[key].to(device, non_blocking=True)
        tensors[TENSORS.PERTURBATION] = self._table[payload[TENSORS.PERTURBATION].to(device, non_blocking=True)]
        return tensors
