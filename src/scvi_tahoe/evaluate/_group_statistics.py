"""Mean, spread and zeros of every condition of a context, and the gene weights that follow from them.

Shapes: **P** perturbations, **G** genes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from scvi_tahoe.evaluate._differential_expression import available_cores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable, Matrix


@dataclass(frozen=True)
class GroupStatistics:
    """Statistics of the cells of each perturbation of one context, and of the controls its deltas are taken against."""

    #: sorted labels, control left out, ``[P]``
    perturbations: tuple[str, ...]
    #: over the cells of each perturbation, ``[P, G]``; mean and variance (of the sample, ``n - 1``) of log1p expression
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    zero_fraction: NDArray[np.float64]
    #: cells of each perturbation, ``[P]``
    n_cells: NDArray[np.intp]
    #: the same over the control cells, ``[G]``
    control_mean: NDArray[np.float64]
    control_variance: NDArray[np.float64]
    control_zero_fraction: NDArray[np.float64]
    #: number of control cells
    n_control: int

    @property
    def delta(self) -> NDArray[np.float64]:
        """Mean of each perturbation minus mean of the controls, ``[P, G]``."""
        return self.mean - self.control_mean


_CONTROL_SIDE = attrgetter("control_mean", "control_variance", "control_zero_fraction", "n_control")


def group_statistics(
    cells: CellTable,
    context: str,
    perturbations: tuple[str, ...],
    *,
    control: str,
    controls_of: GroupStatistics | None = None,
) -> GroupStatistics:
    """Compute :class:`GroupStatistics` of one context, its perturbations in the order given.

    Means are summed in float64 and so agree with those of cell-eval to the last digit of float32. ``control`` labels
    the control cells; if ``controls_of`` is given, its control side is taken, as with real ones under a prediction.
    """
    with ThreadPoolExecutor(available_cores()) as pool:  # numpy lets go of the interpreter
        means, variances, zeros, n_cells = zip(*pool.map(lambda p: _moments(cells.block(context, p)), perturbations))
    controls = _moments(cells.block(context, control)) if controls_of is None else _CONTROL_SIDE(controls_of)
    mean, variance, zero_fraction = (np.stack(part) for part in (means, variances, zeros))
    n = np.array(n_cells, dtype=np.intp)
    return GroupStatistics(perturbations, mean, variance, zero_fraction, n, *controls)


def _moments(block: Matrix) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], int]:
    """Mean, variance and zero fraction over rows, and the number of rows."""
    n = block.shape[0]
    if sp.issparse(block):
        total, n_genes = block.data.astype(np.float64), block.shape[1]
        mean = np.bincount(block.indices, weights=total, minlength=n_genes) / n
        square = np.bincount(block.indices, weights=total**2, minlength=n_genes)
        n_positive = np.bincount(block.indices, minlength=n_genes)
    else:
        mean = block.mean(axis=0, dtype=np.float64)
        square = np.einsum("cg,cg->g", block, block).astype(np.float64)
        n_positive = (block != 0).view(np.uint8).sum(axis=0, dtype=np.uint32)  # twice as fast as count_nonzero
    # one pass: rounding may leave a constant gene a hair below zero
    variance = np.maximum(square - n * mean**2, 0) / max(n - 1, 1)
    return mean, variance, 1 - n_positive / n, n


def gene_weights(observed: GroupStatistics) -> NDArray[np.float64]:
    """Return gene weights of each perturbation of one context, ``[P, G]``, rows summing to 1.

    The absolute t statistic of the perturbation's cells against the cells of all other perturbations is scaled to 0-1
    over genes, squared, and divided by its sum.

    Notes
    -----
    Weighting of Mejia et al., arXiv 2506.22641 (2025), as their published analysis computes it: scores of scanpy's
    ``rank_genes_groups(method="t-test_overestim_var", reference="rest")`` without the control cells, absolute, min-max
    scaled, squared, normalised. "Overestimated" means that the variance of the rest is divided by the number of cells
    of the perturbation, not of the rest, so that weights depend less on how many other cells there are. With a single
    perturbation its cells are compared with the controls; if no gene stands out, all weigh the same.
    """
    n = observed.n_cells[:, None].astype(np.float64)
    if len(n) == 1:
        rest_mean, rest_variance = observed.control_mean[None], observed.control_variance[None]
    else:
        rest_n = n.sum() - n
        total = n * observed.mean
        square = (n - 1) * observed.variance + n * observed.mean**2
        rest_mean = (total.sum(axis=0) - total) / rest_n
        rest_square = square.sum(axis=0) - square
        rest_variance = np.maximum(rest_square - rest_n * rest_mean**2, 0) / np.maximum(rest_n - 1, 1)
    error = (observed.variance + rest_variance) / np.maximum(n, 1)
    difference = np.abs(observed.mean - rest_mean)
    t = np.divide(difference, np.sqrt(error), out=np.zeros_like(difference), where=error > 0)
    low, high = t.min(axis=1, keepdims=True), t.max(axis=1, keepdims=True)
    spread = high - low
    scaled = np.divide(t - low, spread, out=np.ones_like(t), where=spread > 0) ** 2
    return scaled / scaled.sum(axis=1, keepdims=True)
