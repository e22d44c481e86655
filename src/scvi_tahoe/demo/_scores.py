"""The model's prediction scored beside everything it has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

    from scvi_tahoe.datasets import FewShotTask

__all__ = ["MODEL_ROW", "score_beside_baselines"]

MODEL_ROW = "TahoeST"

CEILING_ROW = "ceiling: another experiment of this size"

#: Name of the baseline in `scvi_tahoe.evaluate` -> its row in the table.
BASELINE_ROWS = {
    "control": "controls as they are",
    "train_mean": "mean of the seen targets",
    "context_transfer": "the target's mean change in replicates 1, 2",
    "cells_shifted": "the target's cells of replicates 1, 2, shifted",
    "cells_quantile": "the same cells, through the controls' quantiles",
}
#: Metric of cell-eval -> its column in the table.
COLUMNS = {
    "overlap_at_N": "DES",
    "discrimination_score_l1": "PDS",
    "mae": "MAE",
    "pearson_delta": "Pearson",
    "de_direction_match": "direction",
}


def score_beside_baselines(
    task: FewShotTask, prediction: AnnData, *, seed: int, report: Callable[[str], None]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score a prediction of the held-out targets, and the baselines, with cell-eval.

    Parameters
    ----------
    task
        The task with the observed cells.
    prediction
        Predicted cells of `task.targets` in `task.context`.
    seed
        Seed of the cells that baselines draw.
    report
        Called with a line for each step.

    Returns
    -------
    Means over the targets, one row a predictor, and the scores of every target, one row a predictor and target.
    `"score"` is the overall score of the Virtual Cell Challenge 2025, 100 times the mean of DES, PDS and MAE scaled
    between the mean of the seen targets and a perfect prediction.
    """
    from scvi_tahoe.evaluate import EvaluationReference, baseline_prediction, evaluate

    keys = {
        "perturbation_key": task.perturbation_key,
        "control": task.control,
        "context_key": task.context_key,
    }
    reference = EvaluationReference.from_adata(task.held_out, baseline_from=task.train, **keys)
    means, targets = {}, {}
    for name, row in [*BASELINE_ROWS.items(), (None, MODEL_ROW)]:
        report(f"Scoring: {row}.")
        cells = prediction if name is None else baseline_prediction(name, task.held_out, task.train, seed=seed, **keys)
        # What is wrong with a baseline is known; what is wrong with the prediction is reported below.
        result = evaluate(cells, reference, preset="full", representation_check="off", **keys)
        summary = result.summary
        means[row] = {**_columns(summary["value"]), "score": result.vcc["overall"]}
        targets[row] = result.per_perturbation.rename(columns=COLUMNS)[list(COLUMNS.values())]
    for check in result.checks.itertuples():
        if check.status != "ok":
            report(f"Note on the prediction: {check.message}")
    means[CEILING_ROW] = _columns(summary["ceiling"])
    return pd.DataFrame(means).T, pd.concat(targets, names=["predictor"])


def _columns(values: pd.Series) -> dict[str, float]:
    return {column: float(values[metric]) for metric, column in COLUMNS.items()}
