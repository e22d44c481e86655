"""Cells that are on disk, read a few hundred at a time.

Two things make it quick where cells are sorted by condition: rows that lie close to each other are read in one go, as a
chunk is decoded as a whole anyway, and annbatch reads all such runs of a request at once.
"""

from __future__ import annotations

import copy
import logging
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch
from anndata.abc import CSRDataset

from scvi_tahoe.data._compact_rows import CompactRows
from scvi_tahoe.data._store import CellStore, DeviceStore, HostStore, Payload, Pending

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from scvi_tahoe.data._alignment import GeneAlignment

#: bytes of control cells that are kept in memory while the rest is on disk; twice as many are needed for a moment
_KEPT = 2**29
_BLOCK = 2**14
#: arrays of rows that reading may have begun for
_MOST_PENDING = 32
logger = logging.getLogger(__name__)

#: entries between two rows that are read along, where the chunks of a matrix are not known
_GAP = 2**14


def is_sharded(matrix: Any) -> bool:
    """Whether a matrix is the expression of a folder that :func:`read_store` opened, or any CSR in zarr."""
    return isinstance(matrix, CSRDataset) and matrix.backend == "zarr"


@contextmanager
def fast_codecs() -> Iterator[None]:
    """Let zarr arrays that are opened here be decoded by zarrs where it is installed: several times as fast."""
    if find_spec("zarrs") is None:
        yield
        return
    import zarr
    import zarrs  # noqa: F401  registers itself

    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        yield


def dense_rows(matrix: Any, rows: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    """Read rows of any matrix, ascending, as a dense array."""
    matrix = matrix.to_numpy() if hasattr(matrix, "to_numpy") else DiskRows(matrix) if is_sharded(matrix) else matrix
    block = matrix[rows]
    return np.asarray(block.toarray() if sp.issparse(block) else block, dtype=dtype)


def runs_of(rows: np.ndarray, indptr: np.ndarray, gap: int) -> np.ndarray:
    """Cover sorted rows with runs, int64 ``[runs, 2]``: first row, and the one after the last.

    Two rows with at most ``gap`` entries between them come into one run.
    """
    apart = np.flatnonzero(indptr[rows[1:]] - indptr[rows[:-1] + 1] > gap) + 1
    return np.stack([rows[np.append(0, apart)], rows[np.append(apart, len(rows)) - 1] + 1], axis=1)


class DiskRows:
    """Rows of a matrix on disk (a backed h5ad matrix, or CSR in zarr), read when asked for."""

    def __init__(self, matrix: Any, alignment: GeneAlignment | None = None) -> None:
        self._alignment = alignment
        self._read = _row_reader(matrix)
        self.shape: tuple[int, int] = (
            matrix.shape[0],
            matrix.shape[1] if alignment is None else len(alignment.columns),
        )

    def __getitem__(self, rows: np.ndarray) -> Any:
        """Rows in any order, repeated or not: numpy, or CSR in which every place has one entry."""
        distinct, back = np.unique(rows, return_inverse=True)
        block = self.distinct(distinct)
        return block if len(distinct) == len(rows) and (distinct == rows).all() else block[back]

    def distinct(self, rows: np.ndarray) -> Any:
        """Read rows that are sorted, each once."""
        if not len(rows):
            return sp.csr_matrix((0, self.shape[1]), dtype=np.float32)
        block = self._read(rows)
        if sp.issparse(block):
            block = block.tocsr()
        if self._alignment is not None:
            block = self._alignment.apply(block)
        if sp.issparse(block) and not block.has_canonical_format:
            # entries of one place add up, and the scattering of rows would keep the last one only
            block.sum_duplicates()
        return block

    def n_entries(self, rows: np.ndarray) -> int | None:
        """Entries of these rows; None where that is not known without reading them."""
        indptr = getattr(self._read, "indptr", None)
        return None if indptr is None else int((indptr[rows + 1] - indptr[rows]).sum())


def _row_reader(matrix: Any) -> Any:
    """Choose how to read sorted rows of a matrix, each once."""
    if not is_sharded(matrix):
        return matrix.__getitem__
    if find_spec("annbatch") is not None:
        return _AnnbatchRows(matrix)
    too_old = ", which needs Python 3.12 or newer" if sys.version_info < (3, 12) else ""
    logger.warning(
        "rows are read from disk without annbatch, many times slower; install it with: "
        f"pip install 'scvi-tahoe[annbatch]'{too_old}."
    )
    return _ZarrRows(matrix)


class _ZarrRows:
    """Rows of CSR in zarr as anndata reads them, run by run."""

    def __init__(self, matrix: CSRDataset) -> None:
        with fast_codecs():
            self._matrix = _reopened(matrix)
            self.indptr = np.asarray(matrix.group["indptr"][:], dtype=np.int64)
        self._gap = int(getattr(matrix.group["data"], "chunks", (_GAP,))[0])

    def __call__(self, rows: np.ndarray) -> sp.csr_matrix:
        if rows[-1] >= len(self.indptr) - 1:
            raise IndexError(f"row {rows[-1]} of {len(self.indptr) - 1}.")
        runs = runs_of(rows, self.indptr, self._gap)
        block = self._runs(runs)
        lengths = runs[:, 1] - runs[:, 0]
        if lengths.sum() == len(rows):
            return block
        # where each run begins in the block, and the rows within it
        run = np.searchsorted(runs[:, 0], rows, side="right") - 1
        return block[np.append(0, np.cumsum(lengths))[run] + rows - runs[run, 0]]

    def _runs(self, runs: np.ndarray) -> sp.csr_matrix:
        return sp.vstack([self._matrix[int(first) : int(after)] for first, after in runs], format="csr")


class _AnnbatchRows(_ZarrRows):
    """The same through annbatch, which reads all runs at once."""

    def __init__(self, matrix: CSRDataset) -> None:
        super().__init__(matrix)
        from annbatch import Loader

        self._lock = threading.Lock()
        self._request = _requests()
        self._loader = Loader(batch_sampler=self._request, preload_to_gpu=False).add_dataset(self._matrix)
        self._answers = iter(self._loader)
        with fast_codecs():  # the loader opens its arrays when it reads for the first time
            self._runs(np.array([[0, 1]]))

    def _runs(self, runs: np.ndarray) -> sp.csr_matrix:
        with self._lock:
            self._request.rows = np.concatenate([np.arange(first, after) for first, after in runs])
            try:
                return next(self._answers)["X"]
            except BaseException:
                self._answers = iter(self._loader)  # an iteration that failed is over
                raise


def _requests() -> Any:
    """Make a sampler of annbatch's kind that yields the rows it was last given."""
    from annbatch.abc import Sampler

    class Requests(Sampler):
        rows = np.empty(0, dtype=np.int64)
        batch_size = None
        shuffle = False

        def n_batches(self, n_obs: int) -> int:
            return n_obs

        def validate(self, n_obs: int) -> None:
            pass

        def _sample(self, n_obs: int) -> Iterator[Any]:
            while True:
                yield {"requests": self.rows, "splits": [np.arange(len(self.rows))]}

    return Requests()


def _reopened(matrix: CSRDataset) -> CSRDataset:
    """Open the matrix anew, its arrays decoded as is configured now."""
    import anndata.io
    import zarr

    group = matrix.group
    return anndata.io.sparse_dataset(zarr.open_group(group.store, path=group.path, mode="r"))


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
        n_entries = self.rows.n_entries(rows)
        if n_entries is None or 6 * n_entries > _KEPT:
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
        block = self.rows.distinct(distinct)
        payload: Payload = {"back": torch.from_numpy(back.reshape(rows.shape))}
        if sp.issparse(block):
            return payload | {"entries": CompactRows.from_csr(block, half=self._half)}
        return payload | {"cells": torch.from_numpy(np.asarray(block, dtype=np.float32))}

    def dense(self, payload: Payload, device: torch.device) -> Tensor:
        """Move the distinct rows, then repeat and order them on the device."""
        if "kept" in payload:
            return self._kept.dense(payload["kept"], device)  # type: ignore[union-attr]
        back = payload["back"].to(device, non_blocking=True)
        if "entries" in payload:
            return payload["entries"].to(device).dense(back, device)
        return payload["cells"].to(device, non_blocking=True)[back]
