"""From a question to predicted cells: which conditions, from which control cells, into memory or a file."""

from __future__ import annotations

from scvi_tahoe.prediction._chunks import Chunk, Forward, default_batch_size
from scvi_tahoe.prediction._control_scale import warn_about_scale
from scvi_tahoe.prediction._counts import ControlCounts, counts_of_prediction
from scvi_tahoe.prediction._file import prediction_path
from scvi_tahoe.prediction._job import PredictionJob
from scvi_tahoe.prediction._request import (
    PredictionPlan,
    asked_in_order,
    cells_of_plan,
    conditions_asked,
    covered_by_asking,
    plan_prediction,
    resolve_conditions,
    with_residual_input,
)

__all__ = [
    "Chunk",
    "ControlCounts",
    "Forward",
    "PredictionJob",
    "PredictionPlan",
    "asked_in_order",
    "cells_of_plan",
    "conditions_asked",
    "counts_of_prediction",
    "covered_by_asking",
    "default_batch_size",
    "plan_prediction",
    "prediction_path",
    "resolve_conditions",
    "warn_about_scale",
    "with_residual_input",
]
