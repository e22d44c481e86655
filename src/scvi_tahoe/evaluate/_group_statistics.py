"""Mean, spread and zeros of every condition of a context, in one pass over its cells.

Shapes: **P** perturbations, **G** genes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from scvi_tahoe.evaluate._differential_expression import available_cores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable, Matrix

__all__ = ["GroupStatistics", "group_statistics"]


@dataclass(frozen=True)
class GroupStatistics:
    """Statistics of the cells of each perturbation of one context, and of the controls its deltas are taken against.

    Attributes
    ----------
    perturbations
        Sorted labels, control left out, ``[P]``.
    mean, variance, zero_fraction
        Over the cells of each perturbation, ``[P, G]``; mean and variance (of the sample, ``n - 1``) of log1p
        expression.
    n_cells
        Cells of each perturbation, ``[P]``.
    control_mean, control_variance, control_zero_fraction
        The same over the control cells, ``[G]``.
    n_control
        Number of control cells.
    """

    perturbations: tuple[str, ...]
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    zero_fraction: NDArray[np.float64]
    n_cells: NDArray[np.intp]
    control_mean: NDArray[np.float64]
    control_variance: NDArray[np.float64]
    control_zero_fraction: NDArray[np.float64]
    n_control: int

    @property
    def delta(self) -> NDArray[np.float64]:
        """Mean of each perturbation minus mean of the controls, ``[P, G]``."""
        return self.mean - self.control_mean


def group_statistics(
    cells: CellTable,
    context: str,
    perturbations: tuple[str, ...],
    *,
    control: str,
    controls_of: GroupStatistics | None = None,
) -> GroupStatistics:
    """Compute :class:`GroupStatistics` of one context.

    Means are summed in float64 and so agree with those of cell-eval to the last digit of float32.

    Parameters
    ----------
    cells
        Cells, controls of the context included unless ``controls_of`` is given.
    context
        Context to look at.
    perturbations
        Perturbations to look at, in the order wanted.
    control
        Label of the control cells.
    controls_of
        Take the control side from these statistics: how the real controls come under a prediction.
    """
    with ThreadPoolExecutor(available_cores()) as pool:  # numpy lets go of the interpreter
        blocks = [*pool.map(lambda p: _moments(cells.block(context, p)), perturbations)]
    mean, variance, zeros = (np.stack(part) for part in zip(*(block[:3] for block in blocks)))
    if controls_of is None:
        control_side = _moments(cells.block(context, control))
    else:
        control_side = (
            controls_of.control_mean,
            controls_of.control_variance,
            controls_of.control_zero_fraction,
            controls_of.n_control,
        )
    n_cells = np.array([block[3] for block in blocks], dtype=np.intp)
    return GroupStatistics(perturbations, mean, variance, zeros, n_cells, *control_side)


def _moments(
    block: Matrix,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], int]:
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
