"""Requests to tensors: the cells that a sampler chose, as one minibatch. No choices are made here.

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

    from scvi_tahoe.data._sampler import CellSetRequest
    from scvi_tahoe.data._store import CellStore

__all__ = ["CellSetDataset", "MinibatchSources"]


@dataclass(frozen=True)
class MinibatchSources:
    """Where each part of a minibatch comes from.

    Attributes
    ----------
    cells
        What the network takes in and gives out: expression, or cell embeddings.
    genes
        Expression beside embeddings, for a gene decoder; None otherwise.
    embedding
        Cell embeddings beside expression, as an auxiliary signal; None otherwise.
    table
        float32 ``[labels, P]`` perturbation embeddings.
    batch_of_cell
        Technical batch of every cell as the network counts them; None if it does not look.
    base
        The cells of a prior, which the network corrects; None without such a prior.
    shift_of_condition
        float32 ``[conditions, X]``: change of the mean that a prior adds to the controls; None without such a prior.
    of_condition
        By key of the minibatch, what the objective compares with: float32 ``[conditions, X]`` each.
    """

    cells: CellStore
    table: np.ndarray
    genes: CellStore | None = None
    embedding: CellStore | None = None
    batch_of_cell: np.ndarray | None = None
    base: CellStore | None = None
    shift_of_condition: np.ndarray | None = None
    of_condition: Mapping[str, np.ndarray] = field(default_factory=dict)


class CellSetDataset(Dataset):
    """Reads what a request names.

    ``dataset[request]`` runs in the loader and holds what :class:`CellStore` hands over; :meth:`to_tensors` finishes
    the minibatch on the device.
    """

    def __init__(self, sources: MinibatchSources) -> None:
        self.sources = sources
        # pandas hands out arrays that may not be written to, and torch warns of them
        self._table: Tensor = torch.from_numpy(np.require(sources.table, requirements="W"))
        shift = sources.shift_of_condition
        self._shift: Tensor | None = None if shift is None else torch.from_numpy(shift)
        self._of_condition = {key: torch.from_numpy(rows) for key, rows in sources.of_condition.items()}

    @property
    def ahead(self) -> int:
        """Minibatches that reading should be ahead."""
        sources = self.sources
        stores = (sources.cells, sources.genes, sources.embedding, sources.base)
        return max(store.ahead for store in stores if store is not None)

    def __getitem__(self, request: CellSetRequest) -> dict[str, Any]:
        sources, observed = self.sources, request.observed_SN
        payload: dict[str, Any] = {
            TENSORS.CONTROL: sources.cells.fetch(request.control_SN),
            TENSORS.PERTURBATION: torch.from_numpy(request.perturbation_S),
            TENSORS.CONDITION: torch.from_numpy(request.condition_S),
        }
        if observed is not None:
            payload[TENSORS.OBSERVED] = sources.cells.fetch(observed)
            if sources.genes is not None:
                payload[TENSORS.OBSERVED_GENES] = sources.genes.fetch(observed)
            if sources.embedding is not None:
                payload[TENSORS.OBSERVED_EMBEDDING] = sources.embedding.fetch(observed)
        if sources.base is not None and request.base_SN is not None:
            payload[TENSORS.BASE] = sources.base.fetch(request.base_SN)
        if sources.batch_of_cell is not None:
            # the network is told the batch of the cells it predicts: the observed ones, else those it starts from
            rows = request.control_SN if observed is None else observed
            payload[TENSORS.BATCH] = torch.from_numpy(sources.batch_of_cell[rows])
        return payload

    def expect(self, request: CellSetRequest) -> None:
        """Let the stores begin to read what is asked for soon."""
        sources, observed = self.sources, request.observed_SN
        sources.cells.expect(request.control_SN)
        if observed is not None:
            for store in (sources.cells, sources.genes, sources.embedding):
                if store is not None:
                    store.expect(observed)
        if sources.base is not None and request.base_SN is not None:
            sources.base.expect(request.base_SN)

    def to_tensors(self, payload: dict[str, Any], device: torch.device, *, compact: bool = False) -> dict[str, Tensor]:
        """The minibatch on the device; its keys name its shapes.

        Parameters
        ----------
        payload
            What ``dataset[request]`` held.
        device
            Where the minibatch is wanted.
        compact
            Leave cells that their store holds in float16 as they are; otherwise every cell is float32.
        """
        stores = {
            TENSORS.CONTROL: self.sources.cells,
            TENSORS.OBSERVED: self.sources.cells,
            TENSORS.OBSERVED_GENES: self.sources.genes,
            TENSORS.OBSERVED_EMBEDDING: self.sources.embedding,
            TENSORS.BASE: self.sources.base,
        }
        tensors = {
            key: (store.compact if compact else store.dense)(payload[key], device)
            for key, store in stores.items()
            if store and key in payload
        }
        if self._table.device != device:
            self._table = self._table.to(device)
        if self._shift is not None:
            if self._shift.device != device:
                self._shift = self._shift.to(device)
            tensors[TENSORS.SHIFT] = self._shift[payload[TENSORS.CONDITION].to(device, non_blocking=True)]
        for key, rows in self._of_condition.items():
            if rows.device != device:
                self._of_condition[key] = rows = rows.to(device)
            tensors[key] = rows[payload[TENSORS.CONDITION].to(device, non_blocking=True)]
        for key in (TENSORS.CONDITION, TENSORS.BATCH):
            if key in payload:
                tensors[key] = payload[key].to(device, non_blocking=True)
        tensors[TENSORS.PERTURBATION] = self._table[payload[TENSORS.PERTURBATION].to(device, non_blocking=True)]
        return tensors
