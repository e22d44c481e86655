"""What a demo shows: the prediction next to everything that it has to beat."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from scvi_tahoe._arguments import checked

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from anndata import AnnData

    from scvi_tahoe.datasets import FewShotTask
    from scvi_tahoe.evaluate import EvaluationResult

#: name of the baseline in `scvi_tahoe.evaluate` -> its row in the table
_BASELINE_ROWS = {
    "control": "controls as they are",
    "train_mean": "mean of the seen targets",
    "context_transfer": "the target's mean change in replicates 1, 2",
    "deviation": "mean of the seen + the target's deviation in 1, 2",
    "cells_quantile": "the target's cells of 1, 2, through quantiles",
    "vcc2025_mean": "copies of the mean, baseline of the challenge",
}
#: metric of cell-eval -> its column in the table
_COLUMNS = {
    "overlap_at_N": "DES", "discrimination_score_l1": "PDS", "mae": "MAE", "pearson_delta": "Pearson",
    "de_direction_match": "direction",
}  # fmt: skip


def score_beside_baselines(
    task: FewShotTask, prediction: AnnData, *, seed: int, report: Callable[[str], None]
) -> tuple[pd.DataFrame, EvaluationResult]:
    """Score a prediction of the held-out targets, and the baselines, with cell-eval.

    Returns means over the targets, one row per predictor, and the result of the prediction. `"score"` in the table is
    the overall score of the Virtual Cell Challenge 2025: 100 times the mean of DES, PDS and MAE, each scaled between
    the mean of the seen targets (0) and a perfect prediction (1). Every predictor is scored by as many cells as were
    observed, and the means of the simple ones are exact.
    """
    import pandas as pd

    from scvi_tahoe.evaluate import EvaluationReference, EvaluationWarning, evaluate

    reference = EvaluationReference.from_adata(
        task.held_out, perturbation_key=task.perturbation_key, control=task.control, context_key=task.context_key,
        baseline_from=task.train,
    )  # fmt: skip
    report(f"Scoring the prediction and {len(_BASELINE_ROWS)} simple predictors with cell-eval.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvaluationWarning)  # reported below, without the line of code that warns
        result = evaluate(prediction, reference, preset="full", seed=seed)
    for line in result.findings:
        report(f"Note on the prediction: {line}")
    means = result.baselines
    rows = [*(name for name in _BASELINE_ROWS if name in means.index), "prediction"]
    table = means.loc[rows, [*_COLUMNS, "overall"]].rename(index={**_BASELINE_ROWS, "prediction": "TahoeST"})
    ceiling = result.summary.loc[list(_COLUMNS), "ceiling"].rename("ceiling (replicate)")
    table = pd.concat([table, ceiling.to_frame().T]).rename(columns={**_COLUMNS, "overall": "score"})
    return table.rename_axis("prediction"), result


@checked()
def score_table(scores: pd.DataFrame) -> str:
    """Return :attr:`DemoResult.scores` as aligned text, one predictor per line."""
    text = scores.apply(lambda column: column.map(f"{{:.{1 if column.name == 'score' else 3}f}}".format))
    return text.where(scores.notna(), "").rename_axis(None).to_string()
