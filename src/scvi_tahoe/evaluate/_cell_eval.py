"""The bridge to cell-eval: its metric functions on our means and DE tables, hence its numbers without its detours.

cell-eval's own evaluator recomputes the truth for every model, copies both matrices to guess their scale and writes
files into the working directory. Its public parts - the pair of AnnData, the DE comparison, the metric pipeline - need
none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_tahoe.evaluate._differential_expression import LABEL_COLUMN, contained

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable
    from scvi_tahoe.evaluate._group_statistics import GroupStatistics

__all__ = ["CELL_EVAL_PROFILES", "cell_eval_scores"]

#: cell-eval's profile for each of our presets
CELL_EVAL_PROFILES = {"vcc2025": "vcc", "minimal": "minimal", "full": "full"}
#: metrics over the whole panel that fail on one or two perturbations
_NEED_THREE = ["clustering_agreement", "pearson_edistance"]


def cell_eval_scores(
    *,
    observed: tuple[CellTable, GroupStatistics, pl.DataFrame],
    predicted: tuple[CellTable, GroupStatistics, pl.DataFrame],
    control: str,
    preset: str,
) -> pd.DataFrame:
    """Return cell-eval's metrics, one row a perturbation.

    Parameters
    ----------
    observed, predicted
        Cells of one context with their controls, their statistics and their differential expression.
    control
        Label of the control cells.
    preset
        Key of :data:`CELL_EVAL_PROFILES`.

    Returns
    -------
    Columns as cell-eval names them, index ``perturbation``.
    """
    from cell_eval import MetricPipeline, PerturbationAnndataPair, initialize_de_comparison

    pair = PerturbationAnndataPair(
        real=observed[0].to_adata(perturbation_key=LABEL_COLUMN),
        pred=predicted[0].to_adata(perturbation_key=LABEL_COLUMN),
        pert_col=LABEL_COLUMN,
        control_pert=control,
    )
    pair.bulk_real["_default"] = _bulk(observed, control)
    pair.bulk_pred["_default"] = _bulk(predicted, control)
    with contained():
        # a failing metric must raise: by default cell-eval logs it and leaves the column out
        pipeline = MetricPipeline(profile=CELL_EVAL_PROFILES[preset], break_on_error=True)
        if len(observed[1].perturbations) < 3:
            pipeline.skip_metrics(_NEED_THREE)
        pipeline.compute_de_metrics(initialize_de_comparison(observed[2], predicted[2]))
        pipeline.compute_anndata_metrics(pair)
        scores = pd.DataFrame(pipeline.get_results().to_dict(as_series=False)).set_index("perturbation")
    scores.index = scores.index.astype(str)
    return scores.reindex(list(observed[1].perturbations)).astype(float)


def _bulk(
    side: tuple[CellTable, GroupStatistics, pl.DataFrame], control: str
) -> tuple[NDArray[np.object_], NDArray[np.floating]]:
    """Mean profiles as cell-eval stores them: sorted by label, control included, in the precision of the matrix."""
    cells, statistics, _ = side
    labels = np.array([*statistics.perturbations, control], dtype=object)
    means = np.concatenate([statistics.mean, statistics.control_mean[None]])
    order = np.argsort(labels.astype(str))
    return labels[order], np.asfortranarray(means[order].astype(cells.expression.dtype))
