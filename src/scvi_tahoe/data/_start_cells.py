"""Start cells: control cells moved to a wanted mean, gene by gene, for a minibatch or for a whole prediction.

A mean that grows is made of more cells that express the gene and of higher values, a mean that falls of fewer and lower
ones: of a change of the mean, three quarters come from cells that begin or cease to express the gene, and the rest from
scaling. So zeros and spread stay those of real cells, which tests of differential expression live on, and the means are
those that were wanted.

S sets, N cells, G genes, L levels: evenly spaced quantiles of the non-zero values of a gene.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

#: quantiles of non-zero values
N_LEVELS = 16
_SWITCHED = 0.75  # share of a change of the mean that comes from cells beginning or ceasing to express a gene
_CELLS = 1024  # control cells that levels are measured on
_TOTALS_ALIKE = 0.02  # coefficient of variation of totals up to which they are held constant
_ROUNDS, _EXACT = 6, 1e-5  # until totals and means agree
_POWERS = (0.5, 2.0)  # within which values are spread in a round
_TINY = 1e-9


@dataclass(frozen=True)
class ControlProfile:
    """Control cells of a context.

    Attributes
    ----------
    mean_G
        Mean expression.
    variance_G
        Variance over cells.
    share_G
        Share of the cells that express a gene.
    levels_LG
        Quantiles of its non-zero values; the usual ones of the gene where no control cell expresses it.
    total
        Sum of ``expm1`` over the genes, where it is the same in all cells; NaN where it differs.
    n_cells
        Number of control cells.
    """

    mean_G: np.ndarray
    variance_G: np.ndarray
    share_G: np.ndarray
    levels_LG: np.ndarray
    total: float
    n_cells: int

    @classmethod
    def of(cls, cells_NG: np.ndarray, usual_G: np.ndarray | None = None) -> ControlProfile:
        """Measure control cells; ``usual_G`` are non-zero means of genes over other cells."""
        positive = cells_NG > 0
        share = positive.mean(axis=0)
        # sorted with the zeros first, the non-zero values of a gene are the last ones
        some = cells_NG if len(cells_NG) <= _CELLS else cells_NG[:: -(-len(cells_NG) // _CELLS)]
        ordered = np.sort(some, axis=0)
        n_zero = (ordered <= 0).sum(axis=0)
        middles = (np.arange(N_LEVELS)[:, None] + 0.5) / N_LEVELS
        place = (n_zero + middles * (len(some) - n_zero)).astype(np.int64).clip(max=len(some) - 1)
        levels = np.take_along_axis(ordered, place, axis=0)
        silent = n_zero == len(some)
        if silent.any():
            spare = float(levels[:, ~silent].mean()) if (~silent).any() else 1.0
            usual = np.full(len(share), spare) if usual_G is None else np.where(usual_G > 0, usual_G, spare)
            levels = np.where(silent, usual, levels)
        totals = np.expm1(some.astype(np.float64)).sum(axis=1)
        alike = totals.mean() > 0 and totals.std() < _TOTALS_ALIKE * totals.mean()
        return cls(
            mean_G=cells_NG.mean(axis=0, dtype=np.float64).astype(np.float32),
            variance_G=cells_NG.var(axis=0, dtype=np.float64).astype(np.float32),
            share_G=share.astype(np.float32),
            levels_LG=levels.astype(np.float32),
            total=float(totals.mean()) if alike else float("nan"),
            n_cells=len(cells_NG),
        )


@dataclass(eq=False)
class StartTable:
    """Wanted means of conditions, from which minibatches make their start cells on the device.

    Attributes
    ----------
    means_CG
        Wanted mean of each condition, float32.
    context_C
        Position of each condition's context in ``profiles``.
    profiles
        Control cells of contexts.
    """

    means_CG: np.ndarray
    context_C: np.ndarray
    profiles: Sequence[ControlProfile]

    def __post_init__(self) -> None:
        arrays = {
            "means": np.require(self.means_CG, np.float32, "W"),
            "context": self.context_C,
            "mean": np.stack([p.mean_G for p in self.profiles]),
            "share": np.stack([p.share_G for p in self.profiles]),
            "levels": np.stack([p.levels_LG for p in self.profiles]),
        }
        self._tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}

    def cells(self, control_SNG: Tensor, condition_S: Tensor, seed: int) -> Tensor:
        """Start cells of a minibatch of control cells; the same for the same seed and device."""
        device = control_SNG.device
        if self._tensors["means"].device != device:
            self._tensors = {name: tensor.to(device) for name, tensor in self._tensors.items()}
        t = self._tensors
        context_S = t["context"][condition_S]
        want, mean, share, levels = t["means"][condition_S], t["mean"][context_S], t["share"][context_S], t["levels"]
        usual = levels.mean(1)[context_S]
        rise, fall = (_SWITCHED * (want - mean)).clamp_min(0), (_SWITCHED * (mean - want)).clamp_min(0)
        begins = (rise / usual.clamp_min(_TINY) / (1 - share).clamp_min(_TINY)).clamp(0, 1)
        ceases = (fall / mean.clamp_min(_TINY)).clamp(0, 1)
        after = mean * (1 - ceases) + begins * (1 - share) * usual
        ratio = torch.where(after > _TINY, want / after.clamp_min(_TINY), torch.zeros_like(want))
        generator = torch.Generator(device).manual_seed(seed)
        draw = torch.rand(control_SNG.shape, generator=generator, device=device)
        # where a cell begins to express a gene, the draw is uniform below that share: it also chooses the level
        level = (draw / begins.clamp_min(_TINY)[:, None] * N_LEVELS).long().clamp_(max=N_LEVELS - 1)
        new = levels[context_S].gather(1, level)
        expressed = control_SNG > 0
        cells = torch.where(expressed, control_SNG.float(), torch.where(draw < begins[:, None], new, 0.0))
        return torch.where(expressed & (draw < ceases[:, None]), 0.0, cells) * ratio[:, None]


def moved_to_mean(cells_NG: Tensor, want_G: Tensor, profile: ControlProfile, generator: torch.Generator) -> Tensor:
    """Move control cells to a wanted mean, which they have exactly, whatever their number, with the totals of controls.

    Parameters
    ----------
    cells_NG
        Control cells, float32, log1p.
    want_G
        Wanted mean, 0 or more.
    profile
        Control cells of the context.
    generator
        Random numbers, on the device of the cells.
    """
    n = len(cells_NG)
    mean = cells_NG.mean(0)
    n_expressing = (cells_NG > 0).sum(0)
    levels = torch.as_tensor(profile.levels_LG, device=cells_NG.device)
    usual, own = levels.mean(0).clamp_min(_TINY), mean * n / n_expressing.clamp_min(1)
    change = _SWITCHED * (want_G - mean) * n
    begins = torch.minimum((change.clamp_min(0) / usual).round().long(), n - n_expressing)
    ceases = torch.minimum(((-change).clamp_min(0) / own.clamp_min(_TINY)).round().long(), n_expressing)
    # a gene that is wanted has to be expressed somewhere
    wanted = want_G > _TINY
    begins = torch.where((n_expressing == 0) & wanted, begins.clamp_min(1), begins)
    ceases = torch.where(wanted, torch.minimum(ceases, n_expressing - 1).clamp_min(0), ceases)
    moved = cells_NG.clone()
    if len(genes := torch.nonzero((begins > 0) | (ceases > 0))[:, 0]):
        block = cells_NG[:, genes]
        draw = torch.rand(block.shape, generator=generator, device=block.device)
        expressed = block > 0
        # ranks among the cells that may change: those of the other kind come after all of them
        changes = torch.where(begins[genes] > 0, ~expressed, expressed)
        order = torch.where(changes, draw, draw + 1.0).argsort(0)
        rank = torch.empty_like(order).scatter_(
            0, order, torch.arange(n, device=block.device)[:, None].expand_as(order)
        )
        chosen = rank < torch.maximum(begins[genes], ceases[genes])
        new = levels[:, genes].gather(0, (rank * N_LEVELS // begins[genes].clamp_min(1)).clamp_max(N_LEVELS - 1))
        moved[:, genes] = torch.where(chosen, torch.where(expressed, 0.0, new), block)
    moved = _with_means(moved, want_G)
    return moved if np.isnan(profile.total) else _with_totals(moved, want_G, profile.total)


def _with_means(cells_NG: Tensor, want_G: Tensor) -> Tensor:
    """Scale each gene to its wanted mean."""
    mean_G = cells_NG.mean(0)
    return cells_NG * torch.where(mean_G > _TINY, want_G / mean_G.clamp_min(_TINY), 0.0)


def _with_totals(cells_NG: Tensor, want_G: Tensor, total: float) -> Tensor:
    """Give cells of the wanted means one total, with means that stay.

    Means of logarithms and totals agree for one spread of the values only. So in turn each gene is spread by a power
    of its values (one power for all genes, a step of Newton's method for the mean total), scaled to its mean, and each
    cell is scaled to the total.
    """
    for _ in range(_ROUNDS):
        logs = torch.where(cells_NG > 0, cells_NG.clamp_min(_TINY).log(), 0.0)
        centre_G = (cells_NG * logs).sum(0) / cells_NG.sum(0).clamp_min(_TINY)
        missing = total - torch.expm1(cells_NG).sum(1).mean()
        slope = (torch.exp(cells_NG) * cells_NG * (logs - centre_G)).sum(1).mean()
        power = float((1 + missing / slope.clamp_min(_TINY)).clamp(*_POWERS))
        cells_NG = _with_means(torch.where(cells_NG > 0, (power * logs).exp(), 0.0), want_G)
        counts = torch.expm1(cells_NG)
        of_total = torch.log1p(counts * (total / counts.sum(1, keepdim=True).clamp_min(_TINY)))
        if bool((of_total.mean(0) - want_G).abs().max() < _EXACT):
            break
        cells_NG = _with_means(of_total, want_G)
    return of_total
