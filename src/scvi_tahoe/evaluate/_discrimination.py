"""Perturbation discrimination: is a prediction nearer to its own perturbation than to the others?

Shapes: **P** perturbations, **G** genes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def discrimination_score_l1(
    predicted: NDArray[np.floating], observed: NDArray[np.floating], target_gene: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Return the PDS of the Virtual Cell Challenge 2025 for each perturbation, ``[P]``, best 1.

    ``1 - rank / P``, where ``rank`` counts the perturbations whose observed delta is nearer to the predicted one, by
    the sum of absolute differences over all genes but the prediction's own target. A prediction that says nothing
    scores ``0.5 + 1 / (2 P)`` on average.

    Parameters
    ----------
    predicted, observed
        Deltas in log1p units, ``[P, G]``, rows in the same order.
    target_gene
        Column of each perturbation's own gene, ``[P]``, -1 where it is not among the genes.

    Notes
    -----
    Formula of cell-eval 0.8.2, ``discrimination_score``. Ties go to the perturbation that comes first, as there.
    """
    from scipy.spatial.distance import cdist

    distance = cdist(predicted, observed, metric="cityblock")
    has_target = target_gene >= 0
    column = np.where(has_target, target_gene, 0)
    own_gene = np.abs(predicted[np.arange(len(predicted)), column][:, None] - observed[:, column].T)
    distance -= np.where(has_target[:, None], own_gene, 0)
    own = np.diag(distance)[:, None]
    earlier = np.tri(len(distance), k=-1, dtype=bool)
    rank = ((distance < own) | ((distance == own) & earlier)).sum(axis=1)
    return 1 - rank / len(distance)


def pds_cosine(
    predicted: NDArray[np.floating], observed: NDArray[np.floating], target_gene: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Return the cosine PDS in the style of the Virtual Cell Challenge 2026 for each perturbation, ``[P]``, best 1.

    ``1 - rank / (P - 1)``, where ``rank`` counts the perturbations whose observed delta has a larger cosine similarity
    to the predicted one, ties counted half. The target genes of *all* perturbations are left out, since a knocked-down
    gene gives its perturbation away. Chance is exactly 0.5; it does not change when a prediction is scaled.

    Parameters
    ----------
    predicted, observed
        Deltas in log1p units, ``[P, G]``, rows in the same order. In the challenge they come from counts per 50,000
        summed over cells; here from the log1p means at hand (preset ``"vcc2026"`` gives the challenge's own number).
    target_gene
        Column of each perturbation's own gene, ``[P]``, -1 where it is not among the genes.

    Notes
    -----
    Definition of cell-eval2 (``pds_cosine``). A delta of length zero is equally similar to everything. NaN for a single
    perturbation, which has nothing to be told apart from.
    """
    n = len(predicted)
    if n < 2:
        return np.full(n, np.nan)
    kept = np.ones(predicted.shape[1], dtype=bool)
    kept[target_gene[target_gene >= 0]] = False
    similarity = _unit_rows(predicted[:, kept]) @ _unit_rows(observed[:, kept]).T
    own = np.diag(similarity)[:, None]
    tied = np.isclose(similarity, own, rtol=0, atol=1e-12)
    rank = ((similarity > own) & ~tied).sum(axis=1) + 0.5 * (tied.sum(axis=1) - 1)
    return 1 - rank / (n - 1)


def centroid_accuracy(predicted: NDArray[np.floating], observed: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the share of other perturbations whose observed mean is farther than the right one, ``[P]``, best 1.

    Parameters
    ----------
    predicted, observed
        Mean profiles (not deltas), ``[P, G]``, rows in the same order; distances are Euclidean.

    Notes
    -----
    Centroid accuracy of Vinas Torne et al., Systema, Nature Biotechnology (2025). NaN for a single perturbation.
    """
    from scipy.spatial.distance import cdist

    n = len(predicted)
    if n < 2:
        return np.full(n, np.nan)
    distance = cdist(predicted, observed)
    return (distance > np.diag(distance)[:, None]).sum(axis=1) / (n - 1)


def _unit_rows(matrix: NDArray[np.floating]) -> NDArray[np.float64]:
    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.divide(matrix, length, out=np.zeros(matrix.shape), where=length > 0)
