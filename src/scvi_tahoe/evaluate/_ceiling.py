"""The ceiling: how well one half of the observed cells predicts the other, carried over to full depth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_tahoe.evaluate._metric_info import metric_info
from scvi_tahoe.evaluate._scoring import ContextTruth, score_context

if TYPE_CHECKING:
    from scvi_tahoe.evaluate._cells import CellTable
    from scvi_tahoe.evaluate._scoring import ScoringSettings

__all__ = ["split_half_scores", "split_halves", "to_full_depth"]


def split_halves(
    cells: CellTable, *, seed: int = 0, keep_whole: frozenset[str] = frozenset()
) -> tuple[CellTable, CellTable]:
    """Split the cells of every perturbation into two disjoint halves of ``n // 2`` cells.

    Parameters
    ----------
    cells
        Cells of one context.
    seed
        Seed of the shuffle.
    keep_whole
        Labels whose cells go into both halves, undivided.

    Returns
    -------
    Two tables. A perturbation with fewer than two cells is in neither.

    Notes
    -----
    With nothing kept whole these are the halves of cell-eval 0.8.2 (``compute_ceiling``) for the same seed.
    """
    rng = np.random.default_rng(seed)
    first, second = [], []
    for (_, perturbation), rows in cells.rows.items():
        shuffled = rng.permutation(rows)
        if perturbation in keep_whole:
            first.append(rows)
            second.append(rows)
        elif (half := len(rows) // 2) > 0:
            first.append(shuffled[:half])
            second.append(shuffled[half : 2 * half])
    return cells.select(np.concatenate(first)), cells.select(np.concatenate(second))


def split_half_scores(truth: ContextTruth, settings: ScoringSettings, *, seed: int = 0) -> pd.DataFrame:
    """Score one half of the observed cells as the prediction of the other; one row a perturbation, at half depth.

    Under ``control_cells="real"`` both halves use all control cells, since that is what a prediction is given too;
    under ``"predicted"`` the controls are split like everything else, as in cell-eval.

    Raises
    ------
    ValueError
        If no perturbation, or not the control, has two cells to split.
    """
    whole = frozenset({truth.control}) if settings.control_cells == "real" else frozenset()
    observed, predicted = split_halves(truth.cells, seed=seed, keep_whole=whole)
    if not observed.perturbations(truth.context, control=truth.control) or truth.control not in observed.perturbation:
        msg = (
            f"Context {truth.context!r} has too few cells to split into halves, so it has no ceiling; "
            "pass ceiling=False to score without one."
        )
        raise ValueError(msg)
    half = ContextTruth(
        observed,
        control=truth.control,
        de_backend=truth.de_backend,
        num_threads=truth.num_threads,
        progress=truth.progress,
    )
    return score_context(half, predicted, settings).per_perturbation


def to_full_depth(half_depth: pd.Series) -> pd.Series:
    """Carry mean split-half scores to the depth of all cells, by the rule of each metric.

    Parameters
    ----------
    half_depth
        Mean over perturbations, index metric.

    Returns
    -------
    NaN where there is no rule (see :class:`~scvi_tahoe.evaluate.MetricInfo`), or where the halves do not agree at all.
    """
    return pd.Series(
        {name: _correct(value, metric_info(str(name)).ceiling) for name, value in half_depth.items()}, dtype=float
    )


def _correct(value: float, rule: str) -> float:
    if rule == "absolute":
        return value / np.sqrt(2)
    if rule == "squared":
        return value / 2
    if rule == "spearman_brown" and value > 0:
        return 2 * value / (1 + value)
    return np.nan
