"""By how much should predicted effects be scaled? Fitted on validation conditions, with what it costs shown.

Shapes: **K** conditions, **G** genes, **F** factors, **B** bins of effect strength.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd

from scvi_tahoe.evaluate._discrimination import discrimination_score_l1
from scvi_tahoe.evaluate._effect_metrics import target_columns
from scvi_tahoe.evaluate._errors import effect_size_ratio, mean_absolute_error, pearson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = [
    "CRITERIA",
    "MODES",
    "Criterion",
    "EffectCalibration",
    "Mode",
    "fit_effect_calibration",
    "scaled_mean",
    "verify_calibration_options",
]

Mode = Literal["global", "strength"]
MODES: tuple[Mode, ...] = get_args(Mode)
Criterion = Literal["mae", "effect_size", "discrimination"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)

_FACTORS = np.round(np.arange(0.2, 2.001, 0.05), 2)
_MOST_FACTOR = 2.0
#: most bins of strength, and fewest conditions in one: a factor fitted on fewer follows their noise
_MOST_BINS, _FEWEST = 3, 3
_SCORES = ("mae", "pearson_delta", "effect_size_ratio", "discrimination_score_l1")
_ROUNDING = 1e-9


def scaled_mean(
    mean_KG: NDArray[np.floating], start_KG: NDArray[np.floating], factor_K: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Mean profiles after the effect is scaled: ``start + factor (mean - start)``, kept between 0 and twice the mean.

    Cells get there when each value of a gene is multiplied by the new mean over the old one, which keeps zeros zero and
    nothing negative. The limit matters for a gene that hardly any predicted cell expresses: its few values would be
    blown up to make the mean.

    Parameters
    ----------
    mean_KG
        Mean predicted profiles, log1p.
    start_KG
        Mean profiles of the control cells that the predictions started from, log1p.
    factor_K
        Factor of each condition.
    """
    wanted = start_KG + np.asarray(factor_K, dtype=np.float64)[:, None] * (mean_KG - start_KG)
    return np.clip(wanted, 0, 2 * mean_KG)


@dataclass(frozen=True, kw_only=True)
class EffectCalibration:
    """A factor on predicted effects, as a function of their strength, and what it does on validation.

    Attributes
    ----------
    mode
        ``"global"`` or ``"strength"``.
    criterion
        What was optimised.
    limits
        Strengths (lengths of the predicted delta) that separate the bins, ascending, ``[B - 1]``; empty if global.
    factors
        Factor of each bin, ``[B]``; never falls, or never rises, from bin to bin.
    table
        One row a bin and factor that was tried: ``mae`` (smaller is better), ``pearson_delta``,
        ``effect_size_ratio`` (median), ``discrimination_score_l1``, means over the bin's validation conditions, and
        ``chosen``.
    before, after
        The same scores over all validation conditions, without and with the calibration.
    n_conditions
        Number of validation conditions.
    """

    mode: Mode
    criterion: Criterion
    limits: tuple[float, ...]
    factors: tuple[float, ...]
    table: pd.DataFrame
    before: dict[str, float]
    after: dict[str, float]
    n_conditions: int

    def factor(self, strength: NDArray[np.floating] | float) -> NDArray[np.float64]:
        """Factor for predicted effects of these strengths."""
        return np.asarray(self.factors)[np.searchsorted(self.limits, strength)]

    def plot(self) -> Figure:
        """Draw MAE, effect size and discrimination against the factor, see :func:`scvi_tahoe.pl.calibration`."""
        from scvi_tahoe import pl

        return pl.calibration(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for saving."""
        return {**self.__dict__, "table": self.table.to_dict("list")}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EffectCalibration:
        """What :meth:`to_dict` gave."""
        return cls(**{**values, "table": pd.DataFrame(values["table"])})

    def __repr__(self) -> str:
        factors = ", ".join(f"{f:g}" for f in self.factors)
        change = "; ".join(f"{name} {self.before[name]:.4g} -> {self.after[name]:.4g}" for name in _SCORES)
        return f"EffectCalibration: factor {factors} ({self.mode}, {self.n_conditions} validation conditions): {change}"


def fit_effect_calibration(
    mean_KG: NDArray[np.floating],
    start_KG: NDArray[np.floating],
    observed_KG: NDArray[np.floating],
    conditions: Sequence[tuple[str, str]],
    genes: NDArray[np.str_],
    *,
    mode: Mode = "global",
    criterion: Criterion = "mae",
    factors: Sequence[float] | None = None,
    allow_worse_mae: bool = False,
) -> EffectCalibration:
    """Choose the factor (one, or one a bin of predicted strength) that does well on the criterion.

    Of all that the conditions do not tell from the best, by one standard error, the nearest to 1 is taken.

    Parameters
    ----------
    mean_KG, start_KG
        Mean predicted profiles, and means of the control cells they started from, log1p.
    observed_KG
        Observed deltas: mean of the perturbed minus mean of the control cells.
    conditions
        (context, perturbation) of each row.
    genes
        Gene names.
    mode
        One of:

        * ``"global"`` - one factor for all
        * ``"strength"`` - two or three bins of predicted strength (at least three conditions each), with factors that
          never fall or never rise with it
    criterion
        One of:

        * ``"mae"`` - smallest mean absolute error of the delta
        * ``"effect_size"`` - lengths of predicted and observed deltas most alike (mean absolute log ratio). Sampling
          noise makes observed deltas longer, the more so the fewer cells they are made of
        * ``"discrimination"`` - highest discrimination score (PDS, L1)
    factors
        To be tried, between 0 and 2, beside 1; None tries 0.2 to 2 in steps of 0.05.
    allow_worse_mae
        Accept a MAE that is worse than before.

    Raises
    ------
    ValueError
        If an option is unknown, or there are too few conditions for it.
    """
    verify_calibration_options(mode=mode, criterion=criterion, factors=factors, n_conditions=len(conditions))
    tried = _verified_factors(factors)
    n_bins = min(_MOST_BINS, len(conditions) // _FEWEST) if mode == "strength" else 1
    strength = np.linalg.norm(mean_KG - start_KG, axis=1)
    scores = [
        _scores(scaled_mean(mean_KG, start_KG, np.full(len(mean_KG), f)) - start_KG, observed_KG, conditions, genes)
        for f in tried
    ]
    score_KF = {name: np.stack([s[name] for s in scores], axis=1) for name in _SCORES}
    if criterion == "discrimination" and np.isnan(score_KF["discrimination_score_l1"]).all():
        raise ValueError("criterion='discrimination' needs two validation conditions in one context.")
    bins = np.array_split(np.argsort(strength, kind="stable"), n_bins)
    limits = tuple(float((strength[a[-1]] + strength[b[0]]) / 2) for a, b in zip(bins, bins[1:]))
    chosen = _choose(score_KF, bins, tried, criterion, allow_worse_mae=allow_worse_mae)
    rows = [
        {"bin": b, "factor": f, **_average({n: s[rows_b, j] for n, s in score_KF.items()}), "chosen": j == chosen[b]}
        for b, rows_b in enumerate(bins)
        for j, f in enumerate(tried)
    ]
    column = np.empty(len(conditions), dtype=np.intp)
    for b, rows_b in enumerate(bins):
        column[rows_b] = chosen[b]
    one = int(np.flatnonzero(tried == 1)[0])
    return EffectCalibration(
        mode=mode,
        criterion=criterion,
        limits=limits,
        factors=tuple(float(tried[j]) for j in chosen),
        table=pd.DataFrame(rows),
        before=_average({n: s[:, one] for n, s in score_KF.items()}),
        after=_average({n: s[np.arange(len(column)), column] for n, s in score_KF.items()}),
        n_conditions=len(conditions),
    )


def verify_calibration_options(
    *,
    mode: str = "global",
    criterion: str = "mae",
    factors: Sequence[float] | None = None,
    n_conditions: int | None = None,
) -> None:
    """Refuse options of :func:`fit_effect_calibration`, before anything is predicted for it.

    Parameters
    ----------
    mode, criterion, factors
        Of :func:`fit_effect_calibration`.
    n_conditions
        Number of validation conditions; None where that is not known yet.

    Raises
    ------
    ValueError
        If an option is unknown, or there are too few conditions for it.
    """
    _verified_factors(factors)
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown; allowed are {', '.join(map(repr, MODES))}.")
    if criterion not in CRITERIA:
        raise ValueError(f"criterion={criterion!r} is unknown; allowed are {', '.join(map(repr, CRITERIA))}.")
    by_strength = mode == "strength"
    needed = 2 * _FEWEST if by_strength else 2
    if n_conditions is not None and n_conditions < needed:
        raise ValueError(
            f"{n_conditions} validation conditions are too few for mode={mode!r}, which needs {needed}: hold out more "
            "of them for validation" + (", or use mode='global'." if by_strength else ".")
        )


def _verified_factors(factors: Sequence[float] | None) -> NDArray[np.float64]:
    try:
        tried = np.unique(np.append(_FACTORS if factors is None else np.asarray(factors, dtype=np.float64), 1.0))
    except (TypeError, ValueError):
        raise ValueError(f"factors={factors!r} must be numbers between 0 and {_MOST_FACTOR:g}.") from None
    if not (np.isfinite(tried).all() and tried[0] >= 0 and tried[-1] <= _MOST_FACTOR):
        raise ValueError(f"factors={factors!r} must lie between 0 and {_MOST_FACTOR:g}.")
    return tried


def _scores(
    predicted_KG: NDArray[np.floating],
    observed_KG: NDArray[np.floating],
    conditions: Sequence[tuple[str, str]],
    genes: NDArray[np.str_],
) -> dict[str, NDArray[np.float64]]:
    """Scores of each condition; discrimination among the conditions of its context."""
    context = np.array([c[0] for c in conditions])
    discrimination = np.full(len(conditions), np.nan)
    for name in np.unique(context):
        here = np.flatnonzero(context == name)
        if len(here) > 1:
            targets = target_columns(tuple(conditions[i][1] for i in here.tolist()), genes)
            discrimination[here] = discrimination_score_l1(predicted_KG[here], observed_KG[here], targets)
    return {
        "mae": mean_absolute_error(predicted_KG, observed_KG),
        "pearson_delta": pearson(predicted_KG, observed_KG),
        "effect_size_ratio": effect_size_ratio(predicted_KG, observed_KG),
        "discrimination_score_l1": discrimination,
    }


def _average(scores: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    """Mean over conditions; the median of the ratio, which one weak perturbation would dominate."""
    known = {name: values[~np.isnan(values)] for name, values in scores.items()}
    return {
        name: float("nan") if not len(v) else float(np.median(v) if name == "effect_size_ratio" else v.mean())
        for name, v in known.items()
    }


def _choose(
    score_KF: dict[str, NDArray[np.float64]],
    bins: list[NDArray[np.intp]],
    tried: NDArray[np.float64],
    criterion: Criterion,
    *,
    allow_worse_mae: bool,
) -> tuple[int, ...]:
    """Position of the factor of each bin: the nearest to 1 of those that these conditions do not tell from the best.

    That is, whose mean cost exceeds the smallest by no more than one standard error of the difference over conditions
    (Breiman et al. 1984, *Classification and Regression Trees*, section 3.4.3). A factor is fitted on a few conditions,
    most of them weak; its excess over what they demand is noise that stronger ones would pay for. Where the factors of
    several bins are as near in sum, those of the smallest cost are taken.
    """
    if criterion == "mae":
        cost_KF = score_KF["mae"]
    elif criterion == "discrimination":
        cost_KF = -score_KF["discrimination_score_l1"]
    else:
        with np.errstate(divide="ignore"):
            cost_KF = np.minimum(np.abs(np.log(score_KF["effect_size_ratio"])), 1e3)  # a factor of 0 has no logarithm
    rising = np.array(list(combinations_with_replacement(range(len(tried)), len(bins))))
    options = np.unique(np.concatenate([rising, rising[:, ::-1]]), axis=0)
    at = np.arange(len(bins))

    def summed(x_KF: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([np.nansum(x_KF[b], axis=0) for b in bins])[at, options].sum(axis=1)

    if not allow_worse_mae:
        mae, one = summed(score_KF["mae"]), int(np.flatnonzero(tried == 1)[0])
        unchanged = summed(score_KF["mae"][:, [one]].repeat(len(tried), axis=1))
        options = options[mae <= unchanged * (1 + _ROUNDING)]
    best_of_bin = options[summed(cost_KF).argmin()]
    best_K = np.empty(len(cost_KF), dtype=np.intp)
    for b, rows in enumerate(bins):
        best_K[rows] = best_of_bin[b]
    excess_KF = cost_KF - np.take_along_axis(cost_KF, best_K[:, None], axis=1)
    n = int((~np.isnan(excess_KF[:, 0])).sum())
    mean = summed(excess_KF) / n
    error = np.sqrt(np.maximum(summed(np.square(excess_KF)) / n - np.square(mean), 0) / max(n - 1, 1))
    alike = mean <= error + _ROUNDING
    distance = np.abs(tried[options[alike]] - 1).sum(axis=1).round(6)  # equal sums of other numbers
    nearest = np.lexsort((mean[alike], distance))[0]
    return tuple(int(j) for j in options[alike][nearest])
