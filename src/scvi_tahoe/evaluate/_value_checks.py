"""Checks on single values and on the scale of cells, before anything is computed from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from scvi_tahoe.evaluate._cells import CellTable
from scvi_tahoe.evaluate._check import Check, graded

if TYPE_CHECKING:
    from scvi_tahoe.evaluate._cell_profile import CellProfile

__all__ = [
    "LOG1P_LIMIT",
    "ONE_TOTAL",
    "SCALE_ERROR",
    "SCALE_WARNING",
    "check_integers",
    "check_logarithm",
    "check_range",
    "check_scale",
    "clipped",
]

#: cell-eval's bound for log1p values; ``expm1(15)`` is 3.3 million counts of one gene in one cell
LOG1P_LIMIT = 15.0
#: negative values down to here are rounding and are set to zero
_TINY = -1e-3
#: share of integers among non-zero values beyond which data are counts, or rounded
_INTEGER_SHARE = 0.99
#: predicted over observed median total without a warning, and without an error
SCALE_WARNING = (0.9, 1.1)
SCALE_ERROR = (0.5, 2.0)
#: ratios this near to 1 after undoing a second log, or without undoing any, name the mistake
_NAMED = (0.8, 1.25)
_ASTRONOMIC = 50.0
#: largest spread of totals, over their mean, of cells that were all normalised to one total
ONE_TOTAL = 0.02


def check_range(cells: CellTable, *, role: str) -> Check:
    """Refuse values that cannot be log1p expression: NaN, infinite, negative, huge, or nothing but zeros.

    Parameters
    ----------
    cells
        Cells to look at.
    role
        What they are, for the message.
    """
    values = cells.expression.data if sp.issparse(cells.expression) else cells.expression
    low, high = _extremes(values)
    allowed = f"0 to below {LOG1P_LIMIT:g}"
    name = f"values of the {role}"
    if not np.isfinite(low) or not np.isfinite(high):  # min and max carry NaN through
        bad = "NaN" if np.isnan(low) else "infinite values"
        message = f"the {role} has {bad} in {_where(cells, ~np.isfinite(values))}; every value must be a number."
        return Check(name, "error", float("nan"), allowed, message)
    if low < _TINY:
        message = (
            f"the smallest value of the {role} is {low:.3g} and log1p expression is never negative: this looks like a "
            "cell embedding, a delta or scaled data. Pass expression (output='expression', or the gene decoder's "
            "output)."
        )
        return Check(name, "error", low, allowed, message)
    if high >= LOG1P_LIMIT:
        message = (
            f"the largest value of the {role} is {high:.4g}, in {_where(cells, values >= LOG1P_LIMIT)}: log1p "
            f"expression stays below {LOG1P_LIMIT:g}. Normalise each cell and apply log1p, or drop the outliers."
        )
        return Check(name, "error", high, allowed, message)
    if high == 0:
        return Check(name, "error", high, allowed, f"the {role} is zero everywhere.")
    if low < 0:
        return Check(name, "note", low, allowed, f"values down to {low:.1e} in the {role} were set to zero.")
    return Check(name, "ok", high, allowed)


def check_integers(profile: CellProfile, *, role: str) -> Check:
    """Refuse whole numbers, which cell-eval would take for counts and normalise a second time without a word.

    Parameters
    ----------
    profile
        Profile of the cells.
    role
        What they are, for the message.
    """
    share = profile.integer_fraction
    if np.isnan(share) or share < _INTEGER_SHARE:
        return Check(f"scale of the {role}", "ok", share, f"below {_INTEGER_SHARE:g}")
    message = (
        f"{share:.0%} of the non-zero values of the {role} are whole numbers: counts, or rounded logarithms. Scores "
        "are for log1p of normalised counts; normalise prediction and reference to the same total, then apply log1p."
    )
    return Check(f"scale of the {role}", "error", share, f"below {_INTEGER_SHARE:g}", message)


def check_logarithm(observed: CellProfile) -> Check:
    """Tell a reference that was never logged, or twice, where cells were normalised to one total over its genes.

    With the same mistake on both sides nothing differs between them; but totals are equal on one scale only.

    Parameters
    ----------
    observed
        Profile of the perturbed cells of the reference.
    """
    once, twice, never = (_spread(t) for t in (observed.totals, observed.relogged_totals, observed.raw_totals))
    name, allowed = "logarithm of the reference", "log1p, once"
    if once > ONE_TOTAL and (twice <= ONE_TOTAL or never <= ONE_TOTAL):
        found, where = ("twice", "after two expm1") if twice <= ONE_TOTAL else ("never", "as they are")
        message = (
            f"log1p was applied to the reference {found}: its cells have one total {where}, and not after one expm1. "
            "Scores are for log1p of normalised counts."
        )
        return Check(name, "error", once, allowed, message)
    return Check(name, "ok", once, allowed)


def _spread(totals: np.ndarray) -> float:
    """Standard deviation over mean; NaN where totals are infinite."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        return float(np.std(totals) / np.mean(totals)) if len(totals) > 1 else float("nan")


def check_scale(predicted: CellProfile, observed: CellProfile, *, role: str = "prediction") -> Check:
    """Compare the median total of the cells on both sides, and name the mistake where it can be told.

    Errors of scale are silent elsewhere: normalising to another total, or taking the logarithm twice, changes MAE by up
    to an order of magnitude and leaves DES as it was.

    Parameters
    ----------
    predicted, observed
        Profiles of the perturbed cells of both sides.
    role
        What the first ones are, for the message.
    """
    name = "scale" if role == "prediction" else f"totals of the {role}"
    allowed = f"{SCALE_WARNING[0]:g} to {SCALE_WARNING[1]:g}"
    truth = float(np.median(observed.totals))
    ratio = float(np.median(predicted.totals)) / truth
    twice = float(np.median(predicted.relogged_totals)) / truth
    never = float(np.median(predicted.raw_totals)) / truth
    if ratio < _NAMED[0] and _NAMED[0] <= twice <= _NAMED[1]:
        message = f"log1p was applied twice to the {role}: undoing it once more gives the totals of the reference."
        return Check(name, "error", ratio, allowed, message)
    # expm1 of values that are no logarithms is astronomic, not merely too large
    if not ratio < _ASTRONOMIC and _NAMED[0] <= never <= _NAMED[1]:
        message = f"log1p was not applied to the {role}: its plain sums are the totals of the reference."
        return Check(name, "error", ratio, allowed, message)
    message = (
        f"the median cell of the {role} sums to {np.median(predicted.totals):.4g} (after expm1), that of the "
        f"reference to {truth:.4g}: another normalisation total or another transformation. Bring both to the same one."
    )
    if np.isnan(ratio):
        return Check(name, "error", ratio, allowed, message)
    return graded(name, ratio, message=message, warn=SCALE_WARNING, error=SCALE_ERROR)


def clipped(cells: CellTable) -> CellTable:
    """Return the cells with tiny negative values set to zero; the cells themselves where there are none."""
    matrix = cells.expression
    values = matrix.data if sp.issparse(matrix) else matrix
    if not values.size or values.min() >= 0:
        return cells
    if sp.issparse(matrix):
        matrix = matrix.copy()
        np.maximum(matrix.data, 0, out=matrix.data)
        matrix.eliminate_zeros()
    else:
        matrix = np.maximum(matrix, 0)
    return CellTable(matrix, cells.perturbation, cells.context, cells.genes, cells.names)


def _extremes(values: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value, NaN if there is one, in one pass: both of a block while the cache holds it."""
    if not values.size:
        return 0.0, 0.0
    n_blocks = max(1, min(len(values), values.nbytes >> 20))
    ends = np.array([(block.min(), block.max()) for block in np.array_split(values, n_blocks)])
    return float(ends[:, 0].min()), float(ends[:, 1].max())


def _where(cells: CellTable, bad: np.ndarray) -> str:
    """First offending cell and gene, in words; ``bad`` has the shape of the stored values."""
    if sp.issparse(cells.expression):
        position = int(np.flatnonzero(bad)[0])
        row = int(np.searchsorted(cells.expression.indptr, position, side="right")) - 1
        column = int(cells.expression.indices[position])
    else:
        row, column = (int(i) for i in np.argwhere(bad)[0])
    return f"cell {str(cells.names[row])!r}, gene {str(cells.genes[column])!r} (one of {int(bad.sum())})"
