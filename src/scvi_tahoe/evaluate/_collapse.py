"""Are the predicted changes of different perturbations more alike than the observed ones?

Shapes: **P** perturbations, **G** genes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.evaluate._check import graded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._check import Check

__all__ = ["check_collapse", "mean_cosine"]

#: largest difference without a warning: replicates of the shipped screens stay below 0.1, one change for all lies above
#: 0.3 (benchmarks/evaluate_calibration.py, benchmarks/collapse_alarm.py)
_COLLAPSE = 0.25


def mean_cosine(delta_PG: NDArray[np.floating]) -> float:
    """Mean cosine over pairs of different perturbations; NaN where fewer than two change at all.

    Parameters
    ----------
    delta_PG
        Deltas of the perturbations of one context.
    """
    length = np.linalg.norm(delta_PG, axis=1)
    unit = delta_PG[length > 0] / length[length > 0, None]
    n = len(unit)
    if n < 2:
        return float("nan")
    return float((np.square(unit.sum(axis=0)).sum() - n) / (n * (n - 1)))


def check_collapse(predicted_PG: NDArray[np.floating], observed_cosine: float, *, of: str = "observed") -> Check:
    """Warn if predicted deltas of one context have a larger mean cosine than observed ones, beyond sampling noise.

    Parameters
    ----------
    predicted_PG
        Predicted deltas of the perturbations of one context.
    observed_cosine
        :func:`mean_cosine` of observed deltas; NaN where it is not known, which passes.
    of
        What was observed, for the message.
    """
    cosine = mean_cosine(predicted_PG)
    message = (
        f"predicted deltas of different perturbations have a mean cosine of {cosine:.2f} ({of}: "
        f"{observed_cosine:.2f}): the model predicts nearly the same change for all of them."
    )
    return graded("mode collapse", cosine - observed_cosine, message=message, warn=(-np.inf, _COLLAPSE))
