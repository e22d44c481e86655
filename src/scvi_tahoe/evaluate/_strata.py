"""Scores of weak, medium and strong perturbations apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_tahoe.evaluate._metrics import metric_info, to_full_depth
from scvi_tahoe.evaluate._summary import COUNT_COLUMNS, shares

if TYPE_CHECKING:
    from scvi_tahoe.evaluate._result import EvaluationResult

__all__ = ["strata"]

_NAMES = {2: ("weak", "strong"), 3: ("weak", "medium", "strong")}


def strata(result: EvaluationResult, *, n_groups: int = 3) -> pd.DataFrame:
    """Return the mean scores of groups of perturbations of similar observed effect size.

    Strong perturbations are easy to tell apart and saturate a score, weak ones are mostly noise; a mean over both hides
    progress on either.

    Parameters
    ----------
    result
        Result of an evaluation.
    n_groups
        Groups of equal size, by the length of the observed delta within each context.

    Returns
    -------
    One row a group, ``"weak"`` to ``"strong"`` (numbers for other than 2 or 3 groups); columns are a pair of metric and
    ``"value"``, ``"baseline"``, ``"ceiling"`` or ``"scaled"`` (those that the result has), and ``n_perturbations``. As
    in the summary, contexts are averaged one by one and then together. Scores of the whole panel are left out.

    Raises
    ------
    ValueError
        If there are fewer than two groups, or fewer perturbations than groups.
    """
    scores = result.per_perturbation
    if n_groups < 2 or len(scores) < n_groups:
        msg = f"n_groups must be between 2 and the number of perturbations, {len(scores)}; got {n_groups}."
        raise ValueError(msg)
    group = _groups(result, n_groups)
    metrics = [m for m in map(str, scores) if m not in COUNT_COLUMNS and not metric_info(m).whole_panel]
    sides = {"value": _means(scores[metrics], group)}
    if result.baseline_per_perturbation is not None:
        sides["baseline"] = _means(result.baseline_per_perturbation.reindex(columns=metrics), group)
    if result.halves_per_perturbation is not None:
        sides["ceiling"] = _means(result.halves_per_perturbation.reindex(columns=metrics), group, full_depth=True)
    if len(sides) == 3:
        rows = [shares(metrics, *(side.loc[g].to_numpy() for side in sides.values())) for g in range(1, n_groups + 1)]
        sides["scaled"] = pd.DataFrame(rows, index=sides["value"].index, columns=metrics)
    table = pd.DataFrame({(m, name): side[m] for m in metrics for name, side in sides.items()})
    counts = group.value_counts().reindex(range(1, n_groups + 1), fill_value=0)
    table.insert(0, ("n_perturbations", ""), counts.to_numpy())
    table.index = pd.Index(_NAMES.get(n_groups, tuple(range(1, n_groups + 1))), name="effect size")
    return table


def _groups(result: EvaluationResult, n_groups: int) -> pd.Series:
    """Group of each condition, 1 for the weakest."""
    size = pd.Series(np.linalg.norm(result.effects.observed, axis=1), index=result.per_perturbation.index)
    by_context = size.groupby(level="context")
    rank = by_context.rank(method="first").astype(int)
    return -(-rank * n_groups // by_context.transform("size"))


def _means(table: pd.DataFrame, group: pd.Series, *, full_depth: bool = False) -> pd.DataFrame:
    """Mean over the perturbations of a group in each context, at full depth on request, then over contexts."""
    table = table.reindex(group.index)
    means = table.groupby([table.index.get_level_values("context"), group.to_numpy()], sort=False).mean()
    if full_depth:
        means = means.apply(to_full_depth, axis=1)
    return means.groupby(level=1).mean().reindex(range(1, int(group.max()) + 1))
