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
    expm1, log2_ratio = _compiled()

    def geometric_mean(label: str) -> _Vector:
        rows = _rows(cells.expression, cells.rows[context, label])
        return expm1(np.asarray(rows.mean(axis=0)).ravel())

    reference = geometric_mean(control)
    with ThreadPoolExecutor(max_workers=max(num_threads, 1)) as pool:  # scipy and numpy let go of the interpreter
        changes = pool.map(lambda label: log2_ratio(geometric_mean(label), reference), targets)
        return np.stack([*changes]) if len(targets) else np.empty((0, cells.n_genes))


def _rows(matrix: Any, rows: NDArray[np.intp]) -> Any:
    """Rows of a matrix; those of a CSR matrix that follow each other are not copied.

    Of any other matrix a copy, as in pdex: the order of a sum depends on how the matrix lies in memory.
    """
    follow = len(rows) > 0 and rows[-1] - rows[0] == len(rows) - 1 and bool((np.diff(rows) == 1).all())
    if not (follow and isinstance(matrix, sp.csr_matrix | sp.csr_array)):
        return matrix[rows]
    ends = matrix.indptr[rows[0] : rows[-1] + 2]
    values = slice(ends[0], ends[-1])
    parts = (matrix.data[values], matrix.indices[values], ends - ends[0])
    return type(matrix)(parts, shape=(len(rows), matrix.shape[1]), copy=False)


@lru_cache(maxsize=1)
def _compiled() -> tuple[Callable[[_Vector], _Vector], Callable[[_Vector, _Vector], NDArray[np.float64]]]:
    import numba

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

    return expm1, log2_ratio
