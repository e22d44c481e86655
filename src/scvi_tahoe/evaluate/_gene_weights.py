"""Which genes tell a perturbation from the others: the weights of WMSE and the weighted R2.

Shapes: **P** perturbations, **G** genes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._group_statistics import GroupStatistics

__all__ = ["gene_weights"]


def gene_weights(observed: GroupStatistics) -> NDArray[np.float64]:
    """Return gene weights of each perturbation, ``[P, G]``, rows summing to 1.

    The absolute t statistic of the perturbation's cells against the cells of all other perturbations is scaled to 0-1
    over genes, squared, and divided by its sum.

    Parameters
    ----------
    observed
        Statistics of the observed cells of one context.

    Notes
    -----
    Weighting of Mejia et al., arXiv 2506.22641 (2025), as their published analysis computes it: scores of scanpy's
    ``rank_genes_groups(method="t-test_overestim_var", reference="rest")`` without the control cells, absolute, min-max
    scaled, squared, normalised. "Overestimated" means that the variance of the rest is divided by the number of cells
    of the perturbation, not of the rest, so that weights depend less on how many other cells there are. With a single
    perturbation its cells are compared with the controls; where no gene stands out, all weigh the same.
    """
    n = observed.n_cells[:, None].astype(np.float64)
    rest_mean, rest_variance = _rest(observed)
    error = (observed.variance + rest_variance) / np.maximum(n, 1)
    difference = np.abs(observed.mean - rest_mean)
    t = np.divide(difference, np.sqrt(error), out=np.zeros_like(difference), where=error > 0)
    low, high = t.min(axis=1, keepdims=True), t.max(axis=1, keepdims=True)
    spread = high - low
    scaled = np.divide(t - low, spread, out=np.ones_like(t), where=spread > 0) ** 2
    return scaled / scaled.sum(axis=1, keepdims=True)


def _rest(observed: GroupStatistics) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance of the cells of all other perturbations, ``[P, G]`` each."""
    n = observed.n_cells[:, None].astype(np.float64)
    if len(n) == 1:
        return observed.control_mean[None], observed.control_variance[None]
    total = n * observed.mean
    square = (n - 1) * observed.variance + n * observed.mean**2
    rest_n = n.sum() - n
    rest_mean = (total.sum(axis=0) - total) / rest_n
    rest_square = square.sum(axis=0) - square
    return rest_mean, np.maximum(rest_square - rest_n * rest_mean**2, 0) / np.maximum(rest_n - 1, 1)
