"""How good is a prediction? Scores, baselines and ceilings for predicted perturbed cells of any model.

``evaluate(prediction, reference, ...)`` is the one call; :class:`EvaluationReference` keeps what several predictions
share. Nothing here imports torch.
"""

from __future__ import annotations

from scvi_tahoe.evaluate._baseline_prediction import BASELINES, baseline_prediction
from scvi_tahoe.evaluate._check import Check, EvaluationWarning, RepresentationError
from scvi_tahoe.evaluate._comparison import baseline_results, compare_results
from scvi_tahoe.evaluate._evaluate import evaluate
from scvi_tahoe.evaluate._metric_info import METRICS, MetricInfo, metric_info
from scvi_tahoe.evaluate._overall import Vcc2025Terms, vcc2025_overall
from scvi_tahoe.evaluate._quantile_mapping import quantile_map
from scvi_tahoe.evaluate._reference import EvaluationReference
from scvi_tahoe.evaluate._result import Effects, EvaluationResult
from scvi_tahoe.evaluate._scoring import PRESETS
from scvi_tahoe.evaluate._space_check import PREDICTION_RECORD

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
    "MetricInfo",
    "RepresentationError",
    "Vcc2025Terms",
    "baseline_prediction",
    "baseline_results",
    "compare_results",
    "evaluate",
    "metric_info",
    "quantile_map",
    "vcc2025_overall",
]
