"""A moving average of the weights is what validates, what is kept and what the model has in the end."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch

from scvi_tahoe import FractionSplit

EMA = {"plan_kwargs": {"ema": 0.8, "schedule": "constant"}, "lr": 0.01}


class Validated(pl.Callback):
    """The weights that each validation sees."""

    def __init__(self):
        self.seen = {}

    def on_validation_batch_start(self, trainer, plan, *args):
        self.seen[trainer.global_step] = {k: v.clone() for k, v in plan.module.state_dict().items()}


@pytest.fixture
def trained_weights(spy):
    """A spy on the weights after every minibatch."""
    return spy(lambda trainer, plan: (trainer.global_step, {k: v.clone() for k, v in plan.module.state_dict().items()}))


def averages(start, seen, decay):
    """By the formula, one step after the other."""
    average, by_step, done = dict(start), {0: dict(start)}, 0
    for step, weights in seen:
        if step > done:
            keep = min(decay, (1 + step) / (10 + step))
            average = {k: keep * average[k] + (1 - keep) * weights[k] for k in average}
            done = step
        by_step[step] = average
    return by_step


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_moves_once_a_step_and_is_what_validates(accumulate, make_model, train, trained_weights, weights):
    model, validated = make_model(), Validated()
    start = weights(model)
    train(model, callbacks=[trained_weights, validated], accumulate_grad_batches=accumulate, **EMA)
    expected = averages(start, trained_weights.seen, 0.8)
    assert set(validated.seen) == {0, 4, 8}
    for step, seen in validated.seen.items():
        torch.testing.assert_close(seen, expected[step])
    raw = dict(trained_weights.seen)
    assert not torch.equal(raw[8]["network.backbone.norm.weight"], validated.seen[8]["network.backbone.norm.weight"])


def test_without_validation_the_model_has_the_average_in_the_end(make_model, train, trained_weights, weights):
    model = make_model()
    start = weights(model)
    with pytest.warns(UserWarning, match="no cell validates"):
        train(model, callbacks=[trained_weights], split=FractionSplit(validation=0.0), **EMA)
    torch.testing.assert_close(weights(model), averages(start, trained_weights.seen, 0.8)[8])


def test_the_best_average_is_kept_and_given_back(make_model, train, weights, tmp_path):
    model, validated = make_model(), Validated()
    train(model, callbacks=[validated], save_dir=tmp_path, **EMA)
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    kept = {k.removeprefix("module."): v for k, v in best["state_dict"].items()}
    for state in (kept, weights(model)):
        assert all(torch.equal(v, state[k]) for k, v in validated.seen[best["global_step"]].items())


def test_training_goes_on_from_the_weights_and_not_from_their_average(make_model, train, trained_weights, spy):
    """The average looks on: the weights move as they do without it."""
    train(make_model(), callbacks=[trained_weights], **EMA)
    alone = spy(trained_weights.look)
    train(make_model(), callbacks=[alone], **{**EMA, "plan_kwargs": {"schedule": "constant"}})
    for (_, a), (_, b) in zip(trained_weights.seen, alone.seen, strict=True):
        assert all(torch.equal(v, b[k]) for k, v in a.items())


def test_what_is_frozen_equals_its_average_to_the_bit(pretrained, train, weights):
    model = pretrained()
    before = weights(model)
    train(model, freeze_backbone=True, **EMA)
    kept = {k for k, v in weights(model).items() if torch.equal(v, before[k])}
    assert {k for k in before if ".backbone." in k} <= kept < set(before)
