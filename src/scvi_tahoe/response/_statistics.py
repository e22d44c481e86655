"""Statistics of every condition in one pass over the cells: sums by sparse products, block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from scvi_tahoe.data import Condition, ConditionIndex

_BLOCK = 2048  # cells read at once
_PSEUDO_CELLS = 10  # cells' worth of the usual variance that is mixed into that of a condition


@dataclass(frozen=True)
class ConditionStatistics:
    """Moments of conditions, and what values genes usually have where they are expressed.

    Attributes
    ----------
    conditions
        Conditions with cells, sorted.
    means
        float32 ``[conditions, G]``, log1p expression.
    noise
        Sampling variance of the means, float32 ``[conditions, G]``: variance over cells, mixed with the gene's usual
        one where cells are few, over the number of cells.
    n_cells
        Number of cells.
    usual_G
        Mean of the non-zero values of each gene, 0 where there is none.
    """

    conditions: tuple[Condition, ...]
    means: np.ndarray
    noise: np.ndarray
    n_cells: np.ndarray
    usual_G: np.ndarray


def condition_statistics(expression: Any, index: ConditionIndex, rows: np.ndarray) -> ConditionStatistics:
    """Measure the conditions of some perturbed cells; cost grows with the non-zero values alone.

    Parameters
    ----------
    expression
        Cells x genes, indexed by rows: numpy, CSR, or rows on disk.
    index
        Conditions of the screen.
    rows
        Perturbed cells.
    """
    present, group = np.unique(index.condition_of_cell[rows], return_inverse=True)
    order = np.argsort(rows, kind="stable")
    rows, group = rows[order], group[order]
    n_genes = expression.shape[1]
    sums, squares = np.zeros((len(present), n_genes)), np.zeros((len(present), n_genes))
    n_expressing = np.zeros(n_genes)
    for start in range(0, len(rows), _BLOCK):
        of_block = group[start : start + _BLOCK]
        block = expression[rows[start : start + _BLOCK]]
        found, local = np.unique(of_block, return_inverse=True)
        if sp.issparse(block):
            # several times faster than products of sparse matrices
            place = np.repeat(local * n_genes, np.diff(block.indptr)) + block.indices
            for totals, values in ((sums, block.data), (squares, np.square(block.data))):
                added = np.bincount(place, weights=values, minlength=len(found) * n_genes)
                totals[found] += added.reshape(len(found), n_genes)
            n_expressing += block.getnnz(axis=0)
        else:
            member = sp.csr_matrix((np.ones(len(local)), (local, np.arange(len(local)))), (len(found), len(local)))
            sums[found] += member @ block
            squares[found] += member @ np.square(block, dtype=np.float64)
            n_expressing += (block > 0).sum(axis=0)
    n_cells = np.bincount(group, minlength=len(present))
    means = sums / n_cells[:, None]
    usual = sums.sum(axis=0) / np.maximum(n_expressing, 1)
    np.maximum(squares - n_cells[:, None] * np.square(means), 0, out=squares)  # squared deviations, summed
    pooled = squares.sum(axis=0) / max(len(rows) - len(present), 1)
    noise = (squares + _PSEUDO_CELLS * pooled) / (n_cells + _PSEUDO_CELLS)[:, None] / n_cells[:, None]
    return ConditionStatistics(
        conditions=tuple(index.conditions[i] for i in present),
        means=means.astype(np.float32), noise=noise.astype(np.float32), n_cells=n_cells, usual_G=usual,
    )  # fmt: skip
