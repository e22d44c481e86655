"""Totals and zeros of single cells on both sides: the picture of a mismatch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.evaluate._cells import dense

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable

__all__ = ["CellProfile", "cell_profile", "profiles_of_contexts"]

#: cells looked at on each side: enough for a median, few enough for a tenth of a second at 18,000 genes
_MAX_CELLS = 300
#: and in each of many contexts at least as many
_MIN_CELLS = 60


@dataclass(frozen=True)
class CellProfile:
    """Statistics of a sample of cells.

    Attributes
    ----------
    totals
        Sum of ``expm1`` over the genes of each cell, ``[cells]``: its library size, if the values are log1p.
    relogged_totals
        The same with ``expm1`` applied twice: the library size if the values were logged twice.
    raw_totals
        Sum of the values as they are: the library size if the values were never logged.
    zero_fraction
        Share of zeros in each cell.
    integer_fraction
        Share of integers among the non-zero values of all cells; NaN if there are none.
    """

    totals: NDArray[np.float64]
    relogged_totals: NDArray[np.float64]
    raw_totals: NDArray[np.float64]
    zero_fraction: NDArray[np.float64]
    integer_fraction: float


def profiles_of_contexts(cells: CellTable, *, without: str) -> dict[str, CellProfile]:
    """Profile the cells of every context, 300 in all, but at least 60 of each; contexts of controls are left out.

    Parameters
    ----------
    cells
        Cells of one or several contexts.
    without
        Label of cells to leave out (controls).
    """
    perturbed = cells.perturbation != without
    contexts = [str(context) for context in np.unique(cells.context[perturbed])]
    most = max(_MAX_CELLS // max(len(contexts), 1), _MIN_CELLS)
    return {c: _profile(cells, np.flatnonzero(perturbed & (cells.context == c)), most) for c in contexts}


def cell_profile(cells: CellTable) -> CellProfile:
    """Profile up to 300 randomly chosen cells.

    Parameters
    ----------
    cells
        Cells with at least one row.
    """
    return _profile(cells, np.arange(cells.n_cells), _MAX_CELLS)


def _profile(cells: CellTable, rows: NDArray[np.intp], most: int) -> CellProfile:
    """Profile at most as many of the given cells, always the same ones."""
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
    values = dense(cells.expression[rows])
    positive = values[values != 0]
    with np.errstate(over="ignore", invalid="ignore"):  # values that are no logarithms overflow, which is the finding
        linear, twice = np.zeros_like(values), np.zeros_like(values)
        np.expm1(values, out=linear, where=values != 0)  # most are zero, and stay it
        np.expm1(linear, out=twice, where=values != 0)
        totals, relogged = linear.sum(axis=1, dtype=np.float64), twice.sum(axis=1, dtype=np.float64)
    return CellProfile(
        totals=totals,
        relogged_totals=relogged,
        raw_totals=values.sum(axis=1, dtype=np.float64),
        zero_fraction=1 - np.count_nonzero(values, axis=1) / values.shape[1],
        integer_fraction=float((positive == np.round(positive)).mean()) if len(positive) else float("nan"),
    )
