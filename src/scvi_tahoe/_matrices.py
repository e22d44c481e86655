"""Matrices from outside: the type of their numbers and the structure of sparse ones, verified once in linear time.

Compiled code of scipy, torch and numba reads sparse matrices without looking at their indices: one that points outside
ends the process, or makes numbers out of foreign memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from scvi_tahoe._memory import verify_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Numbers above it overflow where a network squares them in 32 bits.
LARGEST = 1e12
_BLOCK = 4096  # rows read at once from a file


def trusted_matrix(matrix: Any, where: str, shape: tuple[int, int] | None = None) -> Any:
    """Return a matrix of cells as everything inside takes it, after verifying type and structure.

    A matrix that is as it must be is returned itself, never copied. Sparse ones in other formats become CSR; entries
    that are out of order or occur twice are put in order, in a copy. One in a file stays there.

    Parameters
    ----------
    matrix
        numpy, any scipy sparse matrix or array, a DataFrame, a dask array (which is computed), or a matrix of backed
        AnnData.
    where
        Its name in messages, e.g. ``"adata.X"``.
    shape
        Numbers of cells and features that there are names for.

    Raises
    ------
    ValueError
        If it holds something else than real numbers, or its indices do not fit its shape.
    """
    matrix = _unwrapped(matrix, where)
    dtype: Any = getattr(matrix, "dtype", None)
    if not hasattr(dtype, "kind") or len(getattr(matrix, "shape", ())) != 2:
        found = f"an array of shape {matrix.shape}" if hasattr(dtype, "kind") else type(matrix).__name__
        raise ValueError(f"{where} is {found}; a matrix of cells x features is needed.")
    if shape is not None and tuple(matrix.shape) != shape:
        raise ValueError(f"{where} has shape {tuple(matrix.shape)}, and there are names for {shape} cells x features.")
    if dtype.kind not in "fiub":
        raise ValueError(f"{where} holds values of type {dtype}; real numbers are needed, e.g. float32.")
    if dtype.kind == "f" and isinstance(matrix, np.ndarray) and not (dtype.isnative and dtype.itemsize in (4, 8)):
        matrix = matrix.astype(np.float32 if dtype.itemsize <= 4 else np.float64)  # which compiled code takes
    if not sp.issparse(matrix):
        if hasattr(matrix, "group"):  # sparse, in a file
            _verify_indptr(np.asarray(matrix.group["indptr"][:]), matrix.group["indices"].shape[0], where)
        return matrix
    if matrix.format not in ("csr", "csc"):
        _verify_places(matrix, where)
        matrix = matrix.tocsr()
    if isinstance(matrix, sp.sparray):
        kind = sp.csr_matrix if matrix.format == "csr" else sp.csc_matrix
        matrix = kind((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape, copy=False)
    return verified_sparse(matrix, where)


def _verify_places(matrix: Any, where: str) -> None:
    """Refuse a sparse matrix in another format with entries outside, which its conversion would write to memory."""
    n_rows, n_columns = matrix.shape
    if matrix.format == "bsr":
        n_rows, n_columns = (n // size for n, size in zip(matrix.shape, matrix.blocksize, strict=True))
        _verify_indptr(matrix.indptr, len(matrix.indices), where)
        places = [(matrix.indices, n_columns)] if len(matrix.indptr) == n_rows + 1 else [(matrix.indptr, 0)]
    elif matrix.format == "lil":
        places = [(np.fromiter((i for row in matrix.rows for i in row), np.int64), n_columns)]
    elif matrix.format == "dok":
        places = list(zip(np.array(list(matrix.keys()), np.int64).reshape(-1, 2).T, matrix.shape, strict=True))
    else:
        places = [(matrix.row, n_rows), (matrix.col, n_columns)] if matrix.format == "coo" else []
    if any(place.min(initial=0) < 0 or place.max(initial=-1) >= size for place, size in places):
        raise ValueError(f"{where} is damaged: it has entries outside of its {matrix.shape}; make or read it again.")


def verify_fits(matrix: Any, what: str) -> None:
    """Refuse a matrix in a file that does not fit into main memory, before it is read.

    Parameters
    ----------
    matrix
        Matrix of cells x genes; anything that is in memory already passes.
    what
        Its rows, for the message, e.g. ``"cells of the prediction"``.

    Raises
    ------
    ValueError
        With the estimate, and the largest number of rows that fits.
    """
    if isinstance(matrix, np.ndarray) or sp.issparse(matrix) or not isinstance(getattr(matrix, "dtype", 0), np.dtype):
        return
    if hasattr(matrix, "group"):  # CSR or CSC in a file
        n_bytes = sum(matrix.group[name].shape[0] * matrix.group[name].dtype.itemsize for name in ("data", "indices"))
    else:
        n_bytes = int(np.prod(matrix.shape)) * np.dtype(matrix.dtype).itemsize
    n = max(matrix.shape[0], 1)
    verify_memory(
        what, n, n_bytes / n, "Read only the cells and genes that are needed: adata[cells, genes].to_memory()."
    )


def _unwrapped(matrix: Any, where: str) -> Any:
    """Return the numbers of a dask array, a DataFrame, or an array of a kind of its own."""
    if hasattr(matrix, "dask"):
        matrix = matrix.compute()
    elif hasattr(matrix, "to_numpy"):
        matrix = matrix.to_numpy()
    if isinstance(matrix, np.ma.MaskedArray) and np.ma.is_masked(matrix):
        raise ValueError(f"{where} is a masked array with {int(matrix.mask.sum())} values missing; fill them first.")
    return np.asarray(matrix) if type(matrix) in (np.matrix, np.ma.MaskedArray) else matrix


def verified_sparse(matrix: Any, where: str) -> Any:
    """Return CSR or CSC whose indices are in range, in order and each once: the matrix itself, or a repaired copy."""
    n_major, n_minor = matrix.shape if matrix.format == "csr" else matrix.shape[::-1]
    indptr, indices = matrix.indptr, matrix.indices
    flat = all(np.ndim(part) == 1 for part in (matrix.data, indices, indptr))
    if not flat or {indices.dtype.kind, indptr.dtype.kind} != {"i"}:
        raise ValueError(f"{where} is damaged: its indices are {indices.dtype} and {indptr.dtype}, not whole numbers.")
    if len(indptr) != n_major + 1 or len(matrix.data) < len(indices):
        raise ValueError(
            f"{where} is damaged: {len(indptr):,} starts of rows for {n_major:,} rows, and {len(matrix.data):,} values "
            f"for {len(indices):,} indices."
        )
    _verify_indptr(indptr, len(indices), where)
    # made anew, as the flags of a matrix that was changed by hand are those of before
    fresh = type(matrix)((matrix.data, indices, indptr), shape=matrix.shape, copy=False)
    in_order = bool(fresh.has_canonical_format)
    used = indptr[:-1] < indptr[1:]
    # where a row is in order, its first and last index tell
    ends = (indices[indptr[:-1][used]], indices[indptr[1:][used] - 1]) if in_order else (indices, indices)
    smallest, largest = ends[0].min(initial=0), ends[1].max(initial=-1)
    if smallest < 0 or largest >= n_minor:
        bad = smallest if smallest < 0 else largest
        axis = "column" if matrix.format == "csr" else "row"
        raise ValueError(
            f"{where} is damaged: it has an entry in {axis} {bad:,} of {n_minor:,}; make or read it again."
        )
    if in_order:
        return matrix
    fresh = fresh.copy()
    fresh.sum_duplicates()
    return fresh


def _verify_indptr(indptr: np.ndarray, n_entries: int, where: str) -> None:
    if not len(indptr) or indptr[0] != 0 or indptr[-1] > n_entries or (indptr[1:] < indptr[:-1]).any():
        raise ValueError(
            f"{where} is damaged: the starts of its rows do not ascend from 0 to its {n_entries:,} entries; make or "
            "read it again."
        )


def blocks_of(matrix: Any, where: str) -> Iterator[Any]:
    """Yield a trusted matrix whole, or in blocks of rows from its file, each verified as it is read."""
    if isinstance(matrix, np.ndarray) or sp.issparse(matrix):
        yield matrix
        return
    for start in range(0, matrix.shape[0], _BLOCK):
        block = matrix[start : start + _BLOCK]
        yield verified_sparse(block, where) if sp.issparse(block) else block


def verify_magnitude(values: np.ndarray, where: str) -> None:
    """Refuse NaN, infinite values, and numbers whose squares overflow."""
    if not values.size or values.dtype.kind not in "fc":
        return
    # minimum and maximum carry NaN through, without a temporary array
    smallest, largest = float(values.min()), float(values.max())
    if not (np.isfinite(smallest) and np.isfinite(largest)):
        raise ValueError(f"{where} holds NaN or infinite values; remove or impute them first.")
    if max(-smallest, largest) > LARGEST:
        raise ValueError(f"{where} holds values up to {max(-smallest, largest):.3g}, above {LARGEST:g}; rescale them.")
