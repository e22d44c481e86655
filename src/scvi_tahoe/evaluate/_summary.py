"""From scores of single perturbations to a line a metric: value, baseline, ceiling, share of the way."""

from __future__ import annotations

import numpy as np
import pandas as pd

from scvi_tahoe.evaluate._ceiling import to_full_depth
from scvi_tahoe.evaluate._metric_info import metric_info

__all__ = ["COUNT_COLUMNS", "mean_over_contexts", "share_of_way", "summarize"]

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


def share_of_way(value: float, baseline: float, goal: float) -> float:
    """How far a score got from the baseline (0) to the goal (1); negative if worse than the baseline.

    NaN where the goal is no better than the baseline, and hence there is no way to go, or where one of them is missing.
    """
    room = goal - baseline
    return (value - baseline) / room if np.isfinite(room) and room != 0 else float("nan")


def summarize(
    scores: pd.DataFrame, *, baseline: pd.DataFrame | None = None, halves: pd.DataFrame | None = None
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

    Returns
    -------
    Index ``metric``; columns ``value``, ``baseline``, ``ceiling`` (a replicate at full depth), ``scaled`` (share of the
    way from baseline to ceiling), ``direction``, ``n_perturbations`` and ``n_missing``.
    """
    value = mean_over_contexts(scores)
    table = pd.DataFrame({"value": value})
    table["baseline"] = np.nan if baseline is None else mean_over_contexts(baseline).reindex(value.index)
    table["ceiling"] = np.nan if halves is None else _ceiling(halves).reindex(value.index)
    table["scaled"] = [
        _scaled(name, *numbers)
        for name, numbers in zip(table.index, table[["value", "baseline", "ceiling"]].to_numpy())
    ]
    table["direction"] = [metric_info(name).direction for name in table.index]
    missing = scores[table.index].isna().sum()
    table["n_perturbations"] = len(scores) - missing
    table["n_missing"] = missing
    table.index.name = "metric"
    return table


def _ceiling(halves: pd.DataFrame) -> pd.Series:
    """Full-depth ceiling: each context carried over on its own, as cell-eval does, then averaged."""
    metrics = halves.columns.difference(list(COUNT_COLUMNS), sort=False)
    by_context = halves[metrics].groupby(level="context", sort=False).mean()
    return by_context.apply(to_full_depth, axis=1).mean()


def _scaled(name: str, value: float, baseline: float, ceiling: float) -> float:
    """Share of the way for a score; NaN for a diagnostic and where the ceiling does not beat the baseline."""
    best = metric_info(name).best
    if best is None or not (ceiling < baseline if best == 0 else ceiling > baseline):
        return float("nan")
    return share_of_way(value, baseline, ceiling)
