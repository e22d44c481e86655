"""From scores of single perturbations to means: over all of them, and over groups of similar effect size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_tahoe.evaluate._bootstrap import bootstrap_means, interval
from scvi_tahoe.evaluate._metrics import metric_info, to_full_depth

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

#: columns of the per-perturbation table that are no scores
_COUNT_COLUMNS = ("n_cells", "n_cells_predicted", "n_de_observed", "n_de_predicted")
_STRATA_NAMES = {2: ("weak", "strong"), 3: ("weak", "medium", "strong")}


def mean_over_contexts(scores: pd.DataFrame) -> pd.Series:
    """Return the mean of each metric over the perturbations of a context, then over contexts.

    A missing score (say a PR AUC without differentially expressed genes) is left out of the mean.
    """
    return _mean_by_context(scores).mean()


def _mean_by_context(scores: pd.DataFrame) -> pd.DataFrame:
    return scores[_metrics(scores)].groupby(level="context", sort=False).mean()


def _metrics(scores: pd.DataFrame) -> list[str]:
    return [str(column) for column in scores if column not in _COUNT_COLUMNS]


def summarize(
    scores: pd.DataFrame, *, baseline: pd.DataFrame | None = None, halves: pd.DataFrame | None = None, seed: int = 0
) -> pd.DataFrame:
    """Return ``EvaluationResult.summary``: the mean of each metric beside its baseline and its ceiling.

    Scores of the prediction and of the baseline have one row a (context, perturbation); ``halves`` are split-half
    scores at half depth; ``seed`` is that of the bootstrap. A score of the whole panel has no interval.
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
    table["scaled"] = _shares(names, value.to_numpy(), table["baseline"].to_numpy(), ceiling)
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
    table.index.name = "metric"
    return table


def _shares(
    names: Sequence[str], value: NDArray[np.float64], baseline: NDArray[np.float64], ceiling: NDArray[np.float64]
) -> list[float]:
    """Return shares of the way; NaN for a diagnostic and where the ceiling does not beat the baseline."""
    found = []
    for name, v, b, c in zip(names, value, baseline, ceiling):
        best = metric_info(name).best
        better = best is not None and (c < b if best == 0 else c > b)
        found.append((v - b) / (c - b) if better else float("nan"))
    return found


def strata_table(
    scores: pd.DataFrame,
    baseline: pd.DataFrame | None,
    halves: pd.DataFrame | None,
    effect_size: NDArray[np.floating],
    n_groups: int,
) -> pd.DataFrame:
    """Return mean scores of groups of equal size within each context, by the effect size of each row of ``scores``."""
    if n_groups < 2 or len(scores) < n_groups:
        raise ValueError(f"n_groups must be between 2 and the number of perturbations, {len(scores)}; got {n_groups}.")
    by_context = pd.Series(effect_size, index=scores.index).groupby(level="context")
    rank = by_context.rank(method="first").astype(int)
    group = -(-rank * n_groups // by_context.transform("size"))  # 1 for the weakest
    metrics = [m for m in _metrics(scores) if not metric_info(m).whole_panel]
    sides = {"value": _group_means(scores[metrics], group)}
    if baseline is not None:
        sides["baseline"] = _group_means(baseline.reindex(columns=metrics), group)
    if halves is not None:
        sides["ceiling"] = _group_means(halves.reindex(columns=metrics), group, full_depth=True)
    if len(sides) == 3:
        rows = [_shares(metrics, *(side.loc[g].to_numpy() for side in sides.values())) for g in range(1, n_groups + 1)]
        sides["scaled"] = pd.DataFrame(rows, index=sides["value"].index, columns=metrics)
    table = pd.DataFrame({(m, name): side[m] for m in metrics for name, side in sides.items()})
    counts = group.value_counts().reindex(range(1, n_groups + 1), fill_value=0)
    table.insert(0, ("n_perturbations", ""), counts.to_numpy())
    table.index = pd.Index(_STRATA_NAMES.get(n_groups, tuple(range(1, n_groups + 1))), name="effect size")
    return table


def _group_means(table: pd.DataFrame, group: pd.Series, *, full_depth: bool = False) -> pd.DataFrame:
    """Return means over the perturbations of a group in each context, then over contexts."""
    table = table.reindex(group.index)
    means = table.groupby([table.index.get_level_values("context"), group.to_numpy()], sort=False).mean()
    if full_depth:
        means = means.apply(to_full_depth, axis=1)
    return means.groupby(level=1).mean().reindex(range(1, int(group.max()) + 1))
