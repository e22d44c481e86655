"""CSR from dense cells, a few times faster than scipy, whose way leads over coordinates."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.sparse as sp
import torch

__all__ = ["csr_of", "share_of_bytes"]

_ROWS = 256  # rows that a thread takes at once


def csr_of(cells_CG: np.ndarray) -> sp.csr_matrix:
    """The cells as CSR with int32 columns and int64 places, by as many threads as torch uses.

    Parameters
    ----------
    cells_CG
        Dense.
    """
    n_cells, n_genes = cells_CG.shape
    indptr = np.zeros(n_cells + 1, dtype=np.int64)
    blocks = [range(i, min(i + _ROWS, n_cells)) for i in range(0, n_cells, _ROWS)]

    def count(rows: range) -> None:
        for row in rows:
            indptr[row + 1] = np.count_nonzero(cells_CG[row])

    def fill(rows: range) -> None:
        for row in rows:
            here = slice(indptr[row], indptr[row + 1])
            # of booleans numpy finds the places without a branch a number
            columns = np.flatnonzero(cells_CG[row] != 0)
            indices[here] = columns
            cells_CG[row].take(columns, out=data[here], mode="clip")

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(count, blocks))
        np.cumsum(indptr, out=indptr)
        indices, data = np.empty(indptr[-1], dtype=np.int32), np.empty(indptr[-1], dtype=cells_CG.dtype)
        list(pool.map(fill, blocks))
    matrix = sp.csr_matrix((n_cells, n_genes), dtype=cells_CG.dtype)
    # the constructor would look for the smallest integers that do, in all of them
    matrix.data, matrix.indices, matrix.indptr = data, indices, indptr
    return matrix


def share_of_bytes(cells_CG: np.ndarray) -> float:
    """Bytes of the cells as CSR over those of the dense cells."""
    n_rows, n_genes = cells_CG.shape
    width = cells_CG.itemsize
    return (np.count_nonzero(cells_CG) * (width + 4) + 8 * n_rows) / (n_rows * n_genes * width)
