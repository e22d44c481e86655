"""How good is a prediction? Scores, baselines and ceilings for predicted perturbed cells of any model.

``evaluate(prediction, reference, ...)`` is the one call; :class:`EvaluationReference` keeps what several predictions
share. Nothing here imports torch.
"""

from __future__ import annotations

import sys
from types import ModuleType

from scvi_tahoe.evaluate._baseline_prediction import BASELINES, baseline_prediction
from scvi_tahoe.evaluate._check import Check, EvaluationWarning, RepresentationError
from scvi_tahoe.evaluate._collapse import check_collapse, mean_cosine
from scvi_tahoe.evaluate._discrimination import centroid_accuracy, discrimination_score_l1, pds_cosine
from scvi_tahoe.evaluate._energy_distance import energy_distance, fit_components
from scvi_tahoe.evaluate._errors import effect_size_ratio, pearson, r2_weighted, wmse
from scvi_tahoe.evaluate._evaluate import baseline_results, evaluate
from scvi_tahoe.evaluate._gene_weights import gene_weights
from scvi_tahoe.evaluate._group_statistics import GroupStatistics, group_statistics
from scvi_tahoe.evaluate._metric_info import METRICS, MetricInfo, metric_info
from scvi_tahoe.evaluate._overall import Vcc2025Terms, vcc2025_overall
from scvi_tahoe.evaluate._quantile_mapping import quantile_map
from scvi_tahoe.evaluate._reference import EvaluationReference
from scvi_tahoe.evaluate._result import Effects, EvaluationResult, compare_results, strata
from scvi_tahoe.evaluate._scoring import PRESETS
from scvi_tahoe.evaluate._space_check import PREDICTION_RECORD
from scvi_tahoe.evaluate._submission import submission
from scvi_tahoe.evaluate._submission_2026 import Rules2026

__all__ = [
    "BASELINES",
    "METRICS",
    "PREDICTION_RECORD",
    "PRESETS",
    "Check",
    "Effects",
    "EvaluationReference",
    "EvaluationResult",
    "EvaluationWarning",
    "GroupStatistics",
    "MetricInfo",
    "RepresentationError",
    "Rules2026",
    "Vcc2025Terms",
    "baseline_prediction",
    "baseline_results",
    "centroid_accuracy",
    "check_collapse",
    "compare_results",
    "discrimination_score_l1",
    "effect_size_ratio",
    "energy_distance",
    "evaluate",
    "fit_components",
    "gene_weights",
    "group_statistics",
    "mean_cosine",
    "metric_info",
    "pds_cosine",
    "pearson",
    "quantile_map",
    "r2_weighted",
    "strata",
    "submission",
    "vcc2025_overall",
    "wmse",
]


class _CallablePackage(ModuleType):
    """Lets ``scvi_tahoe.evaluate(...)`` work although the package of that name holds the function."""

    __call__ = staticmethod(evaluate)


sys.modules[__name__].__class__ = _CallablePackage
