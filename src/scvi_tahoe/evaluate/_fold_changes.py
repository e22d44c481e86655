"""Fold changes of geometric means as pdex takes them, to the last bit, for tests that run elsewhere than in pdex."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeAlias

    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable

    _Vector: TypeAlias = NDArray[np.floating[Any]]

__all__ = ["fold_changes"]


def fold_changes(
    cells: CellTable, targets: Sequence[str], *, control: str, num_threads: int = 1
) -> NDArray[np.float64]:
    """Log2 fold change of every gene in the given perturbations against the control cells of the same table.

    Parameters
    ----------
    cells
        Cells of one context, controls included, log1p expression.
    targets
        Perturbations, **P** of them.
    control
        Label of the control cells.
    num_threads
        Perturbations worked on at once; results do not depend on it.

    Returns
    -------
    ``[P, G]``: infinite where only one side has the gene, 0 where neither has.

    Notes
    -----
    Every step is in the precision pdex takes it in (means and ``expm1`` in that of the matrix, ratios in float64) and
    in its compiled form: numpy's own ``expm1`` differs from it in the last bit on some processors. Genes that are
    close would otherwise swap ranks between backends.
    """
    (context,) = cells.contexts
    mean_of_rows, expm1, log2_ratio = _compiled()
    matrix = cells.expression
    is_csr = isinstance(matrix, sp.csr_matrix | sp.csr_array) and matrix.dtype.kind == "f"

    def geometric_mean(label: str) -> _Vector:
        rows = cells.rows[context, label]
        if not is_csr:
            # of a copy, as in pdex: the order of a sum depends on how the matrix lies in memory
            return expm1(np.asarray(matrix[rows].mean(axis=0)).ravel())
        # what scipy does, without its copies
        share = matrix.dtype.type(1.0 / len(rows))
        return expm1(mean_of_rows(matrix.data, matrix.indices, matrix.indptr, rows, cells.n_genes, share))

    reference = geometric_mean(control)
    with ThreadPoolExecutor(max_workers=max(num_threads, 1)) as pool:  # compiled code lets go of the interpreter
        changes = pool.map(lambda label: log2_ratio(geometric_mean(label), reference), targets)
        return np.stack([*changes]) if len(targets) else np.empty((0, cells.n_genes))


@lru_cache(maxsize=1)
def _compiled() -> tuple[Callable[..., _Vector], ...]:
    import numba

    @numba.njit(nogil=True)
    def mean_of_rows(values, columns, ends, rows, n_columns, share):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        result = np.zeros(n_columns, values.dtype)
        for row in rows:
            for i in range(ends[row], ends[row + 1]):
                result[columns[i]] += values[i] * share
        return result

    @numba.njit(nogil=True)
    def expm1(values):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        result = np.empty_like(values)
        for i in range(len(values)):
            result[i] = np.expm1(values[i])
        return result

    @numba.njit(nogil=True, error_model="numpy")
    def log2_ratio(target, reference):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        result = np.empty(len(target), dtype=np.float64)
        for i in range(len(target)):
            ratio = np.log2(np.float64(target[i]) / np.float64(reference[i]))
            result[i] = 0.0 if np.isnan(ratio) else ratio
        return result

    return mean_of_rows, expm1, log2_ratio
