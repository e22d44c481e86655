"""Where expression lives while sets are read from it, and how rows become a dense tensor on the device.

A store works in two steps. ``fetch`` runs in the loader and does as little as it can; ``dense`` runs on the device.

=========== =============================== ============================================
store       fetch hands over                dense
=========== =============================== ============================================
DeviceStore row numbers                     gathers (and, from CSR, scatters) on the device
HostStore   the rows, still sparse          moves them and scatters on the device
DiskStore   the rows, read in sorted order  puts them back in the order that was asked
=========== =============================== ============================================

Results do not depend on the store.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_tahoe.data._alignment import GeneAlignment

__all__ = ["CellStore", "DeviceStore", "DiskStore", "HostStore", "StoreKind", "make_store"]

StoreKind = Literal["auto", "device", "host", "disk"]
Payload = dict[str, Any]

#: share of the free memory of a device that "auto" gives to expression; the rest is for the network
_DEVICE_SHARE = 0.4


class CellStore(ABC):
    """Rows of a cells x features matrix, as float32 tensors on a device."""

    n_features: int
    description: str

    @abstractmethod
    def fetch(self, rows: np.ndarray) -> Payload:
        """What the loader hands over for these rows (any shape)."""

    @abstractmethod
    def dense(self, payload: Payload, device: torch.device) -> Tensor:
        """float32 ``[*rows.shape, n_features]`` on the device."""


def _scatter_csr(counts: Tensor, indices: Tensor, data: Tensor, n_features: int) -> Tensor:
    """Dense rows from the concatenated entries of CSR rows."""
    # output_size keeps a GPU from waiting for the sum of counts
    row = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts, output_size=len(data))
    out = torch.zeros(len(counts), n_features, dtype=torch.float32, device=data.device)
    out.view(-1)[row * n_features + indices.long()] = data.float()
    return out


class DeviceStore(CellStore):
    """The whole matrix on the device, dense or CSR; the loader hands over row numbers only."""

    def __init__(self, matrix: Any, device: torch.device) -> None:
        self.n_features = matrix.shape[1]
        self.device = device
        self.sparse = sp.issparse(matrix)
        if self.sparse:
            index_dtype = np.int16 if self.n_features <= np.iinfo(np.int16).max else np.int32
            self.host_indptr = np.asarray(matrix.indptr, dtype=np.int64)
            self.indptr = torch.from_numpy(self.host_indptr).to(device)
            self.indices = torch.from_numpy(np.asarray(matrix.indices, dtype=index_dtype)).to(device)
            self.data = torch.from_numpy(np.asarray(matrix.data, dtype=np.float32)).to(device)
            size = self.indices.nbytes + self.data.nbytes + self.indptr.nbytes
        else:
            self.matrix = torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32)).to(device)
            size = self.matrix.nbytes
        kind = "sparse rows" if self.sparse else "dense rows"
        self.description = f"{kind} on {device} ({size / 2**30:.2f} GiB)"

    def fetch(self, rows: np.ndarray) -> Payload:
        """Row numbers, and how many entries they hold (known here without asking the device)."""
        payload: Payload = {"rows": torch.from_numpy(np.ascontiguousarray(rows))}
        if self.sparse:
            payload["n_entries"] = int((self.host_indptr[rows + 1] - self.host_indptr[rows]).sum())
        return payload

    def dense(self, payload: Payload, device: torch.device) -> Tensor:
        """Gather on the device."""
        rows = payload["rows"].to(self.device, non_blocking=True)
        flat = rows.reshape(-1)
        if not self.sparse:
            return self.matrix[flat].view(*rows.shape, -1)
        starts = self.indptr[flat]
        counts = self.indptr[flat + 1] - starts
        n = payload["n_entries"]
        shift = torch.repeat_interleave(starts - (counts.cumsum(0) - counts), counts, output_size=n)
        entry = torch.arange(n, device=self.device) + shift
        out = _scatter_csr(counts, self.indices[entry], self.data[entry], self.n_features)
        return out.view(*rows.shape, -1)


class HostStore(CellStore):
    """The matrix as it is in main memory; rows are sliced there and become dense on the device."""

    def __init__(self, matrix: Any) -> None:
        self.matrix = matrix
        self.n_features = matrix.shape[1]
        self.description = "rows in main memory, " + ("sparse" if sp.issparse(matrix) else "dense")

    def fetch(self, rows: np.ndarray) -> Payload:
        """Slice the rows, sparse ones as entries."""
        block = self.matrix[rows.reshape(-1)]
        if not sp.issparse(block):
            return {"cells": torch.from_numpy(np.asarray(block, dtype=np.float32)), "shape": rows.shape}
        return {
            "counts": torch.from_numpy(np.diff(block.indptr).astype(np.int64)),
            "indices": torch.from_numpy(block.indices.astype(np.int32)),
            "data": torch.from_numpy(block.data.astype(np.float32)),
            "shape": rows.shape,
        }

    def dense(self, payload: Payload, device: torch.device) -> Tensor:
        """Move, then scatter."""
        moved = {k: v.to(device, non_blocking=True) for k, v in payload.items() if isinstance(v, torch.Tensor)}
        if "cells" in moved:
            return moved["cells"].view(*payload["shape"], -1)
        out = _scatter_csr(moved["counts"], moved["indices"], moved["data"], self.n_features)
        return out.view(*payload["shape"], -1)


class DiskStore(CellStore):
    """A backed matrix. Files want each row once and in order, so rows are read sorted and then put back."""

    def __init__(self, matrix: Any, alignment: GeneAlignment | None = None) -> None:
        self.matrix = matrix
        self.alignment = alignment
        self.n_features = matrix.shape[1] if alignment is None else len(alignment.columns)
        self.description = "rows read from disk"

    def fetch(self, rows: np.ndarray) -> Payload:
        """Read each distinct row once."""
        distinct, back = np.unique(rows, return_inverse=True)
        block = self.matrix[distinct]
        block = block if self.alignment is None else self.alignment.apply(block)
        cells = np.asarray(block.toarray() if sp.issparse(block) else block, dtype=np.float32)
        return {"cells": torch.from_numpy(cells), "back": torch.from_numpy(back.reshape(rows.shape))}

    def dense(self, payload: Payload, device: torch.device) -> Tensor:
        """Move the distinct rows, then repeat and order them on the device."""
        cells = payload["cells"].to(device, non_blocking=True)
        return cells[payload["back"].to(device, non_blocking=True)]


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * _DEVICE_SHARE)
    return 2**30  # on the CPU dense rows are only worth a copy of the data while they are small


def _on_device(matrix: Any, device: torch.device) -> DeviceStore:
    """Dense where that is no larger than CSR or small anyway; dense rows need no scattering."""
    if sp.issparse(matrix):
        dense_bytes = 4 * matrix.shape[0] * matrix.shape[1]
        if dense_bytes <= max(2**28, 6 * matrix.nnz):
            matrix = matrix.toarray()
    return DeviceStore(matrix, device)


def make_store(
    matrix: Any,
    device: torch.device,
    *,
    kind: StoreKind = "auto",
    alignment: GeneAlignment | None = None,
) -> CellStore:
    """Choose where expression lives.

    Parameters
    ----------
    matrix
        Cells x features: numpy, DataFrame, scipy sparse, or backed.
    device
        Where the network runs.
    kind
        One of:

        * ``'auto'`` - on the device if it fits, else in main memory, else on disk (default)
        * ``'device'``, ``'host'``, ``'disk'`` - that place
    alignment
        Order of genes to bring the columns into.

    Raises
    ------
    ValueError
        If the kind is unknown, or ``'disk'`` is asked for data in memory.
    """
    if kind not in ("auto", "device", "host", "disk"):
        raise ValueError(f"store={kind!r} is unknown; allowed are 'auto', 'device', 'host' and 'disk'.")
    if isinstance(matrix, pd.DataFrame):
        matrix = matrix.to_numpy()
    in_memory = isinstance(matrix, np.ndarray) or sp.issparse(matrix)
    if kind == "disk" and in_memory:
        raise ValueError("store='disk' needs backed data; read the file with sc.read_h5ad(path, backed='r').")
    if not in_memory and kind in ("auto", "disk"):
        return DiskStore(matrix, alignment)
    if not in_memory:
        matrix = matrix.to_memory() if hasattr(matrix, "to_memory") else np.asarray(matrix[:])
    if sp.issparse(matrix) and matrix.format != "csr":
        matrix = matrix.tocsr()
    if alignment is not None:
        matrix = alignment.apply(matrix)
    n_bytes = 6 * matrix.nnz if sp.issparse(matrix) else 4 * matrix.size
    if device.type == "cpu":
        n_bytes = 4 * matrix.shape[0] * matrix.shape[1]  # there it is dense rows or nothing
    if kind == "device" or (kind == "auto" and n_bytes <= _free_bytes(device)):
        return _on_device(matrix, device)
    return HostStore(matrix)
