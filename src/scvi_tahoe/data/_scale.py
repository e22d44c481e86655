"""Which scale are these values on? Measured from the values, not guessed from their size.

Counts of one cell, divided by their size factor, are integer multiples of the smallest one. So undo each candidate
transformation, divide every cell by its smallest non-zero value, and see under which candidate the ratios are whole
numbers. This works on any subset of genes and with any normalisation target, and tells ``log1p`` from a double log.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from scvi_tahoe._constants import LOG1P_LIMIT
from scvi_tahoe.data._disk_store import dense_rows

if TYPE_CHECKING:
    from collections.abc import Callable

Scale = Literal["counts", "normalized", "log1p", "log1p_twice", "log2p1", "unknown"]

_UNDO: dict[Scale, Callable[[np.ndarray], np.ndarray]] = {
    "normalized": lambda x: x,
    "log1p": np.expm1,
    "log1p_twice": lambda x: np.expm1(np.expm1(x)),
    "log2p1": lambda x: np.exp2(x) - 1,
}
_TOLERANCE = 2e-3  # relative; float16 storage of log1p values stays within it
_CELLS = 256
_MIN_RATIOS = 30


@dataclass(frozen=True)
class ScaleReport:
    """What the values of a screen look like.

    Attributes
    ----------
    scale
        The transformation under which a cell's values are multiples of one unit; ``"unknown"`` where none is
        (imputed, scaled or corrected values) or where too few distinct values exist to tell.
    integer_fraction
        For each candidate, the fraction of ratios that are whole numbers.
    smallest, largest
        Range of the values looked at.
    keeps_depth
        Whether they are log1p of whole counts: cells were not normalised to one total.
    """

    scale: Scale
    integer_fraction: dict[Scale, float]
    smallest: float
    largest: float
    keeps_depth: bool = False


def _whole_ratio_fraction(values_CG: np.ndarray, undo: Callable[[np.ndarray], np.ndarray]) -> float:
    """Fraction of ratios above 1 to a cell's smallest value that are whole numbers (nan: too few to tell)."""
    with np.errstate(over="ignore", invalid="ignore"):
        unit = undo(values_CG)
    unit[~np.isfinite(unit) | (values_CG == 0)] = np.nan
    smallest = np.nanmin(unit, axis=1, initial=np.inf, keepdims=True)
    ratio = unit / smallest
    ratio = ratio[np.isfinite(ratio) & (ratio > 1 + 5 * _TOLERANCE) & (ratio < 0.05 / _TOLERANCE)]
    if ratio.size < _MIN_RATIOS:
        return float("nan")
    return float(np.mean(np.abs(ratio - np.round(ratio)) <= _TOLERANCE * ratio))


def infer_scale(matrix: object, *, seed: int = 0) -> ScaleReport:
    """Measure the scale of expression values, dense or sparse, in memory or backed, from up to 256 cells."""
    n_cells = matrix.shape[0]  # type: ignore[attr-defined]
    rows = np.sort(np.random.default_rng(seed).choice(n_cells, min(_CELLS, n_cells), replace=False))
    values = dense_rows(matrix, rows, np.float64)
    smallest, largest = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))
    nonzero = values[values != 0]
    if nonzero.size and smallest >= 0 and np.all(nonzero == np.round(nonzero)):
        return ScaleReport("counts", {}, smallest, largest)
    fractions = {scale: _whole_ratio_fraction(values, undo) for scale, undo in _UNDO.items()}
    known = {scale: f for scale, f in fractions.items() if np.isfinite(f)}
    best: Scale = max(known, key=lambda s: known[s]) if known else "unknown"  # type: ignore[assignment]
    if best != "unknown" and known[best] < 0.95:
        best = "unknown"
    return ScaleReport(best, fractions, smallest, largest, keeps_depth=best == "log1p" and _whole(np.expm1(nonzero)))


def _whole(values: np.ndarray) -> bool:
    return bool(np.all(np.abs(values - np.round(values)) <= _TOLERANCE * np.maximum(values, 0.5)))


_REMEDY = {
    "counts": "raw counts; run sc.pp.normalize_total(adata) and sc.pp.log1p(adata) first",
    "normalized": "normalised counts without a logarithm; run sc.pp.log1p(adata) first",
    "log1p_twice": "values on which log1p ran twice; undo one of them, X = expm1(X)",
    "log2p1": "log2(1 + x) of normalised counts; multiply them by log(2) to get log1p",
}


def verify_log1p(matrix: object, where: str) -> ScaleReport:
    """Refuse expression that is not log1p of normalised counts, and warn of counts that were not normalised.

    ``where`` names the matrix in messages, e.g. ``"adata.X"``. The scale of the report is ``"log1p"`` or ``"unknown"``.
    """
    report = infer_scale(matrix)
    allowed = "the model is trained and scored on log1p of normalised counts"
    if report.scale in _REMEDY:
        raise ValueError(f"{where} holds {_REMEDY[report.scale]}: {allowed}.")
    if report.smallest == report.largest == 0:
        raise ValueError(f"{where} holds nothing but zeros: {allowed}.")
    if report.smallest < 0:
        raise ValueError(
            f"{where} holds negative values (smallest {report.smallest:.3g}), as scaled data or an embedding do: "
            f"{allowed}; pass the matrix from before sc.pp.scale, or the embedding as cell_embedding_key."
        )
    if report.largest >= LOG1P_LIMIT:
        raise ValueError(
            f"{where} holds values up to {report.largest:.3g}, above {LOG1P_LIMIT:g}, which no log1p of counts "
            f"reaches: {allowed}; run sc.pp.log1p(adata) first."
        )
    if report.keeps_depth:
        warnings.warn(
            f"{where} holds log1p of counts that were not normalised: cells differ by their depth, which is no effect "
            "of a perturbation. Run sc.pp.normalize_total(adata) before sc.pp.log1p(adata).",
            stacklevel=2,
        )
    return report
