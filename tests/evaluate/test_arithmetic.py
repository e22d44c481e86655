"""Simple predictors on tiny tables, to the last digit."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_tahoe.evaluate import RidgeFit, SeenChanges, nearest_mean


@pytest.fixture
def seen():
    """Two contexts; A and B in both, C in x, D in y."""
    conditions = [("A", "x", 1), ("B", "x", 3), ("C", "x", 8), ("A", "y", 10), ("B", "y", 20), ("D", "y", 60)]
    labels, contexts, values = (np.array(column) for column in zip(*conditions, strict=True))
    return SeenChanges(labels, contexts, values[:, None].astype(float))


@pytest.mark.parametrize(
    ("context", "options", "expected"),
    [
        ("x", {}, 4),
        ("x", {"without": ["C"]}, 2),
        ("x", {"without": ["C", "nobody"]}, 2),
        ("x", {"hidden": True}, 30),
        ("z", {}, 17),  # the mean of the contexts' means
        ("x", {"without": ["A", "B", "C"]}, 60),  # nothing is left here
    ],
)
def test_the_mean_change_of_a_context(seen, context, options, expected):
    assert seen.mean(context, **options) == pytest.approx(expected)


def test_nothing_has_no_mean():
    empty = SeenChanges(np.array([], dtype=str), np.array([], dtype=str), np.empty((0, 2)))
    assert empty.mean("x") is None


def test_transfer_is_the_mean_elsewhere(seen):
    assert seen.transfer("A", "x") == pytest.approx(10)
    assert seen.transfer("A", "z") == pytest.approx(5.5)
    assert seen.transfer("C", "x") is None


def test_deviation_is_the_mean_here_and_the_difference_there(seen):
    # fewer than three perturbations are shared: all of each context
    assert seen.deviation("D", "x") == pytest.approx(4 + 60 - 15)
    assert seen.deviation("A", "x") == pytest.approx(5.5 + 10 - 40)
    assert seen.deviation("C", "x") is None


def test_deviation_compares_shared_perturbations_where_there_are_three():
    names = ["A", "B", "C", "D"]
    labels = np.array([*names, *names, "only here"])
    contexts = np.array(["x"] * 4 + ["y"] * 4 + ["x"])
    changes = np.array([1, 2, 3, 4, 10, 20, 30, 40, 1000], dtype=float)[:, None]
    seen = SeenChanges(labels, contexts, changes)
    assert seen.deviation("A", "x") == pytest.approx(3 + 10 - 30)  # B, C and D: not what is only here


def test_a_hidden_context_is_not_looked_at(seen):
    assert seen.deviation("D", "x", hidden=True) == pytest.approx(15 + 60 - 15)
    assert seen.names_seen("x", hidden=True) == ["A", "B", "C", "D"]
    assert seen.names_seen("x") == ["A", "B", "C"]
    assert seen.of_perturbations("x", ["A", "D"]).ravel().tolist() == [1, 60]
    assert seen.names_seen("z") == ["A", "B", "C", "D"]


def test_ridge_predicts_rows_without_themselves_as_a_refit_would():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)), rng.normal(size=(12, 4))
    fit = RidgeFit.of(x, y)
    slope, penalty = fit.axes_RP.T @ fit.scores_RG, None
    centred = x - x.mean(0)
    # the penalty that was chosen, from the normal equations
    rest = centred.T @ (y - y.mean(0)) - centred.T @ centred @ slope
    penalty = float((rest * slope).sum() / np.square(slope).sum())
    np.testing.assert_allclose(rest, penalty * slope, atol=1e-8)
    kept = np.arange(12) != 5
    part, target = x[kept] - x[kept].mean(0), y[kept] - y[kept].mean(0)
    refit = np.linalg.solve(part.T @ part + penalty * np.eye(3), part.T @ target)
    expected = y[kept].mean(0) + (x[5] - x[kept].mean(0)) @ refit
    np.testing.assert_allclose(fit.left_out_TG[5], expected, atol=1e-8)


def test_ridge_of_equal_rows_is_their_mean():
    fitted = RidgeFit.of(np.ones((3, 2)), np.array([[1.0], [2.0], [6.0]])).predict(np.zeros((1, 2)))
    assert fitted.tolist() == [[3]]


def test_ridge_finds_a_linear_map():
    rng = np.random.default_rng(0)
    x, slope = rng.normal(size=(50, 3)), rng.normal(size=(3, 4))
    new = rng.normal(size=(5, 3))
    np.testing.assert_allclose(RidgeFit.of(x, x @ slope + 2).predict(new), new @ slope + 2, atol=0.01)


def test_nearer_neighbours_count_more():
    similarity, values = np.array([[0.9, 0.8, -1.0]]), np.array([[1.0], [3.0], [100.0]])
    weight = np.exp(10 * (np.array([0.9, 0.8]) - 0.9))
    expected = (weight * [1, 3]).sum() / weight.sum()
    assert nearest_mean(similarity, values, 2)[0, 0] == pytest.approx(expected)
    assert nearest_mean(similarity, values, 1)[0, 0] == 1
