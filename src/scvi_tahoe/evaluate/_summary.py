"""From scores of single perturbations to means: over all of them, and over groups of similar effect size."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_tahoe.evaluate._metrics import metric_info, to_full_depth

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

#: resamples; the ends of a 95 % interval move by about 1 % of its width between seeds
_N_RESAMPLES = 1000
#: columns of the per-perturbation table that are no scores
_COUNT_COLUMNS = ("n_cells", "n_cells_predicted", "n_de_observed", "n_de_predicted")


def mean_over_contexts(scores: pd.DataFrame) -> pd.Series:
    """Return the mean of each metric over the perturbations of a context, then over contexts; without missing ones."""
    return _mean_by_context(scores).mean()


def mean_over_draws(draws: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Average scores over choices of cells, without missing ones; the table itself if there is one."""
    if len(draws) == 1:
        return draws[0]
    mean = mean_without_missing(np.stack([draw.to_numpy(float) for draw in draws]))
    return pd.DataFrame(mean, index=draws[0].index, columns=draws[0].columns)


def _mean_by_context(scores: pd.DataFrame) -> pd.DataFrame:
    return scores[metric_columns(scores)].groupby(level="context", sort=False).mean()


def metric_columns(scores: pd.DataFrame) -> list[str]:
    return [str(column) for column in scores if column not in _COUNT_COLUMNS]


def summarize(
    scores: pd.DataFrame,
    *,
    baseline: pd.DataFrame | None = None,
    halves: pd.DataFrame | None = None,
    draws: Sequence[pd.DataFrame] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return ``EvaluationResult.summary``: the mean of each metric with its baseline and its ceiling.

    Scores of the prediction and of the baseline have one row per (context, perturbation); ``halves`` are split-half
    scores at half depth; ``draws`` are scores of different choices of the predicted cells; ``seed`` is that of the
    bootstrap. A score of the whole panel has no interval.
    """
    value = mean_over_contexts(scores)
    names = [str(name) for name in value.index]
    base = None if baseline is None else baseline.reindex(columns=names).reindex(scores.index)
    ceiling = np.full(len(names), np.nan)
    if halves is not None:  # each context is carried over to full depth on its own, as cell-eval does, then averaged
        ceiling = _mean_by_context(halves).apply(to_full_depth, axis=1).mean().reindex(names).to_numpy()
    resampled = bootstrap_means([scores[names], *([] if base is None else [base])], seed=seed)
    whole_panel = np.array([metric_info(name).whole_panel for name in names])
    table = pd.DataFrame({"value": value})
    table["low"], table["high"] = interval(np.where(whole_panel, np.nan, resampled[0]))
    table["baseline"] = np.nan if base is None else mean_over_contexts(base)
    table["ceiling"] = ceiling
    table["scaled"] = shares_of_the_way(names, value.to_numpy(), table["baseline"].to_numpy(), ceiling)
    table["scaled_low"] = table["scaled_high"] = np.nan
    if base is not None:
        meaningful = table["scaled"].notna().to_numpy() & ~whole_panel
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (resampled[0] - resampled[1]) / (ceiling - resampled[1])
        low, high = interval(np.where(np.isfinite(share) & meaningful, share, np.nan))
        table["scaled_low"], table["scaled_high"] = low, high
    table["direction"] = [metric_info(name).direction for name in names]
    missing = scores[names].isna().sum()
    table["n_perturbations"] = len(scores) - missing
    table["n_missing"] = missing
    table["sd_draws"] = np.nan
    if draws is not None and len(draws) > 1:
        table["sd_draws"] = np.std([mean_over_contexts(draw).reindex(names) for draw in draws], axis=0, ddof=1)
    table.index.name = "metric"
    return table


def shares_of_the_way(
    names: Sequence[str], value: NDArray[np.float64], baseline: NDArray[np.float64], ceiling: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return shares of the way; NaN for a diagnostic and where the ceiling does not beat the baseline."""
    best = np.array([metric_info(name).best for name in names], dtype=float)
    better = np.isfinite(best) & np.where(best == 0, ceiling < baseline, ceiling > baseline)
    return np.divide(value - baseline, ceiling - baseline, out=np.full(len(names), np.nan), where=better)


def bootstrap_means(tables: list[pd.DataFrame], *, seed: int = 0) -> list[NDArray[np.float64]]:
    """Resample perturbations within each context and average as the summary does: ``[resamples, metrics]`` a table.

    All tables, of one index (context, perturbation), are resampled alike, so that differences between them are paired.
    Nonparametric bootstrap of Efron (1979), over perturbations: it tells how scores would vary over other perturbations
    of the same kind, not over other cells or other trainings.
    """
    return [mean_without_missing(means) for means in bootstrap_by_context(tables, seed=seed)]


def mean_without_missing(parts: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean over the first axis without NaN; NaN where there is nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(parts, axis=0), dtype=np.float64)


def bootstrap_by_context(tables: list[pd.DataFrame], *, seed: int = 0) -> list[NDArray[np.float64]]:
    """Resample perturbations within each context: means of each table, ``[contexts, resamples, metrics]``."""
    rng = np.random.default_rng(seed)
    contexts = tables[0].index.get_level_values("context")
    sums: list[list[NDArray[np.float64]]] = [[] for _ in tables]
    for context in dict.fromkeys(contexts):
        rows = np.flatnonzero(contexts == context)
        weights = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=_N_RESAMPLES).astype(float)
        for table, kept in zip(tables, sums):
            values = table.to_numpy(float)[rows]
            known = np.isfinite(values)
            n_known = weights @ known
            total = weights @ np.where(known, values, 0)
            kept.append(np.divide(total, n_known, out=np.full_like(total, np.nan), where=n_known > 0))
    return [np.stack(kept) for kept in sums]


def interval(resampled: NDArray[np.float64], level: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile interval over the resamples, ``[resamples, metrics]``; NaN if nothing was resampled."""
    known = np.isfinite(resampled).any(axis=0)
    low, high = np.full((2, resampled.shape[1]), np.nan)
    tail = 50 * (1 - level)
    if known.any():
        low[known], high[known] = np.nanpercentile(resampled[:, known], [tail, 100 - tail], axis=0)
    return low, high
