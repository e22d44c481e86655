"""Where expression lives: on the device, in main memory, or on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from scvi_tahoe.data._compact_rows import fits_half
from scvi_tahoe.data._disk_store import DiskStore
from scvi_tahoe.data._store import CellStore, DeviceStore, HostStore, SelectedRows

if TYPE_CHECKING:
    from scvi_tahoe.data._alignment import GeneAlignment

StoreKind = Literal["auto", "device", "host", "disk"]

_GIB = 2**30
#: share of the free memory of a device that "auto" gives to expression; the rest is for the network
_DEVICE_SHARE = 0.4
#: dense rows need no scattering, so a matrix that is small when dense is kept dense
_SMALL_DENSE = 2**28
#: bytes of rows that "auto" reads from a file once, if no other rows will be read
_READ_ONCE = _GIB


def _canonical(matrix: Any) -> Any:
    """CSR in which every place has one entry."""
    if matrix.has_canonical_format:
        return matrix
    # entries of one place add up, and the scattering of rows would keep the last one only
    matrix = matrix.copy()
    matrix.sum_duplicates()
    return matrix


def _as_rows(matrix: Any) -> Any:
    return matrix.tocsr() if sp.issparse(matrix) else matrix


def _bytes_of_rows(matrix: Any, n_rows: int) -> int:
    """About how many bytes some rows of a backed matrix take in memory."""
    group = getattr(matrix, "group", None)  # of a sparse one
    entries = matrix.shape[0] * matrix.shape[1] if group is None else group["indices"].shape[0]
    return (4 if group is None else 8) * entries * n_rows // max(1, matrix.shape[0])


def _room(device: torch.device) -> int:
    """Bytes of a device that expression may take."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * _DEVICE_SHARE)
    return _GIB  # on the CPU dense rows are only worth a copy of the data while they are small


def _device_bytes(matrix: Any, device: torch.device, *, half: bool) -> int:
    """Bytes that a matrix takes on a device."""
    dense = 4 * matrix.shape[0] * matrix.shape[1]
    if device.type == "cpu" or not sp.issparse(matrix):
        return dense  # on the CPU it is dense rows or nothing
    compact = (4 if half else 6) * matrix.nnz
    return dense if dense <= max(_SMALL_DENSE, compact) else compact


def _on_device(matrix: Any, device: torch.device, *, half: bool) -> DeviceStore:
    """Dense where that is no larger than CSR or small anyway; dense rows need no scattering."""
    if sp.issparse(matrix) and 4 * matrix.shape[0] * matrix.shape[1] <= max(_SMALL_DENSE, 6 * matrix.nnz):
        matrix = matrix.toarray()
        # after it is dense: scipy has no sparse matrices of float16
        matrix = matrix.astype(np.float16).astype(np.float32) if half else matrix
    return DeviceStore(matrix, device, half=half)


def make_store(
    matrix: Any,
    device: torch.device,
    *,
    kind: StoreKind = "auto",
    alignment: GeneAlignment | None = None,
    full_precision: bool = False,
    pinned_rows: np.ndarray | None = None,
    rows: np.ndarray | None = None,
) -> CellStore:
    """Choose where expression lives.

    Parameters
    ----------
    matrix
        Cells x features: numpy, DataFrame, scipy sparse, or backed.
    device
        Where the network runs.
    kind
        ``'device'``, ``'host'``, ``'disk'``, or ``'auto'``: the first of these that it fits into.
    alignment
        Order of genes to bring the columns into.
    full_precision
        Keep float32 values for a GPU too. Otherwise sparse values are rounded to float16 in every store: a
        relative error below 0.0005, finer than what the bfloat16 of its matrix units keeps.
    pinned_rows
        Rows that will be asked for all the time, which a store on disk keeps in memory if they are few.
    rows
        The only rows that will be read; if None, any. No others are taken to the device, if that saves at
        least half of the matrix; and ``'auto'`` reads them from a file once, if they take less than 1 GiB.
    """
    if kind not in get_args(StoreKind):
        raise ValueError(f"store={kind!r} is unknown; allowed are 'auto', 'device', 'host' and 'disk'.")
    if isinstance(matrix, pd.DataFrame):
        matrix = matrix.to_numpy()
    in_memory = isinstance(matrix, np.ndarray) or sp.issparse(matrix)
    if kind == "disk" and in_memory:
        raise ValueError(
            "store='disk' needs data on disk; open the file with sc.read_h5ad(path, backed='r'), or convert it with "
            "`scvi-tahoe convert` and open that with scvi_tahoe.read_store(folder), which is faster."
        )
    half = device.type == "cuda" and not full_precision
    chosen = None if rows is None else np.unique(rows)
    if not in_memory and kind == "auto" and chosen is not None and _bytes_of_rows(matrix, len(chosen)) <= _READ_ONCE:
        some = _as_rows(matrix[chosen])
        return SelectedRows(_in_memory(some, device, kind, alignment, half=half), chosen, matrix.shape[0])
    if not in_memory and kind in ("auto", "disk"):
        return DiskStore(matrix, alignment, device=device, half=half, pinned_rows=pinned_rows)
    if not in_memory:
        matrix = matrix.to_memory() if hasattr(matrix, "to_memory") else np.asarray(matrix[:])
    matrix = _as_rows(matrix)
    if chosen is None or 2 * len(chosen) > matrix.shape[0]:
        return _in_memory(matrix, device, kind, alignment, half=half)
    return SelectedRows(_in_memory(matrix[chosen], device, kind, alignment, half=half), chosen, matrix.shape[0])


def _in_memory(
    matrix: Any, device: torch.device, kind: StoreKind, alignment: GeneAlignment | None, *, half: bool
) -> CellStore:
    """On the device, or in main memory."""
    if sp.issparse(matrix):
        matrix = _canonical(matrix)
        half = half and fits_half(matrix.data)
    if alignment is not None:
        matrix = alignment.apply(matrix)
    needed, room = _device_bytes(matrix, device, half=half), _room(device)
    if kind == "device" or (kind == "auto" and needed <= room):
        return _on_device(matrix, device, half=half)
    store = HostStore(matrix, device, half=half)
    if kind == "auto":
        store.description += (
            f": on {device} it would take {needed / _GIB:.1f} GiB, and {room / _GIB:.1f} GiB are set aside for it"
        )
    return store
