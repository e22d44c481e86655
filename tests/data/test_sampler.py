"""Which cells form a set: seeded, balanced, fixed in validation, exhaustive in prediction."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_tahoe.data import (
    ConditionRequest,
    ExhaustiveSampler,
    FractionSplit,
    ScreenKeys,
    read_screen,
)
from scvi_tahoe.data._sampler import FixedSampler, RandomSampler, SetPlan

KEYS = ScreenKeys(perturbation_key="perturbation", control="control", context_key="context", batch_key="batch")


def plan_of(adata, *, keys=KEYS, set_size=8, part="train"):
    index = read_screen(adata, keys).index
    rows = FractionSplit(validation=0.25).assign(index).rows(part)
    labels = np.arange(len(index.perturbation.names))
    return SetPlan(
        index=index, pools=index.control_pools(), row_of_label=labels, rows=rows, set_size=set_size, sets_per_step=3
    )


def epoch(plan, *, seed=0, epoch=0, n_steps=8):
    sampler = RandomSampler(plan, n_steps=n_steps, seed=seed)
    sampler.set_epoch(epoch)
    assert len(sampler) == n_steps
    return list(sampler)


def same(first, second):
    pairs = zip(first, second, strict=True)
    return all(
        np.array_equal(a.control_SN, b.control_SN) and np.array_equal(a.observed_SN, b.observed_SN) for a, b in pairs
    )


def test_seed_and_epoch_decide_the_sets(screen):
    plan = plan_of(screen)
    assert same(epoch(plan), epoch(plan))
    assert not same(epoch(plan), epoch(plan, seed=1))
    assert not same(epoch(plan), epoch(plan, epoch=1))


def test_every_condition_comes_equally_often(screen):
    counts = np.bincount(np.concatenate([r.condition_S for r in epoch(plan_of(screen), n_steps=12)]))
    assert counts.tolist() == [3] * 12


def test_a_set_holds_training_cells_of_one_condition_and_its_own_perturbation(screen):
    plan = plan_of(screen)
    for request in epoch(plan):
        assert request.observed_SN.shape == request.control_SN.shape == (3, 8)
        assert np.isin(request.observed_SN, plan.rows).all()
        np.testing.assert_array_equal(
            plan.index.condition_of_cell[request.observed_SN], np.repeat(request.condition_S[:, None], 8, 1)
        )
        names = [plan.index.perturbation.names[i] for i in request.perturbation_S]
        assert names == [plan.index.conditions[c].perturbation for c in request.condition_S]


def test_cells_do_not_repeat_within_a_set_unless_the_condition_is_smaller(screen):
    for request in epoch(plan_of(screen, set_size=18)):  # 18 training cells a condition
        assert all(len(set(row)) == 18 for row in request.observed_SN)
    for request in epoch(plan_of(screen, set_size=40)):
        counts = np.stack([np.unique(row, return_counts=True)[1] for row in request.observed_SN])
        assert counts.shape[1] == 18
        assert set(counts.ravel()) <= {2, 3}


def test_each_cell_meets_a_control_of_its_context_and_batch(screen):
    plan = plan_of(screen)
    context, batch = screen.obs["context"].to_numpy(), screen.obs["batch"].to_numpy()
    for request in epoch(plan):
        assert plan.index.is_control[request.control_SN].all()
        assert (context[request.control_SN] == context[request.observed_SN]).all()
        assert (batch[request.control_SN] == batch[request.observed_SN]).all()


def test_a_batch_without_controls_draws_from_its_context(screen):
    lonely = (screen.obs["perturbation"] == "control") & (screen.obs["context"] == "context_1")
    plan = plan_of(screen[~(lonely & (screen.obs["batch"] == "batch_1"))].copy())
    cells = np.flatnonzero(~plan.index.is_control)
    drawn = plan.pools.draw(cells, np.random.default_rng(0))
    np.testing.assert_array_equal(plan.index.context.codes[drawn], plan.index.context.codes[cells])


def test_without_batches_controls_are_matched_by_context(screen):
    keys = ScreenKeys(perturbation_key="perturbation", control="control", context_key="context")
    plan = plan_of(screen, keys=keys)
    drawn = plan.pools.draw(np.repeat(plan.rows[:1], 5000), np.random.default_rng(0))
    assert set(drawn) == set(plan.index.controls("context_1"))


def test_validation_sets_are_the_same_at_every_pass_and_use_each_cell_once(screen):
    plan = plan_of(screen, part="validation", set_size=3)
    sampler = FixedSampler(plan, max_sets=4, seed=0)
    assert same(list(sampler), list(sampler))
    assert len(list(sampler)) == len(sampler) == 8
    cells = np.concatenate([r.observed_SN.ravel() for r in sampler])
    assert len(set(cells)) == len(cells) == 12 * 6
    assert not same(list(sampler), list(FixedSampler(plan, max_sets=4, seed=1)))


def test_validation_takes_no_more_sets_of_a_condition_than_allowed(screen):
    sampler = FixedSampler(plan_of(screen, set_size=3), max_sets=2, seed=0)
    assert np.bincount(np.concatenate([r.condition_S for r in sampler])).tolist() == [2] * 12


def test_validation_minibatches_hold_different_conditions(screen):
    sampler = FixedSampler(plan_of(screen, set_size=3), max_sets=2, seed=0)
    assert all(len(set(r.condition_S)) == len(r.condition_S) == 3 for r in sampler)
    for request in sampler:  # what belongs to a set stays together
        labels = screen.obs["perturbation"].cat.codes.to_numpy()[request.observed_SN]
        assert (labels == request.perturbation_S[:, None]).all()


@pytest.mark.parametrize("n", [1, 8, 20])
def test_prediction_takes_every_start_cell_once_in_full_windows(n):
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
