"""The network corrects the response model where it helps conditions it was not fitted to, and is silent elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_tahoe import FractionSplit, HeldOutConditions, HeldOutPerturbations
from scvi_tahoe.datasets import simulate_screen
from scvi_tahoe.response._correction import Gain


def conditions(rng, n, share, noise=1.0):
    """Correction and what is missing: ``share`` of the correction is right, the rest of what is missing is noise."""
    correction = rng.normal(size=(n, 200))
    return correction, share * correction + rng.normal(scale=noise, size=(n, 200))


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_a_correction_that_holds_is_kept_as_far_as_it_holds(share):
    gain = Gain.of(*conditions(np.random.default_rng(0), 20, share))
    assert gain.kept == gain.factor == pytest.approx(share, abs=0.06)
    assert gain.share > gain.error > 0
    assert str(gain).startswith(
        "The network corrects the response model. On 20 held-out conditions it changes the squa"
    )


@pytest.mark.parametrize("n", [3, 8, 40])
def test_without_signal_the_network_is_silent_in_nearly_all_screens_and_never_worse_in_expectation(n):
    kept, error = [], []
    for seed in range(300):
        kept.append(Gain.of(*conditions(np.random.default_rng(seed), n, 0.0)).kept)
        # of a condition that the correction was not judged by
        correction, missing = conditions(np.random.default_rng(10_000 + seed), 1, 0.0)
        error.append(np.square(missing - kept[-1] * correction).sum() / np.square(missing).sum() - 1)
    assert np.mean(np.array(kept) > 0) <= 0.06
    assert np.mean(error) < 1e-3


def test_a_correction_that_helps_one_condition_alone_is_not_kept():
    correction, missing = conditions(np.random.default_rng(1), 8, 0.0)
    missing[0] = correction[0]
    gain = Gain.of(correction, missing)
    assert gain.kept == 0
    assert str(gain).startswith("The network adds nothing here; predictions are the response model's. On 8 held-out co")


def test_a_network_that_changes_nothing_is_silent():
    _, missing = conditions(np.random.default_rng(2), 5, 0.0)
    gain = Gain.of(0 * missing, missing)
    assert (gain.kept, gain.share, gain.error) == (0.0, 0.0, 0.0)


def names(screen):
    return sorted(set(screen.obs["perturbation"]) - {"control"})


@pytest.mark.parametrize(
    ("contexts", "options", "expected"),
    [
        (3, {}, HeldOutConditions(validation=0.1)),
        (2, {}, HeldOutConditions(validation=3 / 12)),
        (1, {"perturbation_embedding_key": "perturbation_embedding"}, HeldOutPerturbations),
    ],
    ids=["recurring perturbations", "a few of these", "one context and a table"],
)
def test_conditions_that_are_not_trained_on_judge_the_network_by_default(contexts, options, expected, make_model):
    screen = simulate_screen(contexts, 12 if contexts == 3 else 6, n_genes=30, n_cells=10, n_control_cells=20)
    split = make_model(screen, setup=options, prior="response").plan_training().split
    if expected is HeldOutPerturbations:
        assert isinstance(split, expected)
        assert len(split.validation) == 3
        assert set(split.validation) < set(names(screen))
    else:
        assert split == expected


def test_too_few_conditions_to_judge_by_leave_predictions_to_the_response_model(make_model, train, caplog):
    one = simulate_screen(1, 4, n_genes=30, n_cells=16, n_control_cells=20, seed=3)
    model = make_model(one, setup={"perturbation_embedding_key": "perturbation_embedding"}, prior="response")
    assert isinstance(model.plan_training().split, FractionSplit)
    train(model, lr=0.1)
    verdict = "The network adds nothing here; predictions are the response model's. No conditions are held out"
    assert model.training_config_["verdict"].startswith(verdict)
    caplog.clear()
    with caplog.at_level("INFO", logger="scvi_tahoe"):
        prior, cells = (model.predict(n_cells=4, output=o, progress=False).X for o in ("prior", "expression"))
    np.testing.assert_array_equal(cells, prior)
    assert caplog.text.count("The network adds nothing here; predictions are the response model's.") == 1
    assert not model.prior_report()["corrected"].any()


def test_training_ends_when_held_out_conditions_gain_nothing_more_and_says_what_changed(
    screen, make_model, train, caplog
):
    model = make_model(screen, prior="response")
    with caplog.at_level("INFO", logger="scvi_tahoe"):
        train(model, max_steps=40, validate_every=1, lr=1e-6, split=HeldOutConditions(validation=0.3))
    gains = model.history["validation_gain"]["validation_gain"].to_numpy()
    assert len(gains) < 40
    assert gains[-5:].max() <= max([0.0, *gains[:-5]])
    assert f"Training stops after {len(gains)} of 40 steps" in caplog.text
    assert model.training_config_["verdict"] in caplog.text
    before = len(gains)
    train(model, max_steps=before + 3, validate_every=1, lr=1e-6, patience=40, split=HeldOutConditions(validation=0.3))
    assert len(model.history["validation_gain"]) == 2 * before + 3
