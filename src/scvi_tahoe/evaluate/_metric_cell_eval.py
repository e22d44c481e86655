"""Metrics of cell-eval, computed by its own functions from our means and DE tables.

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
from scvi_tahoe.evaluate._metrics import METRICS, MetricInfo, register_metric

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl
    from anndata import AnnData
    from numpy.typing import DTypeLike, NDArray

    from scvi_tahoe.evaluate._cells import CellTable
    from scvi_tahoe.evaluate._group_statistics import GroupStatistics
    from scvi_tahoe.evaluate._metrics import CeilingRule, Comparison

#: cell-eval's metrics of single cells are in this profile only; all others look at means and differential expression
_PROFILE_OF_CELLS = "full"
#: metrics over the whole panel that fail on one or two perturbations
_NEED_THREE = ["clustering_agreement", "pearson_edistance"]
_SB: CeilingRule = "spearman_brown"

for _name, _info in {
    "overlap_at_N": MetricInfo(label="DES (overlap at N)", best=1, ceiling=_SB, needs_de=True),
    "mse_delta": MetricInfo(label="MSE of deltas", best=0, ceiling="squared"),
    "discrimination_score_l2": MetricInfo(label="PDS (L2)", best=1, ceiling=_SB),
    "discrimination_score_cosine": MetricInfo(label="PDS (cosine)", best=1, ceiling=_SB),
    "pearson_edistance": MetricInfo(label="Pearson of energy distances", best=1, whole_panel=True),
    "clustering_agreement": MetricInfo(label="Clustering agreement", best=1, whole_panel=True),
    **{
        f"{kind}_at_{n}": MetricInfo(label=f"{kind.title()} at {n}", best=1, ceiling=_SB, needs_de=True)
        for kind in ("overlap", "precision")
        for n in ("N", 50, 100, 200, 500)
        if (kind, n) != ("overlap", "N")
    },
    "de_spearman_sig": MetricInfo(label="Spearman of DE counts", best=1, ceiling=_SB, needs_de=True, whole_panel=True),
    "de_direction_match": MetricInfo(label="Direction of DE genes", best=1, ceiling=_SB, needs_de=True),
    "de_spearman_lfc_sig": MetricInfo(label="Spearman of DE fold changes", best=1, ceiling=_SB, needs_de=True),
    "de_sig_genes_recall": MetricInfo(label="Recall of DE genes", best=1, ceiling=_SB, needs_de=True),
    "de_nsig_counts_real": MetricInfo(label="DE genes, observed", best=None, needs_de=True),
    "de_nsig_counts_pred": MetricInfo(label="DE genes, predicted", best=None, needs_de=True),
    "pr_auc": MetricInfo(label="PR AUC of DE genes", best=1, ceiling=_SB, needs_de=True),
    "roc_auc": MetricInfo(label="ROC AUC of DE genes", best=1, ceiling=_SB, needs_de=True),
}.items():
    METRICS.register(_name, _info)


@register_metric("nsig_ratio", label="DE genes, predicted / observed", best=None, needs_de=True, source="this package")
def _nsig_ratio(sides: Comparison) -> NDArray[np.float64]:
    observed, predicted = np.asarray(sides.n_de_observed), np.asarray(sides.n_de_predicted)
    return np.divide(predicted, observed, out=np.full(len(observed), np.nan), where=observed > 0)


def cell_eval_scores(
    sides: Comparison, de_predicted: pl.DataFrame, *, profile: str, controls: CellTable | None = None
) -> pd.DataFrame:
    """Return the metrics of a profile of cell-eval, one row per perturbation, columns as cell-eval names them.

    Other ``controls`` than those among the predicted cells are put before them.
    """
    from cell_eval import MetricPipeline, PerturbationAnndataPair, initialize_de_comparison

    truth, cells = sides.truth, sides.predicted_cells
    if truth is None or cells is None:
        raise ValueError("cell-eval needs the cells of both sides.")
    control, de_observed = truth.control, truth.differential_expression  # tested here, where progress may be shown
    if profile == _PROFILE_OF_CELLS:
        whole = cells if controls is None else concatenate(controls, cells, cells.perturbation != control)
        real, pred = (side.to_adata(perturbation_key=LABEL_COLUMN) for side in (truth.cells, whole))
    else:
        real, pred = (_labels(side.perturbations, sides.genes, control) for side in (sides.observed, sides.predicted))
    pair = PerturbationAnndataPair(real=real, pred=pred, pert_col=LABEL_COLUMN, control_pert=control)
    # the precision of the cells together with the controls that stand before them
    dtypes = [side.expression.dtype for side in (cells, controls) if side is not None]
    pair.bulk_real["_default"] = _bulk(sides.observed, control, truth.cells.expression.dtype)
    pair.bulk_pred["_default"] = _bulk(sides.predicted, control, np.result_type(*dtypes))
    with contained():
        # a failing metric must raise: by default cell-eval logs it and leaves the column out
        pipeline = MetricPipeline(profile=profile, break_on_error=True)
        if len(truth.perturbations) < 3:
            pipeline.skip_metrics(_NEED_THREE)
        pipeline.compute_de_metrics(initialize_de_comparison(de_observed, de_predicted))
        pipeline.compute_anndata_metrics(pair)
        scores = pd.DataFrame(pipeline.get_results().to_dict(as_series=False)).set_index("perturbation")
    scores.index = scores.index.astype(str)
    return scores.reindex(list(truth.perturbations)).astype(float)


def _labels(perturbations: Sequence[str], genes: NDArray[np.str_], control: str) -> AnnData:
    """Make what cell-eval verifies of each side, without any cell."""
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
