"""Which cells form a set: seeded, balanced, fixed in validation, exhaustive in prediction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scvi_tahoe.data import ConditionRequest, ExhaustiveSampler, FractionSplit, read_screen
from scvi_tahoe.data._sampler import FixedSampler, RandomSampler, SetPlan


def plan_of(index, *, set_size=8, part="train"):
    rows, labels = FractionSplit(validation=0.25).assign(index).rows(part), np.arange(len(index.perturbation.names))
    return SetPlan(index, index.control_pools(), labels, rows, set_size, sets_per_step=3)


def epoch(plan, *, seed=0, epoch=0, n_steps=8):
    sampler = RandomSampler(plan, n_steps=n_steps, seed=seed)
    sampler.set_epoch(epoch)
    assert len(sampler) == n_steps
    return list(sampler)


def same(first, second):
    rows = ([(r.control_SN.tolist(), r.observed_SN.tolist()) for r in requests] for requests in (first, second))
    return next(rows) == next(rows)


def test_seed_and_epoch_decide_the_sets(index):
    plan = plan_of(index)
    assert same(epoch(plan), epoch(plan))
    assert not same(epoch(plan), epoch(plan, seed=1))
    assert not same(epoch(plan), epoch(plan, epoch=1))


def test_every_condition_comes_equally_often(index):
    counts = np.bincount(np.concatenate([r.condition_S for r in epoch(plan_of(index), n_steps=12)]))
    assert counts.tolist() == [3] * 12


def test_a_set_holds_training_cells_of_one_condition_and_its_controls(screen, index):
    plan = plan_of(index)
    context, batch = screen.obs["context"].to_numpy(), screen.obs["batch"].to_numpy()
    for request in epoch(plan):
        assert request.observed_SN.shape == request.control_SN.shape == (3, 8)
        assert np.isin(request.observed_SN, plan.rows).all()
        assert (index.condition_of_cell[request.observed_SN] == request.condition_S[:, None]).all()
        names = [index.perturbation.names[i] for i in request.perturbation_S]
        assert names == [index.conditions[c].perturbation for c in request.condition_S]
        assert index.is_control[request.control_SN].all()
        assert (context[request.control_SN] == context[request.observed_SN]).all()
        assert (batch[request.control_SN] == batch[request.observed_SN]).all()


def test_cells_repeat_in_a_set_only_where_the_condition_is_smaller(index):
    for request in epoch(plan_of(index, set_size=18)):  # 18 training cells a condition
        assert all(len(set(row)) == 18 for row in request.observed_SN)
    for request in epoch(plan_of(index, set_size=40)):
        counts = np.stack([np.unique(row, return_counts=True)[1] for row in request.observed_SN])
        assert counts.shape[1] == 18
        assert set(counts.ravel()) <= {2, 3}


def test_a_batch_without_controls_draws_from_its_context(screen, keys):
    lonely = (screen.obs["perturbation"] == "control") & (screen.obs["context"] == "context_1")
    index = read_screen(screen[~(lonely & (screen.obs["batch"] == "batch_1"))].copy(), keys).index
    cells = np.flatnonzero(~index.is_control)
    drawn = index.control_pools().draw(cells, np.random.default_rng(0))
    np.testing.assert_array_equal(index.context.codes[drawn], index.context.codes[cells])


def test_without_batches_controls_are_matched_by_context(screen, keys):
    plan = plan_of(read_screen(screen, replace(keys, batch_key=None)).index)
    drawn = plan.pools.draw(np.repeat(plan.rows[:1], 5000), np.random.default_rng(0))
    assert set(drawn) == set(plan.index.controls("context_1"))


def test_validation_sets_are_fixed_and_use_each_cell_once(index):
    plan = plan_of(index, part="validation", set_size=3)
    sampler = FixedSampler(plan, max_sets=4, seed=0)
    assert same(list(sampler), list(sampler))
    assert len(list(sampler)) == len(sampler) == 8
    cells = np.concatenate([r.observed_SN.ravel() for r in sampler])
    assert len(set(cells)) == len(cells) == 12 * 6
    assert not same(list(sampler), list(FixedSampler(plan, max_sets=4, seed=1)))


@pytest.mark.parametrize(
    ("n_ranks", "sizes"), [(1, [3] * 8), (3, [2, 3, 3] * 3), (5, [2, 2, 3, 2, 3] * 2), (13, [3] * 8)]
)
def test_every_validation_set_counts_once_for_any_number_of_processes(index, n_ranks, sizes):
    plan = plan_of(index, part="validation", set_size=3)
    whole = list(FixedSampler(plan, max_sets=4, seed=0))
    shared = list(FixedSampler(plan, max_sets=4, seed=0, n_ranks=n_ranks))
    # 13 processes would leave sets that could not be compared with others
    assert [len(r.condition_S) for r in shared] == sizes
    for name in ("observed_SN", "control_SN", "condition_S"):
        parts = (np.concatenate([getattr(r, name) for r in requests]) for requests in (whole, shared))
        np.testing.assert_array_equal(*parts)


def test_validation_minibatches_hold_different_conditions(screen, index):
    sampler = FixedSampler(plan_of(index, set_size=3), max_sets=2, seed=0)
    assert all(len(set(r.condition_S)) == len(r.condition_S) == 3 for r in sampler)
    assert np.bincount(np.concatenate([r.condition_S for r in sampler])).tolist() == [2] * 12
    for request in sampler:  # what belongs to a set stays together
        labels = screen.obs["perturbation"].cat.codes.to_numpy()[request.observed_SN]
        assert (labels == request.perturbation_S[:, None]).all()


@pytest.mark.parametrize("n", [1, 8, 20])
def test_prediction_takes_every_start_cell_once_in_full_sets(n):
    tasks = [
        ConditionRequest(np.arange(n), 4, np.arange(30), (0, 1)),
        ConditionRequest(np.arange(100, 100 + n), 5, np.arange(100, 130), (0, 2)),
    ]
    sampler = ExhaustiveSampler(tasks, set_size=8, sets_per_step=4)
    requests = list(sampler)
    assert len(requests) == len(sampler)
    assert all(r.control_SN.shape[1] == 8 and r.observed_SN is None for r in requests)
    wanted = [row[:valid] for r in requests for row, valid in zip(r.control_SN, r.valid_S, strict=True)]
    np.testing.assert_array_equal(np.concatenate(wanted), np.concatenate([t.controls for t in tasks]))
    for request in requests:
        np.testing.assert_array_equal(request.perturbation_S, 4 + request.condition_S)
        # what fills a window up comes from the pool of its own task
        assert ((request.control_SN >= 100) == (request.condition_S == 1)[:, None]).all()
