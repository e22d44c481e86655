"""A prediction on its way into a file, chunk after chunk; and the file as an AnnData whose matrices stay there."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import scipy.sparse as sp

from scvi_tahoe.files import atomic_write
from scvi_tahoe.prediction._sparse_rows import csr_of, share_of_bytes

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    import pandas as pd

__all__ = ["PredictionFile", "prediction_path", "written_prediction"]

logger = logging.getLogger(__name__)

_SUFFIXES = (".h5ad", ".zarr")
_ENTRIES = 2**20  # of a chunk of a sparse array in a file
_DENSE_BYTES = 2**23  # of a chunk of dense rows in a zarr folder


def prediction_path(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Where a prediction goes, verified.

    Parameters
    ----------
    path
        Ends in ``.h5ad`` or ``.zarr``.
    overwrite
        Replace what is there.

    Raises
    ------
    ValueError
        If the ending is another one.
    FileExistsError
        If something is there that may not be replaced.
    NotADirectoryError
        If the parent is a file.
    """
    path = Path(path)
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
    return path


class PredictionFile:
    """An h5ad file or zarr folder that grows by the rows of its matrices.

    Parameters
    ----------
    path
        New.
    obs, var
        Of the whole prediction.
    """

    def __init__(self, path: Path, *, obs: pd.DataFrame, var: pd.DataFrame) -> None:
        self._obs, self._var = obs, var
        self._root = _new_root(path)
        self._elements: dict[str, _Growing] = {}
        ad.io.write_elem(self._root, "/", ad.AnnData(obs=obs, var=var))

    def append(self, key: str, cells: np.ndarray | sp.csr_matrix) -> None:
        """Write the next rows of a matrix.

        Parameters
        ----------
        key
            ``"X"``, or ``"layers/<name>"``.
        cells
            Rows. The first ones decide how dense rows are written: as CSR where that is smaller.
        """
        if key not in self._elements:
            self._elements[key] = _Growing(self._root, key, (len(self._obs), len(self._var)))
        self._elements[key].append(cells)

    def finish(self, uns: dict[str, Any]) -> None:
        """Write ``uns`` and close the file."""
        for key, value in uns.items():
            ad.io.write_elem(self._root["uns"], key, value)
        self.close(complete=True)

    def close(self, *, complete: bool = False) -> None:
        """Let go of the file; a second time does nothing."""
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
        if sp.issparse(cells):
            self._sparse = True
            return
        share = share_of_bytes(cells)
        self._sparse = share < 1
        as_dense = self._shape[0] * self._shape[1] * cells.itemsize / 2**30
        kind = f"as CSR, about {as_dense * share:.2f} GiB" if self._sparse else f"dense, {as_dense:.2f} GiB"
        other = f"dense rows would take {as_dense:.2f}" if self._sparse else f"CSR would take {as_dense * share:.2f}"
        logger.info(f"{self._key} is written {kind}; {other} (of {cells.shape[0]:,} cells, before compression).")

    def _append_sparse(self, cells: sp.csr_matrix) -> None:
        if self._array is not None:
            self._array.append(cells)
            return
        chunk = max(1024, min(_ENTRIES, cells.nnz))
        options: dict[str, Any] = {"chunks": (chunk,), "indptr_dtype": np.int64}
        if not _is_h5(self._root):
            options["shards"] = None  # a shard that is appended to is written anew each time
        ad.io.write_elem(self._root, self._key, cells, dataset_kwargs=options)
        self._array = ad.io.sparse_dataset(self._root[self._key])


def _is_h5(root: Any) -> bool:
    import h5py

    return isinstance(root, h5py.Group)


def _new_root(path: Path) -> Any:
    if path.suffix == ".h5ad":
        import h5py

        return h5py.File(path, "w")
    import zarr

    return zarr.open_group(path, mode="w", zarr_format=ad.settings.zarr_write_format)


def _new_dense(root: Any, key: str, shape: tuple[int, int], dtype: np.dtype) -> Any:
    """A dense matrix in the on-disk format of AnnData, to be filled."""
    if _is_h5(root):
        array = root.create_dataset(key, shape=shape, dtype=dtype)
    else:
        rows = max(1, _DENSE_BYTES // (shape[1] * np.dtype(dtype).itemsize))
        array = root.create_array(key, shape=shape, dtype=dtype, chunks=(min(rows, shape[0]), shape[1]))
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
    """A file beside ``path`` that takes its place when the block ends without an error, and is gone otherwise.

    Parameters
    ----------
    path
        Of :func:`prediction_path`.
    obs, var
        Of the whole prediction.
    """
    with atomic_write(path) as partial:
        file = PredictionFile(partial, obs=obs, var=var)
        try:
            yield file
        finally:
            file.close()


def open_prediction(path: Path, *, obs: pd.DataFrame, var: pd.DataFrame, uns: dict[str, Any]) -> ad.AnnData:
    """AnnData of a written prediction: labels in memory, matrices in the file.

    Parameters
    ----------
    path
        Of the file.
    obs, var, uns
        What was written there, to save reading it.
    """
    if path.suffix == ".h5ad":
        import h5py

        root: Any = h5py.File(path, "r")
    else:
        import zarr

        root = zarr.open_group(path, mode="r")
    layers = {name: _on_disk(root["layers"][name]) for name in root["layers"]}
    return ad.AnnData(_on_disk(root["X"]), obs=obs, var=var, uns=uns, layers=layers)


def _on_disk(element: Any) -> Any:
    return ad.io.sparse_dataset(element) if "csr" in element.attrs["encoding-type"] else element
