"""What a demo shows: the prediction next to everything that it has to beat, and how training went."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from anndata import AnnData
    from matplotlib.figure import Figure

    from scvi_tahoe.datasets import FewShotTask
    from scvi_tahoe.evaluate import EvaluationResult

_MODEL_ROW = "TahoeST"
#: name of the baseline in `scvi_tahoe.evaluate` -> its row in the table
_BASELINE_ROWS = {
    "control": "controls as they are",
    "train_mean": "mean of the seen targets",
    "context_transfer": "the target's mean change in replicates 1, 2",
    "cells_shifted": "the target's cells of replicates 1, 2, shifted",
    "cells_quantile": "the same cells, through the controls' quantiles",
}
#: metric of cell-eval -> its column in the table
_COLUMNS = {
    "overlap_at_N": "DES",
    "discrimination_score_l1": "PDS",
    "mae": "MAE",
    "pearson_delta": "Pearson",
    "de_direction_match": "direction",
}


def score_beside_baselines(
    task: FewShotTask, prediction: AnnData, *, seed: int, report: Callable[[str], None]
) -> tuple[pd.DataFrame, EvaluationResult]:
    """Score a prediction of the held-out targets, and the baselines, with cell-eval.

    Returns means over the targets, one row per predictor, and the result of the prediction. `"score"` in the table is
    the overall score of the Virtual Cell Challenge 2025: 100 times the mean of DES, PDS and MAE, each scaled between
    the mean of the seen targets (0) and a perfect prediction (1).
    """
    from scvi_tahoe.evaluate import EvaluationReference, EvaluationWarning, baseline_results, compare_results, evaluate

    reference = EvaluationReference.from_adata(
        task.held_out, perturbation_key=task.perturbation_key, control=task.control, context_key=task.context_key,
        baseline_from=task.train,
    )  # fmt: skip
    report("Scoring the prediction and five simple predictors with cell-eval.")
    with warnings.catch_warnings():
        # they are reported below, without the line of code that comes with a warning
        warnings.simplefilter("ignore", EvaluationWarning)
        result = evaluate(prediction, reference, preset="full", seed=seed)
    for check in result.checks.itertuples():
        if check.status == "warning":
            report(f"Note on the prediction ({check.Index}): {check.message}")
    baselines = baseline_results(reference, tuple(_BASELINE_ROWS), preset="full", seed=seed)
    rows = {_BASELINE_ROWS[name]: scores for name, scores in baselines.items()} | {_MODEL_ROW: result}
    table = compare_results(rows, metrics=list(_COLUMNS))
    return table.rename(columns={**_COLUMNS, table.columns[-1]: "score"}), result


def score_table(scores: pd.DataFrame) -> str:
    """Return the scores as aligned text, one predictor per line.

    Parameters
    ----------
    scores
        :attr:`DemoResult.scores`.
    """
    decimals = {column: 1 if column == "score" else 3 for column in scores}
    text = scores.apply(lambda column: column.map(f"{{:.{decimals[column.name]}f}}".format))
    return text.where(scores.notna(), "").rename_axis(None).to_string()


def training_curve(history: pd.DataFrame) -> Figure:
    """Draw training and validation loss (columns of `history`) by step, and mark the validation that was kept.

    Each loss has its own axis: they are means over different sets of cells, so only their courses can be compared.
    """
    from scvi_tahoe.pl import OBSERVED, PREDICTED, new_figure

    figure = new_figure(6.5, 4.5)
    panels = figure.subplots(2, 1, sharex=True)
    for axes, column, color in zip(panels, ("train_loss", "validation_loss"), (OBSERVED, PREDICTED), strict=True):
        seen = history.dropna(subset=[column])
        axes.plot(seen["step"], seen[column], color=color, lw=1.6, marker="." if len(seen) < 50 else "")
        axes.set_ylabel(column.replace("_", " "))
        axes.spines[["top", "right"]].set_visible(False)
    best = history.sort_values("validation_loss").iloc[0]
    panels[1].plot(best["step"], best["validation_loss"], "o", color=PREDICTED, ms=7)
    panels[1].set_xlabel("step")
    figure.suptitle(
        f"Training: the weights of step {best['step']:.0f} were kept (validation loss {best['validation_loss']:.4f})",
        fontsize=10,
    )
    return figure
