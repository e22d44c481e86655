"""Errors and correlations of mean profiles and deltas.

Shapes: **P** perturbations, **G** genes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["effect_size_ratio", "mean_absolute_error", "mean_squared_error", "pearson", "r2_weighted", "wmse"]


def mean_absolute_error(predicted: NDArray[np.floating], observed: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean absolute difference over genes, ``[P]``, in the units of the input, of ``[P, G]`` profiles or deltas."""
    return np.abs(predicted - observed).mean(axis=1)


def mean_squared_error(predicted: NDArray[np.floating], observed: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean squared difference over genes, ``[P]``, of ``[P, G]`` profiles or deltas."""
    return np.square(predicted - observed).mean(axis=1)


def pearson(predicted: NDArray[np.floating], observed: NDArray[np.floating]) -> NDArray[np.float64]:
    """Pearson correlation over genes, ``[P]``, of ``[P, G]`` deltas; NaN where one side is constant."""
    x = predicted - predicted.mean(axis=1, keepdims=True)
    y = observed - observed.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    # a constant row leaves rounding noise behind, which must not pass for a signal
    flat = (np.ptp(predicted, axis=1) == 0) | (np.ptp(observed, axis=1) == 0)
    return np.divide((x * y).sum(axis=1), norm, out=np.full(len(x), np.nan), where=~flat & (norm > 0))


def wmse(
    predicted: NDArray[np.floating], observed: NDArray[np.floating], weights: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Weighted mean squared error of mean profiles, ``[P]``.

    Parameters
    ----------
    predicted, observed
        Mean profiles in log1p units, ``[P, G]``.
    weights
        Gene weights of each perturbation, ``[P, G]``, each row summing to 1, see
        :func:`~scvi_tahoe.evaluate.gene_weights`.

    Notes
    -----
    Mejia et al., arXiv 2506.22641 (2025): errors count where a perturbation differs from the others, so the mean of all
    perturbations no longer looks good because most genes do not move.
    """
    return (weights * np.square(predicted - observed)).sum(axis=1)


def r2_weighted(
    predicted: NDArray[np.floating], observed: NDArray[np.floating], weights: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Weighted R2 of deltas against the mean of all perturbations, ``[P]``, best 1, may be negative.

    ``1 - sum(w (d - e)^2) / sum(w (d - m)^2)``, with observed and predicted deltas ``d`` and ``e`` and the weighted
    mean ``m`` of ``d`` over genes.

    Parameters
    ----------
    predicted, observed
        Deltas against the mean of the observed perturbations, ``[P, G]``.
    weights
        Gene weights of each perturbation, ``[P, G]``, each row summing to 1.

    Notes
    -----
    Mejia et al., arXiv 2506.22641 (2025). NaN where the observed delta is constant.
    """
    residual = (weights * np.square(observed - predicted)).sum(axis=1)
    center = (weights * observed).sum(axis=1, keepdims=True)
    total = (weights * np.square(observed - center)).sum(axis=1)
    return 1 - np.divide(residual, total, out=np.full(len(total), np.nan), where=total > 0)


def effect_size_ratio(predicted: NDArray[np.floating], observed: NDArray[np.floating]) -> NDArray[np.float64]:
    """Length of the predicted delta over that of the observed one, ``[P]``; NaN where nothing was observed to change.

    PDS (L1) and DES can rise when predictions are merely inflated; this shows it.
    """
    length = np.linalg.norm(observed, axis=1)
    return np.divide(np.linalg.norm(predicted, axis=1), length, out=np.full(len(length), np.nan), where=length > 0)
