"""Raw counts: their checks, and the log1p expression that other scores take.

Shapes: **C** cells.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from scvi_tahoe.evaluate._checks import Check, check_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable

#: largest total of a cell that the challenge of 2026 takes
MAX_TOTAL = 1_000_000


def cell_totals(cells: CellTable) -> NDArray[np.float64]:
    """Sum of each cell, ``[C]``."""
    return np.asarray(cells.expression.sum(axis=1, dtype=np.float64)).ravel()


def check_counts(cells: CellTable, *, role: str) -> Check:
    """Refuse values that are no counts, empty cells, and cells larger than the challenge of 2026 takes."""
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
    """Compare the median totals; a shallower prediction has noisier means and fewer expressed genes."""
    medians = [float(np.median(cell_totals(side))) for side in (predicted, observed)]
    message = (
        f"the median predicted cell has {medians[0]:,.0f} counts, the median observed one {medians[1]:,.0f}; predict "
        "counts at the library sizes of real cells."
    )
    return check_interval("depth", medians[0] / medians[1], message=message, warn=(0.8, 1.25), error=(0.2, 5.0))


def log1p_expression(cells: CellTable, *, total: float) -> CellTable:
    """Normalise every cell to one total, the same for both sides unlike in cell-eval, and take log1p."""
    factor = total / np.maximum(cell_totals(cells), 1)
    if sp.issparse(cells.expression):
        matrix = sp.csr_matrix(sp.diags(factor) @ cells.expression, dtype=np.float32)
        matrix.data = np.log1p(matrix.data)
    else:
        matrix = np.log1p(cells.expression * factor[:, None]).astype(np.float32)
    return replace(cells, expression=matrix)
