"""Preset ``"perturbench"``: the four scores of PerturBench, and their ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from scvi_tahoe.evaluate._exact_means import column_mean
from scvi_tahoe.evaluate._metrics import METRICS, MetricInfo
from scvi_tahoe.evaluate._presets import PRESETS, Preset
from scvi_tahoe.evaluate._summary import bootstrap_means, interval, mean_over_contexts

if TYPE_CHECKING:
    from scvi_tahoe.evaluate._cells import CellTable
    from scvi_tahoe.evaluate._context_truth import ContextTruth
    from scvi_tahoe.evaluate._reference import EvaluationReference
    from scvi_tahoe.evaluate._result import EvaluationResult

_PSEUDO = 0.1  # added to mean log1p expression before the logarithm, as there
_SCORES = {
    "rmse_average": ("RMSE (PerturBench)", 0),
    "rmse_rank_average": ("Rank by RMSE (PerturBench)", 0),
    "cosine_logfc": ("Cosine of log fold changes (PerturBench)", 1),
    "cosine_rank_logfc": ("Rank by cosine (PerturBench)", 0),
}
for _name, (_label, _best) in _SCORES.items():
    METRICS.register(_name, MetricInfo(label=_label, best=_best, source="Wu et al., arXiv 2408.10609, PerturBench"))


def with_scores_of_perturbench(
    result: EvaluationResult, predicted: CellTable, reference: EvaluationReference
) -> EvaluationResult:
    """Return the result with PerturBench's scores in front.

    Root mean squared error of mean log1p expression; cosine of log fold changes, ``log2((m + .1) / (c + .1))`` of means
    ``m`` and of the controls ``c``; and for each the rank of a perturbation's own prediction among all predictions of
    the context, seen from its observed cells, from 0 (best) to below 1 (.5 by chance). Ties count half, where they are
    broken at random there; both sides have the observed controls. Means are over all conditions, as there, whatever
    their context.
    """
    found = {c: scores_of_context(truth, predicted.of_context(c)) for c, truth in reference.contexts.items()}
    scores = pd.concat(found, names=["context", "perturbation"])
    table = pd.DataFrame(np.nan, index=list(_SCORES), columns=result.summary.columns, dtype=object)
    as_one_context = pd.concat({"all": scores.reset_index(drop=True)}, names=["context", "perturbation"])
    table["value"] = mean_over_contexts(as_one_context)
    table["low"], table["high"] = interval(bootstrap_means([as_one_context], seed=result.provenance["seed"])[0])
    table["direction"] = ["higher" if best else "lower" for _, best in _SCORES.values()]
    table["n_perturbations"], table["n_missing"] = scores.notna().sum(), scores.isna().sum()
    table = table.astype(dict.fromkeys(table.columns.drop("direction"), float))
    return replace(
        result, per_perturbation=scores.join(result.per_perturbation),
        summary=pd.concat([table, result.summary]).rename_axis("metric"),
    )  # fmt: skip


def scores_of_context(truth: ContextTruth, predicted: CellTable) -> pd.DataFrame:
    """Score the perturbations of one context, one row for each."""
    labels = list(truth.perturbations)
    observed_PG, predicted_PG = (
        np.stack([column_mean(side.block(truth.context, label)) for label in labels])
        for side in (truth.cells, predicted)
    )
    base = np.log2(column_mean(truth.controls.expression) + _PSEUDO)
    fold = [np.log2(np.maximum(mean, 0) + _PSEUDO) - base for mean in (predicted_PG, observed_PG)]
    error = cdist(predicted_PG, observed_PG) / np.sqrt(observed_PG.shape[1])
    apart = cdist(*fold, metric="cosine")
    return pd.DataFrame(
        {
            "rmse_average": np.diag(error), "rmse_rank_average": _rank(error),
            "cosine_logfc": 1 - np.diag(apart), "cosine_rank_logfc": _rank(np.nan_to_num(apart, nan=1.0)),
        },
        index=pd.Index(labels, name="perturbation"),
    )  # fmt: skip


def _rank(distance_PP: np.ndarray) -> np.ndarray:
    """Rank of the own prediction (rows) among all for each observed perturbation (columns), as a share."""
    own = np.diag(distance_PP)
    ties = (distance_PP == own).sum(axis=0) - 1
    return ((distance_PP < own).sum(axis=0) + ties / 2) / len(distance_PP)


PRESETS.register("perturbench", Preset(extend=with_scores_of_perturbench))
