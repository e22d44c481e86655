"""The bridge to cell-eval: its metric functions on our means and DE tables, hence its numbers without its detours.

cell-eval's own evaluator recomputes the truth for every model, copies both matrices to guess their scale and writes
files into the working directory. Its public parts - the pair of AnnData, the DE comparison, the metric pipeline - need
none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_tahoe.evaluate._cells import concatenate
from scvi_tahoe.evaluate._differential_expression import LABEL_COLUMN, contained

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl
    from anndata import AnnData
    from numpy.typing import DTypeLike, NDArray

    from scvi_tahoe.evaluate._cells import CellTable
    from scvi_tahoe.evaluate._group_statistics import GroupStatistics

__all__ = ["CELL_EVAL_PROFILES", "cell_eval_scores"]

#: cell-eval's profile for each of our presets
CELL_EVAL_PROFILES = {"vcc2025": "vcc", "minimal": "minimal", "full": "full"}
#: those with a metric of single cells; all others look at means and differential expression alone
_OF_CELLS = ("full",)
#: metrics over the whole panel that fail on one or two perturbations
_NEED_THREE = ["clustering_agreement", "pearson_edistance"]


def cell_eval_scores(
    *,
    observed: tuple[CellTable, GroupStatistics, pl.DataFrame],
    predicted: tuple[CellTable, GroupStatistics, pl.DataFrame],
    control: str,
    preset: str,
    controls: CellTable | None = None,
) -> pd.DataFrame:
    """Return cell-eval's metrics, one row a perturbation.

    Parameters
    ----------
    observed, predicted
        Cells of one context with their controls, their statistics and their differential expression.
    controls
        Control cells in the place of those of ``predicted``, if it is not scored on its own.
    control
        Label of the control cells.
    preset
        Key of :data:`CELL_EVAL_PROFILES`.

    Returns
    -------
    Columns as cell-eval names them, index ``perturbation``.
    """
    from cell_eval import MetricPipeline, PerturbationAnndataPair, initialize_de_comparison

    if preset in _OF_CELLS:
        cells = predicted[0]
        if controls is not None:
            cells = concatenate(controls, cells, cells.perturbation != control)
        real, pred = (side.to_adata(perturbation_key=LABEL_COLUMN) for side in (observed[0], cells))
    else:
        real, pred = (_labels(side[1].perturbations, observed[0].genes, control) for side in (observed, predicted))
    pair = PerturbationAnndataPair(
        real=real,
        pred=pred,
        pert_col=LABEL_COLUMN,
        control_pert=control,
    )
    # the precision of the cells together with the controls that stand before them
    dtypes = [side.expression.dtype for side in (predicted[0], controls) if side is not None]
    pair.bulk_real["_default"] = _bulk(observed[1], control, observed[0].expression.dtype)
    pair.bulk_pred["_default"] = _bulk(predicted[1], control, np.result_type(*dtypes))
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


def _labels(perturbations: Sequence[str], genes: NDArray[np.str_], control: str) -> AnnData:
    """What cell-eval verifies of each side, without any cell."""
    from anndata import AnnData

    labels = [*perturbations, control]
    obs = pd.DataFrame({LABEL_COLUMN: pd.Categorical(labels)}, index=labels)
    return AnnData(obs=obs, var=pd.DataFrame(index=pd.Index(genes.astype(object))))


def _bulk(
    statistics: GroupStatistics, control: str, dtype: DTypeLike
) -> tuple[NDArray[np.object_], NDArray[np.floating]]:
    """Mean profiles as cell-eval stores them: sorted by label, control included, in the precision of the matrix."""
    labels = np.array([*statistics.perturbations, control], dtype=object)
    means = np.concatenate([statistics.mean, statistics.control_mean[None]])
    order = np.argsort(labels.astype(str))
    return labels[order], np.asfortranarray(means[order].astype(dtype))
