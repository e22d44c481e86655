"""Preset ``"cell"``: co-expression of the genes that respond, by cell-eval2, from raw counts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_tahoe._compat import require
from scvi_tahoe.evaluate._cells import concatenate
from scvi_tahoe.evaluate._differential_expression import LABEL_COLUMN, contained
from scvi_tahoe.evaluate._metrics import METRICS, MetricInfo
from scvi_tahoe.evaluate._preset_vcc2026 import config_of_2026
from scvi_tahoe.evaluate._presets import PRESETS, Preset
from scvi_tahoe.evaluate._summary import bootstrap_means, interval, mean_over_contexts

if TYPE_CHECKING:
    from scvi_tahoe.evaluate._cells import CellTable
    from scvi_tahoe.evaluate._context_truth import ContextTruth
    from scvi_tahoe.evaluate._reference import EvaluationReference
    from scvi_tahoe.evaluate._result import EvaluationResult

_SCORES = {"cell_cov_corr": ("Co-expression of responding genes", 1), "cell_cov_eig_ratio": ("Its strength", None)}
for _name, (_label, _best) in _SCORES.items():
    METRICS.register(_name, MetricInfo(label=_label, best=_best, source="cell-eval2, profile cell"))


def with_cell_scores(
    result: EvaluationResult, predicted: CellTable, reference: EvaluationReference
) -> EvaluationResult:
    """Return the result with the scores of cell-eval2's profile ``cell`` in front.

    ``cell_cov_corr``: correlation of the observed and the predicted correlations between responding genes over cells;
    ``cell_cov_eig_ratio``: their largest eigenvalue, predicted over observed, 1 if the strength is right. NaN for
    perturbations with fewer than 50 cells or 20 responding genes.
    """
    found = {c: _context_scores(truth, predicted.of_context(c)) for c, truth in reference.contexts.items()}
    scores = pd.concat(found, names=["context", "perturbation"])
    table = pd.DataFrame(np.nan, index=list(_SCORES), columns=result.summary.columns, dtype=object)
    if scores.notna().any(axis=None):
        table["value"] = mean_over_contexts(scores)
        table["low"], table["high"] = interval(bootstrap_means([scores], seed=result.provenance["seed"])[0])
    table["direction"] = [METRICS[name].direction for name in _SCORES]
    table["n_perturbations"], table["n_missing"] = scores.notna().sum(), scores.isna().sum()
    table = table.astype(dict.fromkeys(table.columns.drop("direction"), float))
    return replace(
        result, per_perturbation=scores.join(result.per_perturbation),
        summary=pd.concat([table, result.summary]).rename_axis("metric"),
    )  # fmt: skip


def _context_scores(truth: ContextTruth, predicted: CellTable) -> pd.DataFrame:
    cell_eval2 = require("cell_eval2", "vcc2026")
    both = concatenate(truth.controls, predicted, predicted.perturbation != truth.control)
    with contained():
        scores = cell_eval2.compute_metrics(
            both.to_adata(perturbation_key=LABEL_COLUMN), truth.cells.to_adata(perturbation_key=LABEL_COLUMN),
            config=replace(config_of_2026(truth), metrics=list(_SCORES)),
        )  # fmt: skip
    wide = pd.DataFrame(scores.pivot(on="metric", index="perturbation", values="value").to_dict(as_series=False))
    wide = wide.set_index("perturbation") if "perturbation" in wide else wide
    return wide.reindex(index=list(truth.perturbations), columns=list(_SCORES)).astype(float)


PRESETS.register("cell", Preset(from_counts=True, extend=with_cell_scores))
