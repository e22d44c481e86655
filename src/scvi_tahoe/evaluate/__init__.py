"""How good is a prediction? Scores, baselines and ceilings for predicted perturbed cells of any model.

``evaluate(prediction, reference, ...)`` is the one call; :class:`EvaluationReference` keeps what several predictions
share. Nothing here imports torch.
"""

from __future__ import annotations

import sys
from types import ModuleType

import scvi_tahoe._names as _names
from scvi_tahoe.evaluate._arithmetic import RidgeFit, SeenChanges, nearest_mean
from scvi_tahoe.evaluate._baseline_transfer import quantile_map
from scvi_tahoe.evaluate._baselines import BASELINES, baseline_prediction, register_baseline, shifted_controls
from scvi_tahoe.evaluate._checks import Check, EvaluationWarning, RepresentationError, checks_table, raise_or_warn
from scvi_tahoe.evaluate._evaluate import baseline_results, evaluate, verify_reference
from scvi_tahoe.evaluate._group_statistics import GroupStatistics, gene_weights, group_statistics
from scvi_tahoe.evaluate._input_checks import PREDICTION_RECORD, check_conditions
from scvi_tahoe.evaluate._metric_effects import (
    centroid_accuracy,
    discrimination_score_l1,
    effect_size_ratio,
    pds_cosine,
    pearson,
    r2_weighted,
    wmse,
)
from scvi_tahoe.evaluate._metric_energy_distance import energy_distance, energy_distances, fit_components
from scvi_tahoe.evaluate._metrics import METRICS, MetricInfo, metric_info, register_metric
from scvi_tahoe.evaluate._other_models import as_prediction, plain_label, read_split, write_scperturbench
from scvi_tahoe.evaluate._prediction_checks import check_collapse, likeness, mean_cosine
from scvi_tahoe.evaluate._presets import PRESETS, Preset, Vcc2025Terms, overall_title, vcc2025_overall
from scvi_tahoe.evaluate._reference import EvaluationReference
from scvi_tahoe.evaluate._result import Effects, EvaluationResult, compare_results, strata
from scvi_tahoe.evaluate._submission import Rules2026, submission
from scvi_tahoe.evaluate._verdict import Verdict, paired_differences

__all__ = [
    "BASELINES",
    "METRICS",
    "PRESETS",
    "Check",
    "Effects",
    "EvaluationReference",
    "EvaluationResult",
    "EvaluationWarning",
    "GroupStatistics",
    "MetricInfo",
    "Preset",
    "RepresentationError",
    "Rules2026",
    "Verdict",
    "as_prediction",
    "baseline_prediction",
    "baseline_results",
    "centroid_accuracy",
    "check_collapse",
    "compare_results",
    "discrimination_score_l1",
    "effect_size_ratio",
    "energy_distance",
    "energy_distances",
    "evaluate",
    "gene_weights",
    "mean_cosine",
    "metric_info",
    "paired_differences",
    "pds_cosine",
    "pearson",
    "plain_label",
    "quantile_map",
    "r2_weighted",
    "read_split",
    "register_baseline",
    "register_metric",
    "shifted_controls",
    "strata",
    "submission",
    "wmse",
    "write_scperturbench",
]


# a file that defines a metric, a preset or a baseline registers it
_names.import_files(__name__, "_metric_", "_preset_", "_baseline_")


class _CallablePackage(ModuleType):
    """Lets ``scvi_tahoe.evaluate(...)`` work although the package of that name holds the function."""

    __call__ = staticmethod(evaluate)


sys.modules[__name__].__class__ = _CallablePackage
