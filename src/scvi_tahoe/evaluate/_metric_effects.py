"""Metrics of mean profiles and deltas, perturbation discrimination among them; no differential expression needed.

Shapes: **P** perturbations, **G** genes.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from scipy.spatial.distance import cdist

from scvi_tahoe._arguments import checked
from scvi_tahoe._names import perturbed_genes
from scvi_tahoe.evaluate._metrics import register_metric

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._metrics import Comparison

    F = TypeVar("F", bound=Callable[..., NDArray[np.floating]])

_MEJIA = "Mejia et al., arXiv 2506.22641 (2025)"
_SYSTEMA = "Vinas Torne et al., Nature Biotechnology (2025), Systema"
_VCC2026 = "Virtual Cell Challenge 2026, cell-eval2"
_OURS = "this package"
_SB = "spearman_brown"
_MEANS = ("predicted.mean", "observed.mean")
_DELTAS = ("predicted.delta", "observed.delta")


def _metric(name: str, *arrays: str, **info: Any) -> Callable[[F], F]:
    """Register the decorated function of arrays that :class:`Comparison` has under these names."""

    def register(function: F) -> F:
        register_metric(name, **info)(lambda sides: function(*attrgetter(*arrays)(sides)))
        return function

    return register


_metric("mae", *_MEANS, label="MAE", best=0, ceiling="absolute")(lambda x, y: np.abs(x - y).mean(axis=1))
_metric("mse", *_MEANS, label="MSE", best=0, ceiling="squared")(lambda x, y: np.square(x - y).mean(axis=1))
_metric("mae_delta", *_DELTAS, label="MAE of deltas", best=0, ceiling="absolute")(
    lambda x, y: np.abs(x - y).mean(axis=1)
)


@_metric("pearson_delta", *_DELTAS, label="Pearson of deltas", best=1, ceiling=_SB)
@checked()
def pearson(predicted: NDArray[np.floating], observed: NDArray[np.floating]) -> NDArray[np.float64]:
    """Pearson correlation over genes, ``[P]``, of ``[P, G]`` deltas; NaN if one side is constant."""
    x = predicted - predicted.mean(axis=1, keepdims=True)
    y = observed - observed.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    # a constant row leaves rounding noise behind, which must not pass for a signal
    flat = (np.ptp(predicted, axis=1) == 0) | (np.ptp(observed, axis=1) == 0)
    return np.divide((x * y).sum(axis=1), norm, out=np.full(len(x), np.nan), where=~flat & (norm > 0))


@register_metric("pearson_without_target", label="Pearson without target", best=1, ceiling=_SB, source=_OURS)
def _pearson_without_target(sides: Comparison) -> NDArray[np.float64]:
    # a knocked-down gene alone can carry the correlation of a perturbation that changes little else
    columns = perturbed_genes(sides.observed.perturbations, sides.genes)
    pairs = zip(sides.predicted.delta, sides.observed.delta, columns, strict=True)
    return np.array([pearson(*(np.delete(side, own)[None] for side in (x, y)))[0] for x, y, own in pairs])


@_metric("discrimination_score_l1", *_DELTAS, "target_gene", label="PDS (L1)", best=1, ceiling=_SB)
def discrimination_score_l1(
    predicted: NDArray[np.floating], observed: NDArray[np.floating], target_gene: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Return the PDS of the Virtual Cell Challenge 2025 for each perturbation, ``[P]``, best 1.

    ``1 - rank / P``, where ``rank`` counts the perturbations whose observed delta is nearer to the predicted one, by
    the sum of absolute differences over all genes but the prediction's own target. A prediction that says nothing
    scores ``0.5 + 1 / (2 P)`` on average.

    Deltas are in log1p units, ``[P, G]``, rows in the same order; ``target_gene``, ``[P]``, is the column of each
    perturbation's own gene, -1 if it is not among the genes.

    Notes
    -----
    Formula of cell-eval 0.8.2, ``discrimination_score``. Ties go to the perturbation that comes first, as there.
    """
    distance = cdist(predicted, observed, metric="cityblock")
    has_target = target_gene >= 0
    column = np.where(has_target, target_gene, 0)
    own_gene = np.abs(predicted[np.arange(len(predicted)), column][:, None] - observed[:, column].T)
    distance -= np.where(has_target[:, None], own_gene, 0)
    own = np.diag(distance)[:, None]
    earlier = np.tri(len(distance), k=-1, dtype=bool)
    rank = ((distance < own) | ((distance == own) & earlier)).sum(axis=1)
    return 1 - rank / len(distance)


@_metric("pds_cosine", *_DELTAS, "target_gene", label="PDS (cosine, 2026)", best=1, ceiling=_SB, source=_VCC2026)
def pds_cosine(
    predicted: NDArray[np.floating], observed: NDArray[np.floating], target_gene: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Return the cosine PDS in the style of the Virtual Cell Challenge 2026 for each perturbation, ``[P]``, best 1.

    ``1 - rank / (P - 1)``, where ``rank`` counts the perturbations whose observed delta has a larger cosine similarity
    to the predicted one, ties counted half. The target genes of *all* perturbations are left out, since a knocked-down
    gene gives its perturbation away. Chance is exactly 0.5; it does not change when a prediction is scaled.

    Arguments are those of :func:`~scvi_tahoe.evaluate.discrimination_score_l1`. In the challenge deltas come from
    counts per 50,000 summed over cells; here from log1p means (preset ``"vcc2026"`` gives the challenge's own number).

    Notes
    -----
    Definition of cell-eval2 (``pds_cosine``). A delta of length zero is equally similar to everything. NaN for a single
    perturbation, which cannot be distinguished from others.
    """
    n = len(predicted)
    if n < 2:
        return np.full(n, np.nan)
    kept = np.ones(predicted.shape[1], dtype=bool)
    kept[target_gene[target_gene >= 0]] = False
    similarity = unit_rows(predicted[:, kept]) @ unit_rows(observed[:, kept]).T
    own = np.diag(similarity)[:, None]
    tied = np.isclose(similarity, own, rtol=0, atol=1e-12)
    rank = ((similarity > own) & ~tied).sum(axis=1) + 0.5 * (tied.sum(axis=1) - 1)
    return 1 - rank / (n - 1)


@register_metric("pearson_systema", label="Pearson to mean of perturbations", best=1, ceiling=_SB, source=_SYSTEMA)
def _pearson_systema(sides: Comparison) -> NDArray[np.float64]:
    return pearson(sides.predicted.mean - sides.perturbed_mean, sides.observed.mean - sides.perturbed_mean)


@_metric("centroid_accuracy", *_MEANS, label="Centroid accuracy", best=1, ceiling=_SB, source=_SYSTEMA)
@checked()
def centroid_accuracy(predicted: NDArray[np.floating], observed: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the share of other perturbations whose observed mean is farther than the right one, ``[P]``, best 1.

    The inputs are mean profiles (not deltas), ``[P, G]``, rows in the same order; distances are Euclidean.

    Notes
    -----
    Centroid accuracy of Vinas Torne et al., Systema, Nature Biotechnology (2025). NaN for a single perturbation.
    """
    n = len(predicted)
    if n < 2:
        return np.full(n, np.nan)
    distance = cdist(predicted, observed)
    return (distance > np.diag(distance)[:, None]).sum(axis=1) / (n - 1)


@_metric("wmse", *_MEANS, "weights", label="Weighted MSE", best=0, ceiling="squared", source=_MEJIA)
def wmse(
    predicted: NDArray[np.floating], observed: NDArray[np.floating], weights: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Weighted mean squared error of mean profiles in log1p units, ``[P, G]``, of each perturbation, ``[P]``.

    ``weights``, ``[P, G]``, are those of :func:`~scvi_tahoe.evaluate.gene_weights`, each row summing to 1.

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
    mean ``m`` of ``d`` over genes; deltas and weights are ``[P, G]``, each row of weights summing to 1.

    Notes
    -----
    Mejia et al., arXiv 2506.22641 (2025). NaN if the observed delta is constant.
    """
    residual = (weights * np.square(observed - predicted)).sum(axis=1)
    center = (weights * observed).sum(axis=1, keepdims=True)
    total = (weights * np.square(observed - center)).sum(axis=1)
    return 1 - np.divide(residual, total, out=np.full(len(total), np.nan), where=total > 0)


@register_metric("r2_weighted", label="Weighted R2 of deltas", best=1, source=_MEJIA)
def _r2_weighted(sides: Comparison) -> NDArray[np.float64]:
    mean = sides.perturbed_mean
    return r2_weighted(sides.predicted.mean - mean, sides.observed.mean - mean, sides.weights)


@_metric("effect_size_ratio", *_DELTAS, label="Effect size, predicted / observed", best=None, source=_OURS)
@checked()
def effect_size_ratio(predicted: NDArray[np.floating], observed: NDArray[np.floating]) -> NDArray[np.float64]:
    """Length of the predicted delta over that of the observed one, ``[P]``; NaN if no observed gene changes.

    PDS (L1) and DES can rise when predictions are merely inflated; this shows it.
    """
    length = np.linalg.norm(observed, axis=1)
    return np.divide(np.linalg.norm(predicted, axis=1), length, out=np.full(len(length), np.nan), where=length > 0)


def unit_rows(matrix: NDArray[np.floating]) -> NDArray[np.float64]:
    """Divide each row by its length; a row of length zero stays."""
    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.divide(matrix, length, out=np.zeros(matrix.shape), where=length > 0)


@register_metric("variance_ratio", label="Spread, predicted / observed", best=None, source=_OURS)
def _variance_ratio(sides: Comparison) -> NDArray[np.float64]:
    # summed standard deviations over genes: 0 if predicted cells are alike
    predicted, observed = (np.sqrt(side.variance).sum(axis=1) for side in (sides.predicted, sides.observed))
    return np.divide(predicted, observed, out=np.full(len(observed), np.nan), where=observed > 0)


register_metric("zero_fraction_difference", label="Zeros, predicted - observed", best=None, source=_OURS)(
    lambda sides: (sides.predicted.zero_fraction - sides.observed.zero_fraction).mean(axis=1)
)
