"""Rows of a matrix that stays where it is: contexts and halves of large tables, without copies of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

__all__ = ["SelectedRows"]


class SelectedRows:
    """Rows of a dense matrix in any order and number, copied only when they are asked for.

    Indexing the rows and :func:`numpy.asarray` give arrays, equal to those of a copy; everything else an array can do
    is left out, so that nobody copies all rows without saying so.

    Parameters
    ----------
    matrix
        Dense matrix or other selection, ``[C, G]``.
    rows
        Rows of it, ``[R]``.
    """

    def __init__(self, matrix: NDArray[np.floating] | SelectedRows, rows: NDArray[np.intp]) -> None:
        self._rows: NDArray[np.intp] = matrix._rows[rows] if isinstance(matrix, SelectedRows) else rows
        self._matrix: NDArray[np.floating] = matrix._matrix if isinstance(matrix, SelectedRows) else matrix

    @property
    def shape(self) -> tuple[int, int]:
        """Number of selected rows and of columns."""
        return len(self._rows), self._matrix.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self._matrix.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: slice | NDArray[np.intp]) -> NDArray[np.floating]:
        rows = self._rows[key]
        if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
            return self._matrix[rows[0] : rows[0] + len(rows)]  # a slice copies nothing
        return self._matrix[rows]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            msg = "Selected rows lie apart in memory: an array of them is a copy."
            raise ValueError(msg)
        return self._matrix[self._rows].astype(self.dtype if dtype is None else dtype, copy=False)
