"""How much of a predicted change is kept, by how strong it is for its gene.

Most genes do not answer to most perturbations, and what is predicted of them is small and not zero: a mean over what is
possible. Shares are learned on conditions that were predicted without themselves, so that squared and absolute errors
are small, and stronger changes keep at least the share of weaker ones. As perturbations are told apart less well by
weaker changes, shares are used where they take away enough of the absolute error.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import isotonic_regression

#: predicted changes, in root mean squares of their genes' changes, between which the share is the same
_EDGES = np.array([0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5])
_CENTERS = np.array([0.0, 0.075, 0.15, 0.25, 0.4, 0.625, 0.875, 1.25, 2.0, 3.5])
_MOST = 1.0  # largest share
_FEWEST = 6  # conditions that shares are learned from
_PULL = 20  # conditions' worth of a pull towards keeping all
_WORTH = 0.015  # share of the absolute error that has to be gained
_STEPS = 8  # of iteratively reweighted least squares
_ABSOLUTE = 0.2  # part of the loss that is absolute: more of it costs squared error and correlation
_LEAST = 0.01  # smallest absolute residual that counts as such, in units of their mean


def fit_shares(
    predicted_nG: np.ndarray, observed_nG: np.ndarray, scale_G: np.ndarray, weight_n: np.ndarray
) -> np.ndarray | None:
    """Learn shares by strength, ``[classes]``; None if there are too few conditions or little is gained.

    Parameters
    ----------
    predicted_nG, observed_nG
        Changes of conditions; NaN where they were not observed.
    scale_G
        Root mean square of each gene's changes.
    weight_n
        Weights of conditions.
    """
    n = len(predicted_nG)
    if n < _FEWEST:
        return None
    known = np.isfinite(observed_nG)
    predicted, observed = predicted_nG[known], observed_nG[known]
    weight = np.broadcast_to(weight_n[:, None], known.shape)[known]
    weight = weight / weight.sum()
    strength = np.searchsorted(_EDGES, np.abs(predicted / np.broadcast_to(scale_G, known.shape)[known]))
    apart = np.abs(observed - predicted)
    square, absolute = (max(float(weight @ x), 1e-300) for x in (np.square(apart), apart))
    shares = np.ones(len(_CENTERS))
    for _ in range(_STEPS):
        apart = np.maximum(np.abs(observed - shares[strength] * predicted), _LEAST * absolute)
        of_value = weight * ((1 - _ABSOLUTE) / square + 0.5 * _ABSOLUTE / absolute / apart)
        above = np.bincount(strength, of_value * predicted * observed, len(shares))
        below = np.bincount(strength, of_value * np.square(predicted), len(shares))
        best = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
        shares = np.clip(isotonic_regression(best, weights=np.maximum(below, 1e-300)).x, 0, _MOST)
    shares = (n * shares + _PULL) / (n + _PULL)
    gained = 1 - float(weight @ np.abs(observed - shares[strength] * predicted)) / absolute
    return shares if gained > _WORTH else None


def shaped(changes: np.ndarray, shares: np.ndarray, scale_G: np.ndarray) -> np.ndarray:
    """Keep shares of changes ``[..., G]``, between the centres of classes in proportion."""
    return changes * np.interp(np.abs(changes) / scale_G, _CENTERS, shares)
