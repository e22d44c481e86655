"""From scores of single perturbations to a line a metric: value, baseline, ceiling, share of the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_tahoe.evaluate._bootstrap import bootstrap_means, interval
from scvi_tahoe.evaluate._metrics import metric_info, to_full_depth

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["COUNT_COLUMNS", "mean_over_contexts", "shares", "summarize"]

#: columns of the per-perturbation table that are no scores
COUNT_COLUMNS = ("n_cells", "n_cells_predicted", "n_de_observed", "n_de_predicted")


def mean_over_contexts(scores: pd.DataFrame) -> pd.Series:
    """Mean of each metric over the perturbations of a context, then over contexts, so that none outweighs another.

    Parameters
    ----------
    scores
        One row a (context, perturbation). A missing score (say a PR AUC without differentially expressed genes) is left
        out of the mean; the summary counts how many were.
    """
    metrics = scores.drop(columns=[c for c in COUNT_COLUMNS if c in scores])
    return metrics.groupby(level="context", sort=False).mean().mean()


def summarize(
    scores: pd.DataFrame, *, baseline: pd.DataFrame | None = None, halves: pd.DataFrame | None = None, seed: int = 0
) -> pd.DataFrame:
    """Put the mean of each metric beside its baseline and its ceiling.

    Parameters
    ----------
    scores
        Scores of the prediction, one row a (context, perturbation).
    baseline
        Scores of the baseline on the same perturbations.
    halves
        Split-half scores at half depth.
    seed
        Seed of the bootstrap.

    Returns
    -------
    Index ``metric``; columns ``value``, ``low``, ``high`` (95 % bootstrap interval over perturbations), ``baseline``,
    ``ceiling`` (a replicate at full depth), ``scaled`` (share of the way from baseline to ceiling), ``scaled_low``,
    ``scaled_high``, ``direction``, ``n_perturbations`` and ``n_missing``. A score of the whole panel has no interval.
    """
    value = mean_over_contexts(scores)
    names = [str(name) for name in value.index]
    base = None if baseline is None else baseline.reindex(columns=names).reindex(scores.index)
    ceiling = np.full(len(names), np.nan) if halves is None else _ceiling(halves).reindex(names).to_numpy()
    resampled = bootstrap_means([scores[names], *([] if base is None else [base])], seed=seed)
    whole = np.array([metric_info(name).whole_panel for name in names])
    table = pd.DataFrame({"value": value})
    table["low"], table["high"] = interval(np.where(whole, np.nan, resampled[0]))
    table["baseline"] = np.nan if base is None else mean_over_contexts(base)
    table["ceiling"] = ceiling
    table["scaled"] = shares(names, value.to_numpy(), table["baseline"].to_numpy(), ceiling)
    table["scaled_low"] = table["scaled_high"] = np.nan
    if base is not None:
        meaningful = table["scaled"].notna().to_numpy() & ~whole
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (resampled[0] - resampled[1]) / (ceiling - resampled[1])
        low, high = interval(np.where(np.isfinite(share) & meaningful, share, np.nan))
        table["scaled_low"], table["scaled_high"] = low, high
    table["direction"] = [metric_info(name).direction for name in names]
    missing = scores[names].isna().sum()
    table["n_perturbations"] = len(scores) - missing
    table["n_missing"] = missing
    table.index.name = "metric"
    return table


def _ceiling(halves: pd.DataFrame) -> pd.Series:
    """Full-depth ceiling: each context carried over on its own, as cell-eval does, then averaged."""
    metrics = halves.columns.difference(list(COUNT_COLUMNS), sort=False)
    by_context = halves[metrics].groupby(level="context", sort=False).mean()
    return by_context.apply(to_full_depth, axis=1).mean()


def shares(
    names: Sequence[str], value: NDArray[np.float64], baseline: NDArray[np.float64], ceiling: NDArray[np.float64]
) -> list[float]:
    """Share of the way of each score; NaN for a diagnostic and where the ceiling does not beat the baseline."""
    found = []
    for name, v, b, c in zip(names, value, baseline, ceiling):
        best = metric_info(name).best
        better = best is not None and (c < b if best == 0 else c > b)
        found.append((v - b) / (c - b) if better else float("nan"))
    return found
