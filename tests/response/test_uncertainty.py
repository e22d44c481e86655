"""Standard deviations and support: calibrated, larger where less is known, and never made of what is missing."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_tahoe.data import LabelParser
from scvi_tahoe.response._calibration import (
    chosen_size,
    chosen_spread,
    inflation_of,
    inflation_of_contexts,
    shaped_variance,
)
from scvi_tahoe.response._judged import _discriminating
from scvi_tahoe.response._members import Origin, Question
from scvi_tahoe.response._response_model import fit_responses, predicted_changes
from scvi_tahoe.response._responses import Responses
from scvi_tahoe.response._uncertainty import Measured, measured_rows, predict_conditions, predicted_sd

PARSER = LabelParser(control="control")


@pytest.mark.parametrize("noise", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_inflation_is_what_the_variance_lacks_beside_known_noise(factor, noise):
    rng = np.random.default_rng(0)
    variance = rng.uniform(0.5, 2, size=(400, 200))
    residual = rng.normal(size=variance.shape) * np.sqrt(factor**2 * variance + noise)
    found = inflation_of(np.square(residual), variance, np.full(variance.shape, noise))
    assert found == pytest.approx(factor, rel=0.1 if noise < 4 or factor > 0.5 else 0.3)
    covered = np.abs(residual) < 1.645 * np.sqrt(found**2 * variance + noise)
    assert covered.mean() == pytest.approx(0.9, abs=0.003)


def test_a_context_of_few_conditions_has_wider_intervals_if_its_own_conditions_say_so():
    rng = np.random.default_rng(0)
    contexts = np.array(["a"] * 100 + ["b"] * 18 + ["c"])
    true = np.where(contexts == "a", 1.0, 2.0)[:, None]
    squares, zeros = np.square(true * rng.normal(size=(len(contexts), 200))), np.zeros((len(contexts), 200))
    overall = inflation_of(squares, zeros + 1, zeros)
    found = inflation_of_contexts(squares, zeros + 1, zeros, contexts, overall)
    assert found["a"] == pytest.approx(1, rel=0.05)
    assert found["b"] == pytest.approx(2, rel=0.1)
    assert overall < found["c"] < found["b"]  # a single condition says less


def test_noise_that_covers_most_genes_does_not_make_the_others_certain():
    rng = np.random.default_rng(0)
    variance = np.full((40, 200), 1e-4)
    variance[:, :10] = 4.0  # few genes change, and all have the noise of few cells
    squares = (variance + 0.05) * np.square(rng.normal(size=variance.shape))
    assert 0.4 < inflation_of(squares, variance, np.full(variance.shape, 0.07)) < 1.5


def test_missing_responses_do_not_count_for_calibration():
    rng = np.random.default_rng(0)
    squares = np.square(rng.normal(size=(100, 100)))
    holes = np.where(rng.random(squares.shape) < 0.5, np.nan, squares)
    ones, zeros = np.ones(squares.shape), np.zeros(squares.shape)
    assert inflation_of(holes, ones, zeros) == pytest.approx(inflation_of(squares, ones, zeros), rel=0.05)
    assert inflation_of(np.full((2, 2), np.nan), ones[:2, :2], zeros[:2, :2]) == 1


def test_genes_that_change_more_vary_more_but_conditions_do_not():
    variance, change = np.ones((2, 4)), np.array([[0, 0, 0, 3.0], [0, 0, 0, 0]])
    found = shaped_variance(variance, np.square(change), 1.0)
    np.testing.assert_allclose(found.sum(axis=1), [4, 4])
    assert found[0, 3] == pytest.approx(10 * found[0, 0])
    np.testing.assert_allclose(found[1], 1)


@pytest.mark.parametrize("truth", [0.0, 1.0])
def test_the_spread_is_learned_from_residuals(truth):
    rng = np.random.default_rng(0)
    change = np.square(rng.normal(size=(100, 50)) * 3)
    variance = np.ones_like(change)
    squares = shaped_variance(variance, change, truth) * np.square(rng.normal(size=change.shape))
    assert chosen_spread(squares, variance, change, np.zeros_like(change)) == truth


@pytest.mark.parametrize("sized", [0.0, 0.025])
def test_conditions_that_change_more_are_less_sure_if_residuals_say_so(sized):
    rng = np.random.default_rng(0)
    size = rng.lognormal(0, 1, (60, 1))
    change = size * np.square(rng.normal(size=(60, 50)))
    variance, noise = np.full(change.shape, 0.1), np.full(change.shape, 0.05)
    truth = 1.5 * shaped_variance(variance, change, 0.0, sized)
    squares = (truth + noise) * np.square(rng.normal(size=change.shape))
    squares[:, 7] = np.nan  # not measured
    found = chosen_size(squares, variance, change, noise)
    expected = shaped_variance(variance, change, 0.0, found).sum(axis=1)
    if sized:
        assert np.corrcoef(np.log(expected), np.log(truth.sum(axis=1)))[0, 1] > 0.99
    else:
        assert found * change.mean() < 0.15 * variance.mean()
    assert chosen_size(squares[:4], variance[:4], change[:4], noise[:4]) == 0  # too few
    assert chosen_size(squares, variance, 0 * change, noise) == 0


def test_the_factor_is_the_smallest_that_tells_conditions_apart():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(30, 40)) + 2
    mean, contexts = np.full_like(truth, 2), np.array(["x"] * 30)
    assert _discriminating(truth, mean, truth, contexts) == 1
    shared = truth.copy()
    shared[:, :35] = rng.normal(size=35)  # only some genes tell conditions apart, and are shrunken
    found = mean + 0.3 * (shared - mean) + 0.05 * rng.normal(size=truth.shape)
    assert _discriminating(found, mean, shared, contexts) >= 1
    assert _discriminating(found[:4], mean[:4], shared[:4], contexts[:4]) == 1  # too few


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    labels, contexts = np.array([f"P{i}" for i in range(15)] * 2), np.array(["x"] * 15 + ["y"] * 15)
    effects = rng.normal(size=(15, 12))
    changes = np.concatenate([effects, effects + 0.2 * rng.normal(size=effects.shape)])
    changes += 0.3 * rng.normal(size=changes.shape)
    keep = np.arange(30) != 20  # P5 in y
    responses = Responses(
        labels[keep], contexts[keep], changes[keep], np.full((29, 12), 0.09), np.arange(12).astype(str), {}
    )
    return fit_responses(responses, PARSER, {})


def test_deviations_grow_from_measured_to_seen_elsewhere_to_unknown(fitted):
    own = Measured.of(fitted, np.ones(29, dtype=bool))
    questions = [
        Question("P5", "x", hides_condition=False), Question("P5", "y", hides_condition=False), Question("nobody", "y"),
    ]  # fmt: skip
    found = predict_conditions(fitted, questions, {}, own)
    size = found.deviation.mean(axis=1)
    assert size[0] < size[1] < size[2]
    assert found.support[0] > found.support[1] > found.support[2]
    assert found.support[2] == pytest.approx(0, abs=1e-6)
    assert found.starts_from == ["its own measurement", Origin.OTHER_CONTEXTS.value, Origin.OTHERS.value]


def test_a_measurement_is_weighed_against_the_others_gene_by_gene(fitted):
    own = Measured.of(fitted, np.ones(29, dtype=bool))
    found = predict_conditions(fitted, [Question("P3", "x", hides_condition=False)], {}, own)
    before, squared = own.changes[3], np.square(own.deviation[3], dtype=np.float64)
    expected = (before / squared + fitted.responses.changes[3] / 0.09) / (1 / squared + 1 / 0.09)
    np.testing.assert_allclose(found.changes[0], expected, rtol=1e-5)
    np.testing.assert_allclose(found.deviation[0], np.sqrt(1 / (1 / squared + 1 / 0.09)), rtol=1e-5)


def test_without_known_noise_the_regression_smooths(fitted):
    own = Measured.of(fitted, np.zeros(29, dtype=bool))
    assert not len(own.changes)
    question = [Question("P3", "x", hides_condition=False)]
    found = predict_conditions(fitted, question, {}, own)
    apart = np.abs(found.changes[0] - fitted.responses.changes[3]).mean()
    unknown = np.abs(fitted.responses.changes[3] - predicted_changes(fitted, [Question("P3", "x")], {})[0][0]).mean()
    assert 0 < apart < 1.5 * unknown
    assert (found.deviation > 0).all()


def test_only_questions_that_may_look_at_their_measurement_do(fitted):
    asked = [
        Question("P3", "x", hides_condition=False),
        Question("P3", "x"),
        Question("P3", "x", frozenset({"P3"}), hides_condition=False),
        Question("P3", "x", hides_context=True, hides_condition=False),
        Question("P5", "y", hides_condition=False),
    ]
    assert measured_rows(fitted, asked).tolist() == [3, -1, -1, -1, -1]


def test_deviations_do_not_depend_on_what_else_is_asked(fitted):
    questions = [Question("P5", "y"), Question("nobody", "x"), Question("P1", "x")]
    changes, _ = predicted_changes(fitted, questions, {})
    together = predicted_sd(fitted, questions, {}, changes)
    alone = [predicted_sd(fitted, [q], {}, changes[[k]])[0] for k, q in enumerate(questions)]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
