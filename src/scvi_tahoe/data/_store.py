"""Where expression lives while sets are read from it, and how rows become a dense tensor on the device.

A store works in two steps. ``fetch`` runs in the loader and does as little as it can; ``dense`` runs on the device.
``prefetch`` may be called some steps ahead, and begins what can be begun.

=========== ================================= ==========================================================
store       fetch hands over                  dense
=========== ================================= ==========================================================
DeviceStore row numbers                       gathers (and, from CSR, scatters) on the device
HostStore   row numbers                       a GPU reads the rows from pinned main memory, a step ahead
HostStore   the rows, still sparse (no GPU)   scatters
DiskStore   the rows, read in sorted order    puts them back in the order that was asked
=========== ================================= ==========================================================

Results do not depend on the store: for a GPU, sparse values are rounded to float16 whichever store holds them.
"""

from __future__ import annotations

import copy
import weakref
from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from scvi_tahoe.data._compact_rows import CompactRows, fits_half, kernel_runs_on
from scvi_tahoe.data._matrix import DiskRows, in_memory, without_duplicates

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_tahoe.data._matrix import GeneAlignment

Payload = dict[str, Any]
T = TypeVar("T")
_GIB = 2**30
#: programs of the kernel that reads over the bus beside the network's kernels: enough to fill the bus, not the GPU
_BUS_PROGRAMS = 64


class CellStore(ABC):
    """Rows of a cells x features matrix, as float32 tensors on a device."""

    n_features: int
    description: str
    #: minibatches to prefetch
    prefetch_factor: int = 1

    @abstractmethod
    def fetch(self, rows: np.ndarray) -> Payload:
        """Hand over what the device needs for these rows (any shape)."""

    @abstractmethod
    def dense(self, payload: Payload, device: torch.device) -> Tensor:
        """float32 ``[*rows.shape, n_features]`` on the device."""

    def mean(self, rows: np.ndarray, device: torch.device) -> np.ndarray:
        """Mean of some rows, float64 ``[n_features]``."""
        return self.dense(self.fetch(rows), device).mean(0).cpu().numpy().astype(np.float64)

    def compact(self, payload: Payload, device: torch.device, out: Tensor | None = None) -> Tensor:
        """Return rows as narrow as the store holds them: float16 where it rounds values to it, else float32.

        ``out`` may be overwritten, and is returned then.
        """
        return self.dense(payload, device)

    def prefetch(self, rows: np.ndarray) -> None:  # noqa: B027  most stores have nothing to begin
        """Begin to read exactly this array of rows, which is fetched soon, if that helps."""

    def replica(self) -> CellStore:
        """Copy for another device or thread: what is in main memory is shared, what is begun is not."""
        return copy.copy(self)


class Pending(Generic[T]):
    """What was begun for arrays of rows that will be fetched; the oldest are dropped: some are never fetched."""

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._begun: dict[int, tuple[np.ndarray, T]] = {}

    def add(self, rows: np.ndarray, begun: T) -> T | None:
        """Keep what was begun for exactly this array; return what is forgotten for it."""
        oldest = self._begun.pop(next(iter(self._begun)))[1] if len(self._begun) > self._most else None
        self._begun[id(rows)] = (rows, begun)
        return oldest

    def pop(self, rows: np.ndarray) -> T | None:
        """Return what was begun for exactly this array; None if nothing was."""
        expected, begun = self._begun.pop(id(rows), (None, None))
        return begun if expected is rows else None


def sent(numbers: Tensor, device: torch.device) -> Tensor:
    """Send a few numbers to a device, without waiting for what it does at the time."""
    return (numbers.pin_memory() if device.type == "cuda" else numbers).to(device, non_blocking=True)


def _row_numbers(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows))


def _packed(block: Any, half: bool) -> Payload:
    """Pack rows as a loader hands them over: the entries of sparse ones, else float32 cells."""
    if sp.issparse(block):
        return {"entries": CompactRows.from_csr(block, half=half)}
    return {"cells": torch.from_numpy(np.asarray(block, dtype=np.float32))}


class DeviceStore(CellStore):
    """The whole matrix on the device, dense or CSR without duplicates; the loader hands over row numbers only.

    The matrix is moved to the device when rows are first read there, so that each process of a run on several devices
    has its own copy. With ``half``, sparse values are kept in float16.
    """

    def __init__(self, matrix: Any, device: torch.device, *, half: bool = False) -> None:
        self.n_features = matrix.shape[1]
        self.sparse = sp.issparse(matrix)
        if self.sparse:
            self._rows: Any = CompactRows.from_csr(matrix, half=half)
        else:
            self._rows = torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32))
        self.nbytes: int = self._rows.nbytes
        kind = ("sparse rows in float16" if half else "sparse rows") if self.sparse else "dense rows"
        self.description = f"{kind} on {device} ({self.nbytes / _GIB:.2f} GiB)"

    def fetch(self, rows: np.ndarray) -> Payload:
        return {"rows": _row_numbers(rows)}

    def dense(self, payload: Payload, device: torch.device) -> Tensor:
        return self._gather(payload, device, torch.float32)

    def compact(self, payload: Payload, device: torch.device, out: Tensor | None = None) -> Tensor:
        """Gather without making float32 of what is float16: half the bytes to write, and to read in training."""
        return self._gather(payload, device, self._rows.values.dtype if self.sparse else torch.float32, out)

    def _gather(self, payload: Payload, device: torch.device, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        rows = sent(payload["rows"], device)
        if self._rows.device != device:
            self._rows = self._rows.to(device)
        if self.sparse:
            return self._rows.dense(rows, device, dtype=dtype, out=out)
        return self._rows[rows.reshape(-1)].view(*rows.shape, -1)


class HostStore(CellStore):
    """The matrix in main memory.

    For a GPU, sparse rows are kept compact in pinned memory, from where the GPU reads them itself, over the bus and
    in parallel with the network. Otherwise rows are sliced here and become dense on the device.
    """

    def __init__(self, matrix: Any, device: torch.device | None = None, *, half: bool = False) -> None:
        self.n_features = matrix.shape[1]
        self._half = half
        self._stream: torch.cuda.Stream | None = None
        self._pending: Pending[tuple[Tensor, torch.cuda.Event]] = Pending()  # rows that the GPU reads, and their end
        on_gpu = device is not None and kernel_runs_on(device.type) and sp.issparse(matrix)
        self._pinned: CompactRows | None = CompactRows.from_csr(matrix, half=half) if on_gpu else None
        self._matrix = None if on_gpu else matrix
        if self._pinned is not None:
            self._lock = _MemoryLock(self._pinned)
            self.description = f"sparse rows in pinned main memory ({self._pinned.nbytes / _GIB:.2f} GiB)"
        else:
            self.description = "rows in main memory, " + ("sparse" if sp.issparse(matrix) else "dense")

    def fetch(self, rows: np.ndarray) -> Payload:
        """Row numbers for a GPU; else slice the rows, sparse ones as entries."""
        if self._pinned is not None:
            begun = self._pending.pop(rows)
            return {"rows": _row_numbers(rows)} if begun is None else {"begun": begun}
        return _packed(self._matrix[rows.reshape(-1)], self._half) | {"shape": rows.shape}  # type: ignore[index]

    def dense(self, payload: Payload, device: torch.device) -> Tensor:
        """Let the GPU read; or move, then scatter."""
        if "begun" in payload:
            cells, done = payload["begun"]
            stream = torch.cuda.current_stream(cells.device)
            stream.wait_event(done)
            cells.record_stream(stream)
            return cells
        if "rows" in payload:
            return self._read(payload["rows"], device)
        if "cells" in payload:
            return payload["cells"].to(device, non_blocking=True).view(*payload["shape"], -1)
        block = payload["entries"].to(device)
        return block.dense(torch.arange(len(block.indptr) - 1, device=device), device).view(*payload["shape"], -1)

    def prefetch(self, rows: np.ndarray) -> None:
        """Let the GPU begin to read, on a stream of its own."""
        if self._stream is None:
            return  # the device is known once rows were read there
        with torch.cuda.stream(self._stream):
            begun = self._read(_row_numbers(rows), self._stream.device), torch.cuda.Event()
            begun[1].record()
        self._pending.add(rows, begun)

    def replica(self) -> HostStore:
        """Share the rows, and the lock on their memory; streams belong to one device."""
        other = copy.copy(self)
        other._stream, other._pending = None, Pending()
        return other

    def _read(self, rows: Tensor, device: torch.device) -> Tensor:
        if self._stream is None:
            self._lock.take()
            self._stream = torch.cuda.Stream(device)
        return self._pinned.dense(rows.to(device, non_blocking=True), device, n_programs=_BUS_PROGRAMS)  # type: ignore[union-attr]


class _MemoryLock:
    """Keeps the memory of rows locked, once it was taken, for as long as a store holds it, so that GPUs may read it.

    With one address space, which every 64-bit system has, memory that is locked for one GPU is locked for all.
    """

    def __init__(self, rows: CompactRows) -> None:
        self._rows = rows
        self._mutex = Lock()
        self._taken = False

    def take(self) -> None:
        """Lock, if that was not done yet."""
        with self._mutex:
            if self._taken:
                return
            runtime = torch.cuda.cudart()
            for tensor in (self._rows.indptr, self._rows.indices, self._rows.values):
                error = runtime.cudaHostRegister(tensor.data_ptr(), max(1, tensor.nbytes), 0)
                if int(error) != 0:
                    raise MemoryError(
                        f"{tensor.nbytes / _GIB:.1f} GiB of main memory could not be locked for the GPU (CUDA error "
                        f"{int(error)}); raise the limit of locked memory (ulimit -l), or train from a backed file "
                        "with store='disk'."
                    )
                weakref.finalize(self, _unpin, tensor)
            self._taken = True


def _unpin(tensor: Tensor) -> None:
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaHostUnregister(tensor.data_ptr())


class SelectedRows(CellStore):
    """A store of some of the rows of a matrix, under the numbers (ascending) that they have among all ``n_rows``."""

    def __init__(self, store: CellStore, rows: np.ndarray, n_rows: int) -> None:
        self.store = store
        self.n_features = store.n_features
        self.description = f"{store.description}, the {len(rows):,} cells that are read"
        self._place = np.full(n_rows, -1, dtype=np.int64)
        self._place[rows] = np.arange(len(rows))
        self._pending: Pending[np.ndarray] = Pending()

    def fetch(self, rows: np.ndarray) -> Payload:
        places = self._pending.pop(rows)
        return self.store.fetch(self._places(rows) if places is None else places)

    def dense(self, payload: Payload, device: torch.device) -> Tensor:
        return self.store.dense(payload, device)

    def prefetch(self, rows: np.ndarray) -> None:
        places = self._places(rows)
        self._pending.add(rows, places)
        self.store.prefetch(places)

    def replica(self) -> SelectedRows:
        other = copy.copy(self)
        other.store, other._pending = self.store.replica(), Pending()
        return other

    def _places(self, rows: np.ndarray) -> np.ndarray:
        places = self._place[rows]
        if (places < 0).any():
            raise IndexError(f"row {rows[places < 0].flat[0]} is not among the rows that this store was made of.")
        return places


#: bytes of control cells that are kept in memory while the rest is on disk; twice as many are needed for a moment
_KEPT = 2**29
_BLOCK = 2**14
#: arrays of rows that reading may have begun for
_MOST_PENDING = 32


class DiskStore(CellStore):
    """A matrix on disk. Files want each row once and in order, so rows are read sorted and then put back.

    Rows that are asked for all the time (``pinned_rows``: control cells) are kept in memory where they take no more
    than half a GiB; a request for none but them reads nothing.
    """

    prefetch_factor = 4

    def __init__(
        self,
        matrix: Any,
        alignment: GeneAlignment | None = None,
        *,
        device: torch.device | None = None,
        half: bool = False,
        pinned_rows: np.ndarray | None = None,
    ) -> None:
        self.rows = DiskRows(matrix, alignment)
        self.n_features = self.rows.shape[1]
        self.description = "rows read from disk"
        self._half = half
        self._reader: ThreadPoolExecutor | None = None
        self._pending: Pending[Future] = Pending(_MOST_PENDING)
        self._kept: CellStore | None = None
        self._place: np.ndarray | None = None
        if pinned_rows is not None and len(pinned_rows):
            self._keep(np.unique(pinned_rows), device or torch.device("cpu"))

    def _keep(self, rows: np.ndarray, device: torch.device) -> None:
        if (n_entries := self.rows.n_entries(rows)) is None or 6 * n_entries > _KEPT:
            return
        block = sp.vstack([self.rows.distinct(rows[i : i + _BLOCK]) for i in range(0, len(rows), _BLOCK)], format="csr")
        on_gpu = device.type == "cuda"
        self._kept = HostStore(block, device, half=self._half) if on_gpu else DeviceStore(block, device)
        self._place = np.full(self.rows.shape[0], -1, dtype=np.int32)
        self._place[rows] = np.arange(len(rows))
        self.description += f", {len(rows)} control cells kept in memory"

    def fetch(self, rows: np.ndarray) -> Payload:
        """Read each distinct row once, or take the ones that are kept."""
        reading = self._pending.pop(rows)
        return self._read(rows) if reading is None else reading.result()

    def prefetch(self, rows: np.ndarray) -> None:
        """Begin to read in a thread."""
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix="scvi-tahoe-disk")
        if (oldest := self._pending.add(rows, self._reader.submit(self._read, rows))) is not None:
            oldest.cancel()

    def replica(self) -> DiskStore:
        """Share the file; each has a thread of its own that reads."""
        other = copy.copy(self)
        other._reader, other._pending = None, Pending(_MOST_PENDING)
        other._kept = None if self._kept is None else self._kept.replica()
        return other

    def _read(self, rows: np.ndarray) -> Payload:
        if self._kept is not None:
            place = self._place[rows]  # type: ignore[index]
            if (place >= 0).all():
                return {"kept": self._kept.fetch(place.astype(np.int64))}
        distinct, back = np.unique(rows, return_inverse=True)
        return _packed(self.rows.distinct(distinct), self._half) | {"back": torch.from_numpy(back.reshape(rows.shape))}

    def dense(self, payload: Payload, device: torch.device) -> Tensor:
        """Move the distinct rows, then repeat and order them on the device."""
        if "kept" in payload:
            return self._kept.dense(payload["kept"], device)  # type: ignore[union-attr]
        back = payload["back"].to(device, non_blocking=True)
        if "entries" in payload:
            return payload["entries"].to(device).dense(back, device)
        return payload["cells"].to(device, non_blocking=True)[back]


StoreKind = Literal["auto", "device", "host", "disk"]
#: share of the free memory of a device that "auto" gives to expression; the rest is for the network
_DEVICE_SHARE = 0.4
#: dense rows need no scattering, so a matrix that is small when dense is kept dense
_SMALL_DENSE = 2**28
#: bytes of rows that "auto" reads from a file once, if no other rows will be read
_READ_ONCE = _GIB


def _bytes_of_rows(matrix: Any, n_rows: int) -> int:
    """About how many bytes some rows of a backed matrix take in memory."""
    group = getattr(matrix, "group", None)  # of a sparse one
    entries = matrix.shape[0] * matrix.shape[1] if group is None else group["indices"].shape[0]
    return (4 if group is None else 8) * entries * n_rows // max(1, matrix.shape[0])


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
        Rows that are requested all the time, which a store on disk keeps in memory if they are few.
    rows
        The only rows that will be read; if None, any. No others are taken to the device, if that saves at
        least half of the matrix; and ``'auto'`` reads them from a file once, if they take less than 1 GiB.
    """
    if kind not in get_args(StoreKind):
        raise ValueError(f"store={kind!r} is unknown; allowed are 'auto', 'device', 'host' and 'disk'.")
    if isinstance(matrix, pd.DataFrame):
        matrix = matrix.to_numpy()
    on_disk = not (isinstance(matrix, np.ndarray) or sp.issparse(matrix))
    if kind == "disk" and not on_disk:
        raise ValueError(
            "store='disk' needs data on disk; open the file with sc.read_h5ad(path, backed='r'), or convert it with "
            "`scvi-tahoe convert` and open that with scvi_tahoe.read_store(folder), which is faster."
        )
    half = device.type == "cuda" and not full_precision
    chosen = None if rows is None else np.unique(rows)
    if not (on_disk and kind == "auto" and chosen is not None and _bytes_of_rows(matrix, len(chosen)) <= _READ_ONCE):
        if on_disk and kind in ("auto", "disk"):
            return DiskStore(matrix, alignment, device=device, half=half, pinned_rows=pinned_rows)
        matrix = in_memory(matrix)
        if chosen is None or 2 * len(chosen) > matrix.shape[0]:
            return _in_memory(matrix, device, kind, alignment, half=half)
    return SelectedRows(_in_memory(matrix[chosen], device, kind, alignment, half=half), chosen, matrix.shape[0])


def _in_memory(
    matrix: Any, device: torch.device, kind: StoreKind, alignment: GeneAlignment | None, *, half: bool
) -> CellStore:
    """On the device, or in main memory."""
    if sp.issparse(matrix):
        matrix = without_duplicates(matrix.tocsr())
        half = half and fits_half(matrix.data)
    if alignment is not None:
        matrix = alignment.apply(matrix)
    needed = _device_bytes(matrix, device, half=half)
    # on the CPU dense rows are only worth a copy of the data while they are small
    room = int(torch.cuda.mem_get_info(device)[0] * _DEVICE_SHARE) if device.type == "cuda" else _GIB
    if kind == "device" or (kind == "auto" and needed <= room):
        return _on_device(matrix, device, half=half)
    store = HostStore(matrix, device, half=half)
    if kind == "auto":
        store.description += (
            f": on {device} it would take {needed / _GIB:.1f} GiB, and {room / _GIB:.1f} GiB are set aside for it"
        )
    return store
