"""From a request to predicted cells: which conditions, from which control cells, into memory or a file."""

from __future__ import annotations

from scvi_tahoe.prediction._predictor import predict_cells
from scvi_tahoe.prediction._request import (
    PredictionData,
    PredictionRequest,
    arguments_for,
    arguments_for_observed,
    resolve_conditions,
)
