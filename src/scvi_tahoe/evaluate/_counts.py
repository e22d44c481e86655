"""Evaluation from raw counts: their checks, and the log1p expression that the other scores take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from scvi_tahoe.evaluate._cells import CellTable
from scvi_tahoe.evaluate._check import Check, graded

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["MAX_TOTAL", "cell_totals", "check_counts", "check_depth", "log1p_expression"]

#: largest total of a cell that the challenge of 2026 takes
MAX_TOTAL = 1_000_000


def cell_totals(cells: CellTable) -> NDArray[np.float64]:
    """Sum of each cell, ``[C]``."""
    return np.asarray(cells.expression.sum(axis=1, dtype=np.float64)).ravel()


def check_counts(cells: CellTable, *, role: str) -> Check:
    """Refuse values that are no counts, empty cells, and cells larger than the challenge takes.

    Parameters
    ----------
    cells
        Cells with raw counts.
    role
        What they are, for the message.
    """
    values = cells.expression.data if sp.issparse(cells.expression) else cells.expression
    name, allowed = f"counts of the {role}", f"whole numbers, totals of 1 to {MAX_TOTAL:,}"
    if values.size and not np.isfinite(values).all():
        return Check(name, "error", float("nan"), allowed, f"the {role} has NaN or infinite values.")
    if values.size and (values.min() < 0 or (values != np.round(values)).any()):
        message = (
            f"the {role} holds values that are no counts; the scores of 2026 are computed from raw counts. Predict "
            "them with output='counts', and name the layer with the reference's counts with layer=..."
        )
        return Check(name, "error", float(values.min()), allowed, message)
    totals = cell_totals(cells)
    wrong = int(((totals < 1) | (totals > MAX_TOTAL)).sum())
    message = f"{wrong} cells of the {role} have no count at all, or more than {MAX_TOTAL:,}."
    return Check(name, "error" if wrong else "ok", wrong, allowed, message if wrong else "")


def check_depth(predicted: CellTable, observed: CellTable) -> Check:
    """Compare the median totals of both sides; a shallower prediction has noisier means and fewer expressed genes.

    Parameters
    ----------
    predicted, observed
        Cells with raw counts.
    """
    medians = [float(np.median(cell_totals(side))) for side in (predicted, observed)]
    message = (
        f"the median predicted cell has {medians[0]:,.0f} counts, the median observed one {medians[1]:,.0f}; predict "
        "counts at the library sizes of real cells."
    )
    return graded("depth", medians[0] / medians[1], message=message, warn=(0.8, 1.25), error=(0.2, 5.0))


def log1p_expression(tables: Iterable[CellTable], *, total: float) -> list[CellTable]:
    """Normalise every cell to one total and take log1p, so that both sides are on one scale.

    Parameters
    ----------
    tables
        Cells with raw counts; a cell without counts stays empty.
    total
        Sum of a cell afterwards; the same for all tables, unlike in cell-eval, which takes each file's own median.
    """
    return [_log1p(cells, total) for cells in tables]


def _log1p(cells: CellTable, total: float) -> CellTable:
    factor = total / np.maximum(cell_totals(cells), 1)
    if sp.issparse(cells.expression):
        matrix = sp.csr_matrix(sp.diags(factor) @ cells.expression, dtype=np.float32)
        matrix.data = np.log1p(matrix.data)
    else:
        matrix = np.log1p(cells.expression * factor[:, None]).astype(np.float32)
    return CellTable(matrix, cells.perturbation, cells.context, cells.genes, cells.names)
