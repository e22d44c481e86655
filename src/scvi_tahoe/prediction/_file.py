"""A prediction written to a file chunk after chunk, and the file as an AnnData whose matrices stay there."""

from __future__ import annotations

import logging
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import anndata as ad
import h5py
import numpy as np
import scipy.sparse as sp
import torch

from scvi_tahoe.files import atomic_write, verify_space, write_checksums

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pandas as pd

logger = logging.getLogger(__name__)

_SUFFIXES = (".h5ad", ".zarr")
_ENTRIES = 2**20  # of a chunk of a sparse array in a file
_DENSE_BYTES = 2**23  # of a chunk of dense rows
_ROWS = 256  # rows that a thread turns into CSR at once


def verify_path(path: Path, *, overwrite: bool) -> None:
    """Verify that a prediction can be written to a path."""
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"path={str(path)!r} must end in .h5ad (one file) or .zarr (a folder).")
    is_zarr = path.suffix == ".zarr"
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; give overwrite=True to replace it, or another path.")
    marks = (".zgroup", "zarr.json")
    if path.exists() and (not any((path / m).is_file() for m in marks) if is_zarr else not path.is_file()):
        raise FileExistsError(f"{path} exists and is no {path.suffix[1:]}; it is not replaced. Give another path.")
    for parent in path.absolute().parents:
        if parent.exists():
            if not parent.is_dir():
                raise NotADirectoryError(f"{parent} is a file, so {path} cannot be written.")
            break


class PredictionFile:
    """A new h5ad file or zarr folder with the labels of the whole prediction; its matrices grow by rows."""

    def __init__(self, path: Path, *, obs: pd.DataFrame, var: pd.DataFrame) -> None:
        self._obs, self._var = obs, var
        self._root = _open(path, "w")
        self._elements: dict[str, _Growing] = {}
        ad.io.write_elem(self._root, "/", ad.AnnData(obs=obs, var=var))

    def append(self, key: str, cells: np.ndarray | sp.csr_matrix) -> None:
        """Write the next rows of ``"X"`` or ``"layers/<name>"``, as CSR if that is smaller for the first ones."""
        if key not in self._elements:
            self._elements[key] = _Growing(self._root, key, (len(self._obs), len(self._var)))
        self._elements[key].append(cells)

    def finish(self, uns: dict[str, Any]) -> None:
        """Write ``uns`` and close the file."""
        for key, value in uns.items():
            ad.io.write_elem(self._root["uns"], key, value)
        self.close(complete=True)

    def close(self, *, complete: bool = False) -> None:
        """Close the file, if it is open."""
        root, self._root = self._root, None
        if root is None:
            return
        if hasattr(root, "close"):
            root.close()
        elif complete:
            _consolidate(root)


class _Growing:
    """One matrix of the file."""

    def __init__(self, root: Any, key: str, shape: tuple[int, int]) -> None:
        self._root, self._key, self._shape = root, key, shape
        self._sparse: bool | None = None
        self._array: Any = None
        self._n_rows = 0

    def append(self, cells: np.ndarray | sp.csr_matrix) -> None:
        if self._sparse is None:
            self._decide(cells)
        if self._sparse:
            self._append_sparse(cells if sp.issparse(cells) else csr_of(cells))
        else:
            if self._array is None:
                self._array = _new_dense(self._root, self._key, self._shape, cells.dtype)
            self._array[self._n_rows : self._n_rows + cells.shape[0]] = cells
        self._n_rows += cells.shape[0]

    def _decide(self, cells: np.ndarray | sp.csr_matrix) -> None:
        as_dense = self._shape[0] * self._shape[1] * cells.dtype.itemsize / 2**30
        if isinstance(cells, sp.csr_matrix):
            self._sparse = True
            self._verify_space(self._shape[0] * cells.nnz / max(cells.shape[0], 1) * (cells.dtype.itemsize + 4))
            return
        share = _csr_share(cells)
        self._sparse = share < 1
        self._verify_space(as_dense * min(share, 1.0) * 2**30)
        dense, csr = (f"{size * 1024:,.1f} MiB" for size in (as_dense, as_dense * share))
        kind, other = (f"as CSR, about {csr}", f"dense {dense}") if self._sparse else (f"dense, {dense}", f"CSR {csr}")
        logger.info(f"{self._key} is written {kind}; {other} (before compression).")

    def _verify_space(self, n_bytes: float) -> None:
        """Ask for the room of all rows, judged by the first ones; zarr compresses them."""
        is_hdf5 = isinstance(self._root, h5py.Group)
        where = self._root.file.filename if is_hdf5 else str(self._root.store.root)
        verify_space(where, n_bytes if is_hdf5 else n_bytes / 8, f"the prediction ({self._key})")

    def _append_sparse(self, cells: sp.csr_matrix) -> None:
        if self._array is not None:
            self._array.append(cells)
            return
        chunk = max(1024, min(_ENTRIES, cells.nnz))
        options: dict[str, Any] = {"chunks": (chunk,), "indptr_dtype": np.int64}
        if isinstance(self._root, h5py.Group):
            options["fletcher32"] = True  # checksums that every reader of HDF5 compares
        else:
            options["shards"] = None  # a shard that is appended to is written anew each time
        ad.io.write_elem(self._root, self._key, cells, dataset_kwargs=options)
        self._array = ad.io.sparse_dataset(self._root[self._key])


def _open(path: Path, mode: Literal["r", "w"]) -> Any:
    if path.suffix == ".h5ad":
        return h5py.File(path, mode)
    import zarr

    return zarr.open_group(path, mode=mode, **({"zarr_format": ad.settings.zarr_write_format} if mode == "w" else {}))


def _new_dense(root: Any, key: str, shape: tuple[int, int], dtype: np.dtype) -> Any:
    """Create a dense matrix in the on-disk format of AnnData, to be filled."""
    chunks = (max(1, min(_DENSE_BYTES // (shape[1] * np.dtype(dtype).itemsize), shape[0])), shape[1])
    if isinstance(root, h5py.Group):
        array = root.create_dataset(key, shape=shape, dtype=dtype, chunks=chunks, fletcher32=True)
    else:
        array = root.create_array(key, shape=shape, dtype=dtype, chunks=chunks)
    array.attrs["encoding-type"] = "array"
    array.attrs["encoding-version"] = "0.2.0"
    return array


def _consolidate(root: Any) -> None:
    import zarr

    with warnings.catch_warnings():
        # it is written by anndata too, which keeps the same remark from its users
        warnings.filterwarnings("ignore", message=".*[Cc]onsolidated metadata.*")
        zarr.consolidate_metadata(root.store)


@contextmanager
def written_prediction(path: Path, *, obs: pd.DataFrame, var: pd.DataFrame) -> Iterator[PredictionFile]:
    """Yield a file that takes the place of ``path`` when the block ends without an error, and is gone otherwise."""
    with atomic_write(path, folder=path.suffix != ".h5ad") as partial:
        file = PredictionFile(partial, obs=obs, var=var)
        try:
            yield file
        finally:
            file.close()
        if partial.is_dir():
            write_checksums(partial)


def open_prediction(path: Path, *, obs: pd.DataFrame, var: pd.DataFrame, uns: dict[str, Any]) -> ad.AnnData:
    """Return a written prediction as AnnData: the labels that were written in memory, matrices in the file."""
    root = _open(path, "r")
    layers = {name: _on_disk(root["layers"][name]) for name in root["layers"]}
    return ad.AnnData(_on_disk(root["X"]), obs=obs, var=var, uns=uns, layers=layers)


def _on_disk(element: Any) -> Any:
    return ad.io.sparse_dataset(element) if "csr" in element.attrs["encoding-type"] else element


def csr_of(cells_CG: np.ndarray) -> sp.csr_matrix:
    """Return dense cells as CSR with int32 columns and int64 row starts, by as many threads as torch uses."""
    # a few times faster than scipy, which goes through coordinates
    n_cells, n_genes = cells_CG.shape
    indptr = np.zeros(n_cells + 1, dtype=np.int64)
    blocks = [range(i, min(i + _ROWS, n_cells)) for i in range(0, n_cells, _ROWS)]

    def count(rows: range) -> None:
        for row in rows:
            indptr[row + 1] = np.count_nonzero(cells_CG[row])

    def fill(rows: range) -> None:
        for row in rows:
            here = slice(indptr[row], indptr[row + 1])
            # in booleans numpy finds the places without a branch for each number
            columns = np.flatnonzero(cells_CG[row] != 0)
            indices[here] = columns
            cells_CG[row].take(columns, out=data[here], mode="clip")

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(count, blocks))
        np.cumsum(indptr, out=indptr)
        indices, data = np.empty(indptr[-1], dtype=np.int32), np.empty(indptr[-1], dtype=cells_CG.dtype)
        list(pool.map(fill, blocks))
    matrix = sp.csr_matrix((n_cells, n_genes), dtype=cells_CG.dtype)
    # the constructor would look through all integers for the smallest type that holds them
    matrix.data, matrix.indices, matrix.indptr = data, indices, indptr
    return matrix


def _csr_share(cells_CG: np.ndarray) -> float:
    """Return the bytes of cells as CSR over those of the dense cells."""
    n_rows, n_genes = cells_CG.shape
    width = cells_CG.itemsize
    return (np.count_nonzero(cells_CG) * (width + 4) + 8 * n_rows) / (n_rows * n_genes * width)
