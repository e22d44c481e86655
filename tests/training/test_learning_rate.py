"""The learning-rate test trains a copy, and suggests a rate below the one that breaks it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_tahoe.training._learning_rate import LearningRateTest


@pytest.fixture
def model(make_model):
    return make_model(prior="mean")


def test_it_leaves_the_model_as_it_was(model):
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    state = torch.get_rng_state()
    first, second = (model.find_learning_rate(n_steps=20, highest=0.1, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.losses, second.losses)
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.is_trained
    assert model.prior_ is None
    assert all(p.grad is None for p in model.module.parameters())


def test_the_rate_grows_geometrically_until_the_loss_explodes(model):
    test = model.find_learning_rate(lowest=1e-4, highest=1e3, n_steps=60)
    assert test.rates[0] == 1e-4
    np.testing.assert_allclose(test.rates[2:] / test.rates[1:-1], (1e7) ** (1 / 60))
    assert len(test.rates) == len(test.losses) == len(test.smoothed) < 60
    assert np.isnan(test.smoothed[:9]).all()
    for i in (9, 20):
        assert test.smoothed[i] == pytest.approx(test.losses[i - 9 : i + 1].mean())
    assert test.rates[0] < test.suggestion < test.rates[-1] / 10


def test_adapters_are_tested_on_the_copy_alone(make_model, train):
    pytest.importorskip("peft")
    model = train(make_model())
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    test = model.find_learning_rate(n_steps=12, recipe="lora", highest=0.1)
    assert len(test.rates) == 12
    assert model.adapters_ is None
    assert set(before) == set(model.module.state_dict())
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())
    assert all(p.requires_grad for p in model.module.parameters())


def fake(losses):
    losses = np.asarray(losses, dtype=float)
    return LearningRateTest(rates=np.geomspace(1e-5, 1e-1, len(losses)), losses=losses, smoothed=losses)


def test_the_suggestion_is_a_tenth_of_the_rate_at_the_minimum():
    test = fake([5.0] * 20 + [4.0, 3.0, 2.0, 3.0, 9.0])
    assert test.suggestion == pytest.approx(test.rates[22] / 10)
    assert repr(test) == "LearningRateTest: 25 steps from 1.0e-05 to 1.0e-01; suggestion 4.6e-03"
    figure = test.plot()
    (ax,) = figure.axes
    assert ax.get_xscale() == "log"
    assert "suggestion" in ax.get_legend().get_texts()[-1].get_text()


def test_a_rate_that_was_not_tested_or_does_not_help_is_not_suggested():
    rises, lowest = fake(np.linspace(1, 2, 25)), fake([5.0, 4.0, 3.0, 2.0] + [4.0] * 21)
    message = "the loss did not fall between rates 1.0e-05 and 1.0e-01; try other bounds or more steps."
    assert repr(rises).endswith(f"; no suggestion: {message}")
    assert len(rises.plot().axes[0].lines) == 2
    for test, text in (
        (rises, message),
        (lowest, "a tenth of it lies below the 1.0e-05 that the test began with; try l"),
    ):
        with pytest.raises(ValueError, match=text):
            _ = test.suggestion


def test_parts_keep_their_share_of_the_rate(make_model, train):
    """With a share near zero, blocks below the last stay as they are, and the loss is another."""
    model = train(make_model())
    losses = [
        model.find_learning_rate(n_steps=12, highest=0.1, recipe="full", plan_kwargs=kwargs).losses
        for kwargs in ({}, {"layer_decay": 1e-9})
    ]
    assert losses[0][0] == losses[1][0]
    assert not np.array_equal(*losses)


@pytest.mark.filterwarnings("error:Converting a tensor")
def test_no_warning_of_torch_comes_out_of_it(model):
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # else only the first of a process is said
    try:
        model.find_learning_rate(n_steps=2)
    finally:
        torch.set_warn_always(always)


def test_dropout_is_that_of_the_run_and_the_model_keeps_its_own(model):
    before = [layer.p for layer in model.module.modules() if isinstance(layer, torch.nn.Dropout)]
    without, with_dropout = (
        model.find_learning_rate(n_steps=12, plan_kwargs={"dropout": p}).losses for p in (0.0, 0.9)
    )
    assert not np.array_equal(without, with_dropout)
    assert before == [layer.p for layer in model.module.modules() if isinstance(layer, torch.nn.Dropout)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowest": 0.0}, "lowest=0.0 and highest=1.0 must be positive rates, the lower one first"),
        ({"lowest": 1.0, "highest": 0.1}, "must be positive rates, the lower one first"),
        ({"n_steps": 0}, "max_steps=0 must be a whole number of 1 or more"),
        ({"plan_kwargs": {"ema": 0.9, "lr": 0.1}}, r"plan_kwargs \['ema', 'lr'\] have no effect while the rate grows"),
        ({"plan_kwargs": {"lrs": 1}}, r"training options \['lrs'\] are unknown"),
        ({"recipe": "lora"}, "trains adapters beside loaded weights, and this model has none"),
    ],
)
def test_wrong_options_are_refused(options, message, model):
    with pytest.raises(ValueError, match=message):
        model.find_learning_rate(**options)
