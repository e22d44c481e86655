"""Scores of weak, medium and strong perturbations apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_tahoe.evaluate._summary import COUNT_COLUMNS

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
    ``"value"`` or ``"baseline"``, and ``n_perturbations``.

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
    parts = {"value": scores, "baseline": result.baseline_per_perturbation}
    metrics = [name for name in scores if name not in COUNT_COLUMNS]
    columns = {
        (metric, side): table[metric].groupby(group).mean()
        for metric in metrics
        for side, table in parts.items()
        if table is not None and metric in table
    }
    table = pd.DataFrame(columns)
    table.insert(0, ("n_perturbations", ""), scores.groupby(group).size())
    table.index = pd.Index(_NAMES.get(n_groups, tuple(range(1, n_groups + 1))), name="effect size")
    return table


def _groups(result: EvaluationResult, n_groups: int) -> np.ndarray:
    size = pd.Series(np.linalg.norm(result.effects.observed, axis=1), index=result.per_perturbation.index)
    rank = size.groupby(level="context").rank(method="first", pct=True)
    return np.ceil(rank.to_numpy() * n_groups).astype(int)
