"""Metrics of mean profiles and deltas, which need no differential expression.

Shapes: **P** perturbations, **G** genes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.evaluate._discrimination import centroid_accuracy, discrimination_score_l1, pds_cosine
from scvi_tahoe.evaluate._metrics import register_metric

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._metrics import Comparison

_MEJIA = "Mejia et al., arXiv 2506.22641 (2025)"
_SYSTEMA = "Vinas Torne et al., Nature Biotechnology (2025), Systema"
_VCC2026 = "Virtual Cell Challenge 2026, cell-eval2"
_OURS = "this package"


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


@register_metric("mae", label="MAE", best=0, ceiling="absolute")
def _mae(sides: Comparison) -> NDArray[np.float64]:
    return np.abs(sides.predicted.mean - sides.observed.mean).mean(axis=1)


@register_metric("mse", label="MSE", best=0, ceiling="squared")
def _mse(sides: Comparison) -> NDArray[np.float64]:
    return np.square(sides.predicted.mean - sides.observed.mean).mean(axis=1)


@register_metric("mae_delta", label="MAE of deltas", best=0, ceiling="absolute")
def _mae_delta(sides: Comparison) -> NDArray[np.float64]:
    return np.abs(sides.predicted.delta - sides.observed.delta).mean(axis=1)


@register_metric("pearson_delta", label="Pearson of deltas", best=1, ceiling="spearman_brown")
def _pearson_delta(sides: Comparison) -> NDArray[np.float64]:
    return pearson(sides.predicted.delta, sides.observed.delta)


@register_metric("discrimination_score_l1", label="PDS (L1)", best=1, ceiling="spearman_brown")
def _discrimination_score_l1(sides: Comparison) -> NDArray[np.float64]:
    return discrimination_score_l1(sides.predicted.delta, sides.observed.delta, sides.target_gene)


@register_metric("pds_cosine", label="PDS (cosine, 2026)", best=1, ceiling="spearman_brown", source=_VCC2026)
def _pds_cosine(sides: Comparison) -> NDArray[np.float64]:
    return pds_cosine(sides.predicted.delta, sides.observed.delta, sides.target_gene)


@register_metric(
    "pearson_systema",
    label="Pearson to mean of perturbations",
    best=1,
    ceiling="spearman_brown",
    source=_SYSTEMA,
)
def _pearson_systema(sides: Comparison) -> NDArray[np.float64]:
    return pearson(sides.predicted.mean - sides.perturbed_mean, sides.observed.mean - sides.perturbed_mean)


@register_metric("centroid_accuracy", label="Centroid accuracy", best=1, ceiling="spearman_brown", source=_SYSTEMA)
def _centroid_accuracy(sides: Comparison) -> NDArray[np.float64]:
    return centroid_accuracy(sides.predicted.mean, sides.observed.mean)


@register_metric("wmse", label="Weighted MSE", best=0, ceiling="squared", source=_MEJIA)
def _wmse(sides: Comparison) -> NDArray[np.float64]:
    return wmse(sides.predicted.mean, sides.observed.mean, sides.weights)


@register_metric("r2_weighted", label="Weighted R2 of deltas", best=1, source=_MEJIA)
def _r2_weighted(sides: Comparison) -> NDArray[np.float64]:
    mean = sides.perturbed_mean
    return r2_weighted(sides.predicted.mean - mean, sides.observed.mean - mean, sides.weights)


@register_metric("effect_size_ratio", label="Effect size, predicted / observed", best=None, source=_OURS)
def _effect_size_ratio(sides: Comparison) -> NDArray[np.float64]:
    return effect_size_ratio(sides.predicted.delta, sides.observed.delta)


@register_metric("variance_ratio", label="Spread, predicted / observed", best=None, source=_OURS)
def _variance_ratio(sides: Comparison) -> NDArray[np.float64]:
    """Summed standard deviations over genes, predicted over observed, ``[P]``; 0 if predicted cells are alike."""
    spread = np.sqrt(sides.observed.variance).sum(axis=1)
    predicted = np.sqrt(sides.predicted.variance).sum(axis=1)
    return np.divide(predicted, spread, out=np.full(len(spread), np.nan), where=spread > 0)


@register_metric("zero_fraction_difference", label="Zeros, predicted - observed", best=None, source=_OURS)
def _zero_fraction_difference(sides: Comparison) -> NDArray[np.float64]:
    return (sides.predicted.zero_fraction - sides.observed.zero_fraction).mean(axis=1)
