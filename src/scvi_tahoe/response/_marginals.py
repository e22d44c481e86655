"""Marginal distributions of genes: moving cells from one population to another, and giving cells other marginals.

Genes come first here (``GN``: genes x cells), so that every operation runs along the last axis of all genes at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: number of evenly spaced quantiles that stand for a population
QUANTILES = 512


#: genes that are looked at together; those of about as many zeros, which are left out
_GROUP = 128


@dataclass(frozen=True)
class _SortedGenes:
    """Genes of about as many zeros: their cells in the order of the values, from the last zero on.

    Attributes
    ----------
    genes
        Indices of the genes.
    values_GM
        Sorted values; of most zeros, which come first, nothing is kept.
    cell_GM
        Which cell each of them belongs to.
    """

    genes: Tensor
    values_GM: Tensor
    cell_GM: Tensor


@dataclass(frozen=True)
class Population:
    """Cells of which quantiles are wanted, under one weighting or another.

    Attributes
    ----------
    groups
        All genes, those with about as many zeros together.
    n_genes
        Number of them.
    """

    groups: tuple[_SortedGenes, ...]
    n_genes: int

    @classmethod
    def of(cls, cells_GN: Tensor) -> Population:
        """Sort cells, whose values are 0 or more."""
        n_zeros, order = (cells_GN == 0).sum(1).sort()
        groups = []
        for genes, zeros in zip(order.split(_GROUP), n_zeros.split(_GROUP), strict=True):
            values_GN, cell_GN = cells_GN[genes].sort(dim=1)
            first = max(int(zeros[0]) - 1, 0)  # a zero stays, for the quantiles that fall among them
            groups.append(_SortedGenes(genes, values_GN[:, first:].contiguous(), cell_GN[:, first:].contiguous()))
        return cls(tuple(groups), len(cells_GN))

    def quantiles(self, weight_N: Tensor, n: int = QUANTILES) -> Tensor:
        """Values of each gene at the midpoints of ``n`` equal shares of the weighted population, ``[G, n]``.

        They are values of cells, never something between two: the zeros of a gene stay zeros.
        """
        total = weight_N.sum()
        result_Gn = torch.empty(self.n_genes, n, device=weight_N.device)
        for group in self.groups:
            cumulated_GM = weight_N[group.cell_GM].cumsum(1)
            cumulated_GM += total - cumulated_GM[:, -1:]  # the zeros that were left out
            result_Gn[group.genes] = _values_at(group.values_GM, cumulated_GM, n)
        return result_Gn


def _values_at(values_GN: Tensor, cumulated_GN: Tensor, n: int) -> Tensor:
    """Sorted values at the midpoints of ``n`` equal shares of their cumulated weight, ``[G, n]``."""
    middles = (torch.arange(n, dtype=cumulated_GN.dtype, device=cumulated_GN.device) + 0.5) / n
    place = torch.searchsorted(cumulated_GN, middles * cumulated_GN[:, -1:])
    return values_GN.gather(1, place.clamp_max(values_GN.shape[1] - 1))


def move_between(cells_GN: Tensor, source_GQ: Tensor, target_GQ: Tensor, draw_GN: Tensor) -> Tensor:
    """Cells as they would look in another population: each value goes to the same quantile of its gene there.

    A value that many cells share (zero above all) occupies an interval of quantiles; a point of it is drawn. The
    spread and the zeros of real cells are kept, which adding a mean change loses. By what a value lies beyond the
    source's range, it lies beyond the target's: cells of a perturbation that switches a gene on, which no other cell
    of the source expresses, keep it on.

    Parameters
    ----------
    cells_GN
        Cells, 0 or more; they need not belong to the source.
    source_GQ, target_GQ
        Quantiles of both populations.
    draw_GN
        Uniform on [0, 1).
    """
    low, high = (torch.searchsorted(source_GQ, cells_GN, side=side) for side in ("left", "right"))
    place = (low + (high - low) * draw_GN) / source_GQ.shape[1] * target_GQ.shape[1]
    moved_GN = target_GQ.gather(1, place.long().clamp_max(target_GQ.shape[1] - 1))
    beyond_GN = cells_GN - cells_GN.clamp(source_GQ[:, :1], source_GQ[:, -1:])
    return (moved_GN + beyond_GN).clamp_min(0)


def with_marginals(cells_GN: Tensor, pool_GM: Tensor, anchor_GQ: Tensor, keep_G: Tensor, draw_GN: Tensor) -> Tensor:
    """Cells whose genes are distributed as a mixture of two populations, and go together as they did before.

    Each gene's values are those of the mixture at evenly spaced quantiles, handed out by the rank that the cells had
    in it. So the means are those of the mixture to within one cell's share, whatever the number of cells; drawing
    cells would add the noise of the draw to every mean.

    Parameters
    ----------
    cells_GN
        Cells whose ranks count.
    pool_GM, anchor_GQ
        The two populations.
    keep_G
        Share of the pool in the mixture of each gene.
    draw_GN
        Uniform on [0, 1): the order of equal values.
    """
    n_pool, n_anchor = pool_GM.shape[1], anchor_GQ.shape[1]
    mixture_GN, cell_GN = torch.cat([pool_GM, anchor_GQ], dim=1).sort(dim=1)
    share_G1 = keep_G.double()[:, None]
    weight_GN = torch.where(cell_GN < n_pool, share_G1 / n_pool, (1 - share_G1) / n_anchor)
    values_GN = _values_at(mixture_GN, weight_GN.cumsum(1), cells_GN.shape[1])
    # ranks with equal values in the order of the draw: sorted by the draw, then stably by value
    by_draw = draw_GN.argsort(dim=1)
    order = by_draw.gather(1, cells_GN.gather(1, by_draw).argsort(dim=1, stable=True))
    return torch.empty_like(values_GN).scatter_(1, order, values_GN)
