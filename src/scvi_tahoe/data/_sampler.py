"""Samplers: which cells form each set, in training (random), validation (fixed) and prediction (exhaustive)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import chain, count, pairwise
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Sampler

from scvi_tahoe._constants import STREAMS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from scvi_tahoe.data._screen import Condition, ConditionIndex, ControlPools


@dataclass(frozen=True)
class CellSetRequest:
    """The cells of one minibatch, by row number."""

    control_SN: np.ndarray  #: rows of the control cells
    observed_SN: np.ndarray | None  #: rows of the perturbed cells; None when predicting
    perturbation_S: np.ndarray  #: which perturbation each set gets: position in the embedding table
    condition_S: np.ndarray  #: which condition (or prediction request) each set belongs to
    #: number of leading cells of each set that belong to the request; the rest fill up its last window
    valid_S: np.ndarray
    residual_input_SN: np.ndarray | None = None  #: rows of the prior's cells; None without them

    def take(self, sets: np.ndarray | slice) -> CellSetRequest:
        """Take some of the sets, in this order."""
        arrays = ((f.name, getattr(self, f.name)) for f in fields(self))
        return replace(self, **{name: array[sets] for name, array in arrays if array is not None})


@dataclass(frozen=True)
class SetPlan:
    """The cells of one part of a split, and how they are put together into sets and minibatches."""

    index: ConditionIndex
    pools: ControlPools
    row_of_label: np.ndarray  # perturbation code of the screen -> row of the embedding table
    rows: np.ndarray
    set_size: int
    sets_per_step: int
    residual_input_rows: Mapping[Condition, np.ndarray] | None = None

    def request(self, observed_SN: np.ndarray, condition_S: np.ndarray, rng: np.random.Generator) -> CellSetRequest:
        control_SN, size, residual_input_SN = self.pools.draw(observed_SN, rng), observed_SN.shape[1], None
        if (rows := self.residual_input_rows) is not None:
            conditions = (self.index.conditions[c] for c in condition_S)
            residual_input_SN = np.stack([draw_window(rows[c], size, rng) for c in conditions])
        return CellSetRequest(
            control_SN=control_SN,
            observed_SN=observed_SN,
            perturbation_S=self.row_of_label[self.index.perturbation.codes[observed_SN[:, 0]]],
            condition_S=condition_S,
            valid_S=np.full(len(condition_S), size),
            residual_input_SN=residual_input_SN,
        )


def draw_window(cells: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``size`` cells without repetition; where there are fewer, repeat each about equally often."""
    copies = -(-size // len(cells))
    return np.concatenate([rng.permutation(cells) for _ in range(copies)])[:size]


class RandomSampler(Sampler[CellSetRequest]):
    """Training sets: conditions in turn, in an order drawn anew, cells and controls of each at random.

    Every condition comes equally often whatever its number of cells, since scores are means over conditions, or in
    proportion to its weight: a pass over all takes each with its weight relative to the largest. Seed and epoch decide
    everything that is drawn, so that all ranks see the same order.
    """

    def __init__(self, sets: SetPlan, *, n_steps: int, seed: int) -> None:
        self.sets = sets
        self.n_steps = n_steps
        self.seed = seed
        self.epoch = 0
        self._cells = sets.index.by_condition(sets.rows)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this, also after resuming."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n_steps

    def __iter__(self) -> Iterator[CellSetRequest]:
        rng = np.random.default_rng((self.seed, self.epoch))
        conditions = np.array(list(self._cells))
        weights = self.sets.index.weight_of_condition
        share = np.ones(len(conditions)) if weights is None else weights[conditions] / weights[conditions].max()
        some = (conditions if (share == 1).all() else conditions[rng.random(len(share)) < share] for _ in count())
        turn = chain.from_iterable(map(rng.permutation, some))
        for _ in range(self.n_steps):
            condition_S = np.array([next(turn) for _ in range(self.sets.sets_per_step)])
            observed_SN = np.stack([draw_window(self._cells[c], self.sets.set_size, rng) for c in condition_S])
            yield self.sets.request(observed_SN, condition_S, rng)


class FixedSampler(Sampler[CellSetRequest]):
    """Validation sets: the same cells and controls at every epoch, or the monitored loss would be noise.

    Sets of a condition (at most ``max_sets``, of different cells) are spread over the minibatches, where terms that
    compare sets need different ones. There are as many minibatches for each of ``n_ranks`` processes, if there are
    sets enough, so that every set counts once.
    """

    def __init__(self, sets: SetPlan, *, max_sets: int, seed: int, n_ranks: int = 1) -> None:
        rng = np.random.default_rng((seed, STREAMS.VALIDATION_SETS))
        observed: list[np.ndarray] = []
        conditions: list[int] = []
        turns: list[int] = []
        for condition, cells in sets.index.by_condition(sets.rows).items():
            n_sets = min(max_sets, max(1, len(cells) // sets.set_size))
            chosen = draw_window(cells, n_sets * sets.set_size, rng)
            observed.append(chosen.reshape(n_sets, sets.set_size))
            conditions += [condition] * n_sets
            turns += range(n_sets)
        whole = sets.request(np.concatenate(observed), np.array(conditions), rng)
        order, step = np.argsort(turns, kind="stable"), sets.sets_per_step
        starts = list(range(0, len(order), step))
        n_even = len(starts) + -len(starts) % n_ranks
        if len(starts) < n_even <= len(order) // 2:  # a set alone cannot be compared with others
            starts = [i * len(order) // n_even for i in range(n_even)]
        self._requests = [whole.take(order[i:j]) for i, j in pairwise([*starts, len(order)])]

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[CellSetRequest]:
        yield from self._requests


@dataclass(frozen=True)
class ConditionRequest:
    """One condition to predict."""

    controls: np.ndarray  #: rows to start from, one a predicted cell
    perturbation: int  #: row of the embedding table
    pool: np.ndarray  #: rows that may fill up the last window
    #: random seed of this request alone, so that a prediction does not depend on what else is asked
    seed: tuple[int, ...]
    #: rows of the prior's cells, from which one is drawn for each predicted cell; None without them
    residual_input: np.ndarray | None = None
    #: whether the prior's cells are the prediction, so that they come as they are, one for each predicted cell
    keeps_residual_input: bool = False
    #: whether each of them was made of the control cell at the same place
    is_paired: bool = False


class ExhaustiveSampler(Sampler[CellSetRequest]):
    """Prediction sets: the start cells of each request in windows of ``set_size``.

    A last window that is not full is filled with further controls, whose predictions are dropped: the network sees
    sets of the size it was trained with, always.
    """

    def __init__(self, requests: Sequence[ConditionRequest], *, set_size: int, sets_per_step: int) -> None:
        windows, residual_inputs, owner, valid = [], [], [], []
        for i, request in enumerate(requests):
            n_sets = -(-len(request.controls) // set_size)
            n_fill = n_sets * set_size - len(request.controls)
            fill = np.random.default_rng(request.seed).choice(request.pool, n_fill)
            windows.append(np.concatenate([request.controls, fill]).reshape(n_sets, set_size))
            if request.residual_input is not None:
                rng, n = np.random.default_rng((*request.seed, STREAMS.PREDICTED_CELLS)), n_sets * set_size
                rows = request.residual_input
                in_order = request.keeps_residual_input or request.is_paired
                rows = np.resize(rows, n) if in_order else draw_window(rows, n, rng)
                residual_inputs.append(rows.reshape(n_sets, set_size))
            owner += [i] * n_sets
            valid += [set_size] * (n_sets - 1) + [set_size - n_fill]
        self._whole = CellSetRequest(
            control_SN=np.concatenate(windows),
            observed_SN=None,
            perturbation_S=np.array([request.perturbation for request in requests])[owner],
            condition_S=np.array(owner),
            valid_S=np.array(valid),
            residual_input_SN=np.concatenate(residual_inputs) if residual_inputs else None,
        )
        self._step = sets_per_step

    def __len__(self) -> int:
        return -(-len(self._whole.valid_S) // self._step)

    def __iter__(self) -> Iterator[CellSetRequest]:
        for i in range(0, len(self._whole.valid_S), self._step):
            yield self._whole.take(slice(i, i + self._step))
