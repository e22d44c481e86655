"""Start cells: control cells moved to a wanted mean, gene by gene, for a minibatch or for a whole prediction.

A mean that grows is made of more cells that express the gene and of higher values, a mean that falls of fewer and lower
ones. How many cells express it is what a change of its rate would do to negative binomial counts with the share and the
values of the controls: nearly all of a change of a rare gene is a change of that share, nearly none of one that every
cell expresses. Which cells begin or cease to express a gene follows the first principal components of the controls, so
that genes stay correlated. So zeros, spread and co-expression stay those of real cells, which tests of differential
expression live on, and the means are those that were wanted.

S sets, N cells, G genes, K components, L levels: evenly spaced quantiles of the non-zero values of a gene.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd

from scvi_tahoe.data._compact_rows import kernel_runs_on
from scvi_tahoe.data._store import sent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

#: quantiles of non-zero values
N_LEVELS = 16
_SHAPE = 4.0  # of the negative binomial counts that shares are read off
_NEWTON = 8  # steps until a change of the rate gives a change of the mean
_COMPONENTS, _OWN_NOISE = 5, 0.25  # that choose cells; share of the rest of a gene's spread that has a say, too
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
    components_KG
        First principal components of the cells, orthonormal rows.
    rest_G
        Standard deviation of what these leave of a gene.
    total
        Sum of ``expm1`` over the genes, where it is the same in all cells; NaN where it differs.
    n_cells
        Number of control cells.
    """

    mean_G: np.ndarray
    variance_G: np.ndarray
    share_G: np.ndarray
    levels_LG: np.ndarray
    components_KG: np.ndarray
    rest_G: np.ndarray
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
        centred = some - some.mean(axis=0)
        components = _first_components(centred)
        totals = np.expm1(some.astype(np.float64)).sum(axis=1)
        alike = totals.mean() > 0 and totals.std() < _TOTALS_ALIKE * totals.mean()
        return cls(
            mean_G=cells_NG.mean(axis=0, dtype=np.float64).astype(np.float32),
            variance_G=cells_NG.var(axis=0, dtype=np.float64).astype(np.float32),
            share_G=share.astype(np.float32),
            levels_LG=levels.astype(np.float32),
            components_KG=components,
            rest_G=(centred - centred @ components.T @ components).std(axis=0),
            total=float(totals.mean()) if alike else float("nan"),
            n_cells=len(cells_NG),
        )


def _first_components(centred_NG: np.ndarray) -> np.ndarray:
    """First principal components of cells, ``[K, G]``, fewer of few cells or genes."""
    n = min(_COMPONENTS, *centred_NG.shape)
    return randomized_svd(centred_NG, n, random_state=0)[2].astype(np.float32)


def wanted_share(want: Tensor, mean: Tensor, share: Tensor, usual: Tensor, n_controls: Tensor) -> Tensor:
    """Share of the cells that expresses a gene at another mean.

    Counts are negative binomial (shape 4): their rate in the controls gives the share of these, and it is changed until
    the mean is the wanted one, where a non-zero value grows as the logarithm of the mean non-zero count.

    Parameters
    ----------
    want
        Wanted mean.
    mean, share
        Mean and share of expressing cells in the controls.
    usual
        Mean non-zero value.
    n_controls
        Number of controls, which bounds what is known of rare genes.
    """
    least = 0.5 / n_controls
    s = torch.minimum(torch.maximum(share, least), 1 - least)
    rate = _SHAPE * ((1 - s) ** (-1 / _SHAPE) - 1)
    size = torch.expm1(torch.where(share > 0, mean / share.clamp_min(_TINY), usual)) * s / rate
    target = want.clamp_min(_TINY).log()

    def at(log_fold: Tensor) -> tuple[Tensor, Tensor]:
        new = rate * log_fold.exp()
        expressing = (1 - (1 + new / _SHAPE) ** -_SHAPE).clamp_min(1e-12)
        return expressing, (expressing * torch.log1p(size * new / expressing)).clamp_min(1e-30).log()

    log_fold, step = torch.zeros_like(s), 0.02
    for _ in range(_NEWTON):  # the logarithm of the mean is concave in that of the rate
        here, after = at(log_fold)[1], at(log_fold + step)[1]
        slope = ((after - here) / step).clamp_min(1e-3)
        log_fold = (log_fold + (target - here) / slope).clamp(-15, 15)
    return torch.where(want > _TINY, at(log_fold)[0], 0.0)


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
        self._tensors = _tensors(self.profiles)
        self._has_total = not all(np.isnan(p.total) for p in self.profiles)
        #: what becomes of the controls of a condition, for the conditions that were asked for: where positive, share of
        #: the cells without a gene that begin to express it, where negative, share of the others that cease; and what
        #: values are scaled by
        self._change_CG, self._ratio_CG = (torch.empty(self.means_CG.shape) for _ in range(2))
        self._known_C = np.zeros(len(self.means_CG), dtype=bool)

    def cells(self, control_SNG: Tensor, condition_S: Tensor, seed: int, out: Tensor | None = None) -> Tensor:
        """Start cells of a minibatch of control cells; the same for the same seed and device.

        Their means are the wanted ones on average, as those of a set are in the data, and which cells change is random.

        Parameters
        ----------
        control_SNG
            Control cells, log1p.
        condition_S
            Condition of each set, in main memory.
        seed
            Random seed.
        out
            May be overwritten, and is returned then.
        """
        device = control_SNG.device
        if self._tensors["mean"].device != device:
            self._tensors = {name: tensor.to(device) for name, tensor in self._tensors.items()}
            self._change_CG, self._ratio_CG = (torch.empty(self.means_CG.shape, device=device) for _ in range(2))
            self._known_C[:] = False
        numbers = condition_S.numpy()
        if len(new := np.unique(numbers[~self._known_C[numbers]])):
            self._learn(new)
        context_S, condition_S = sent(torch.from_numpy(self.context_C[numbers]), device), sent(condition_S, device)
        if kernel_runs_on(device.type):
            if out is None or (out.shape, out.dtype) != (control_SNG.shape, control_SNG.dtype):
                out = torch.empty_like(control_SNG)
            return self._by_kernels(control_SNG, condition_S, context_S, seed, out)
        change_SG, ratio_SG = self._change_CG[condition_S], self._ratio_CG[condition_S]
        begins, ceases = change_SG.clamp_min(0), (-change_SG).clamp_min(0)
        generator = torch.Generator(device).manual_seed(seed)
        draw = torch.rand(control_SNG.shape, generator=generator, device=device)
        # where a cell begins to express a gene, the draw is uniform below that share: it also chooses the level
        level = (draw / begins.clamp_min(_TINY)[:, None] * N_LEVELS).long().clamp_(max=N_LEVELS - 1)
        entering = self._tensors["levels"][context_S].gather(1, level)
        expressed = control_SNG > 0
        cells = torch.where(expressed, control_SNG.float(), torch.where(draw < begins[:, None], entering, 0.0))
        cells = torch.where(expressed & (draw < ceases[:, None]), 0.0, cells) * ratio_SG[:, None]
        if not self._has_total:
            return cells
        counts = torch.expm1(cells)
        factor_SN = self._factor(counts.sum(2), context_S)
        return _with_means(torch.log1p(counts * factor_SN[..., None]), cells.mean(1))

    def _by_kernels(
        self, control_SNG: Tensor, condition_S: Tensor, context_S: Tensor, seed: int, out: Tensor
    ) -> Tensor:
        from scvi_tahoe.data._start_kernels import moved_cells, scaled_to_totals

        sums_SNB = moved_cells(
            control_SNG, condition_S, context_S, change_CG=self._change_CG, ratio_CG=self._ratio_CG,
            levels_KLG=self._tensors["levels"], seed=seed, out=out,
        )  # fmt: skip
        return scaled_to_totals(out, self._factor(sums_SNB.sum(2), context_S)) if self._has_total else out

    def _learn(self, condition_c: np.ndarray) -> None:
        """Compute what becomes of the controls of these conditions."""
        t = self._tensors
        device = t["mean"].device
        context_c, rows = (torch.from_numpy(a).to(device) for a in (self.context_C[condition_c], condition_c))
        want = torch.from_numpy(np.asarray(self.means_CG[condition_c], np.float32)).to(device)
        mean, share, usual = (t[name][context_c] for name in ("mean", "share", "usual"))
        new_share = wanted_share(want, mean, share, usual, t["n"][context_c])
        begins = ((new_share - share) / (1 - share).clamp_min(_TINY)).clamp(0, 1)
        ceases = (1 - new_share / share.clamp_min(_TINY)).clamp(0, 1)
        after = mean * (1 - ceases) + begins * (1 - share) * usual
        self._change_CG[rows] = begins - ceases
        self._ratio_CG[rows] = torch.where(after > _TINY, want / after.clamp_min(_TINY), torch.zeros_like(want))
        self._known_C[condition_c] = True

    def _factor(self, sums_SN: Tensor, context_S: Tensor) -> Tensor:
        """Return what scales cells to the total of their context, where it has one."""
        total_S1 = self._tensors["total"][context_S]
        return torch.where(total_S1.isnan(), 1.0, total_S1 / sums_SN.clamp_min(_TINY))


def _tensors(profiles: Sequence[ControlProfile]) -> dict[str, Tensor]:
    """Numbers of contexts as tensors, contexts first."""
    n = min(len(p.components_KG) for p in profiles)
    arrays = {
        "mean": [p.mean_G for p in profiles],
        "share": [p.share_G for p in profiles],
        "levels": [p.levels_LG for p in profiles],
        "usual": [p.levels_LG.mean(axis=0) for p in profiles],
        "components": [p.components_KG[:n] for p in profiles],
        "rest": [p.rest_G for p in profiles],
        "n": [[p.n_cells] for p in profiles],
        "total": [[p.total] for p in profiles],
    }
    return {name: torch.from_numpy(np.stack(values).astype(np.float32)) for name, values in arrays.items()}


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
    t, n = {k: v[0].to(cells_NG.device) for k, v in _tensors([profile]).items()}, len(cells_NG)
    share_G = wanted_share(want_G, t["mean"], t["share"], t["usual"], t["n"])
    # a gene that is wanted has to be expressed somewhere
    count_G = torch.where(want_G > _TINY, (share_G * n).round().clamp(1, n), 0.0).long()
    expressed = cells_NG > 0
    n_expressing = expressed.sum(0)
    more, less = (count_G - n_expressing).clamp_min(0), (n_expressing - count_G).clamp_min(0)
    moved = cells_NG.clone()
    if len(genes := torch.nonzero(more + less)[:, 0]):
        scores = (cells_NG - t["mean"]) @ t["components"].T @ t["components"][:, genes]
        noise = torch.randn(scores.shape, generator=generator, device=scores.device)
        score, some = scores + _OWN_NOISE * t["rest"][genes] * noise, expressed[:, genes]
        # cells that may change come first: those that begin from the highest score, those that cease from the lowest
        order = torch.where(more[genes] > 0, torch.where(some, torch.inf, -score), torch.where(some, score, torch.inf))
        order = order.argsort(0)
        places = torch.arange(n, device=order.device)[:, None].expand_as(order)
        rank = torch.empty_like(order).scatter_(0, order, places)
        level = N_LEVELS - 1 - rank * N_LEVELS // more[genes].clamp_min(1)
        new = torch.where(some, 0.0, t["levels"][:, genes].gather(0, level.clamp_min(0)))
        moved[:, genes] = torch.where(rank < torch.maximum(more, less)[genes], new, cells_NG[:, genes])
    moved = _with_means(moved, want_G)
    return moved if np.isnan(profile.total) else _with_totals(moved, want_G, profile.total)


def _with_means(cells: Tensor, want: Tensor) -> Tensor:
    """Scale each gene to its wanted mean: cells ``[N, G]`` to ``[G]``, or sets of them to ``[S, G]``."""
    mean = cells.mean(-2)
    return cells * torch.where(mean > _TINY, want / mean.clamp_min(_TINY), 0.0).unsqueeze(-2)


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
