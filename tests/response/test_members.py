"""What questions are asked, what simple members say to each, and how members are stacked."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvi_tahoe.data import LabelParser
from scvi_tahoe.evaluate import SeenChanges
from scvi_tahoe.response._kernels import TableKernel
from scvi_tahoe.response._members import (
    MEMBERS,
    Members,
    Origin,
    Question,
    Stack,
    _ridge_of,
    fit_stack,
)

PLAIN = LabelParser(control="control")
PAIRS = LabelParser(control="control", combination_separator="+")
DOSES = LabelParser(control="control", has_dose=True)


def members_of(conditions, changes, parser=PLAIN, table=None, noise=None):
    labels, contexts = (np.array(side) for side in zip(*conditions, strict=True))
    changes = np.array(changes, dtype=float)
    tables = {} if table is None else {"t": TableKernel.of(table, list(table.index))}
    noise = np.zeros_like(changes) if noise is None else np.array(noise, dtype=float)
    return Members(SeenChanges(labels, contexts, changes), noise, parser, tables)


TABLE = pd.DataFrame(np.eye(3), index=["A", "B", "N"])
SEEN = [("A", "x"), ("A", "y"), ("B", "x"), ("A+C", "x")]
DOSED = [("A@1", "x"), ("A@100", "x"), ("B@1", "x")]


@pytest.mark.parametrize(
    ("question", "seen", "parser", "table", "origin"),
    [
        (Question("A", "x"), SEEN, PLAIN, None, Origin.OTHER_CONTEXTS),
        (Question("B", "y"), SEEN, PLAIN, None, Origin.OTHER_CONTEXTS),
        (Question("B", "x"), SEEN, PLAIN, None, Origin.OTHERS),
        (Question("A", "x", frozenset({"A"})), SEEN, PLAIN, None, Origin.OTHERS),
        (Question("N", "x"), SEEN, PLAIN, TABLE, Origin.NEAREST),
        (Question("unheard", "x"), SEEN, PLAIN, TABLE, Origin.OTHERS),
        (Question("A@10", "x"), DOSED, DOSES, None, Origin.NEAREST_DOSES),
        (Question("C@10", "x"), DOSED, DOSES, None, Origin.OTHERS),
        (Question("A+B", "x"), SEEN, PAIRS, None, Origin.PARTS),
        (Question("A+D", "x"), SEEN, PAIRS, None, Origin.SOME_PARTS),
        (Question("C+D", "x"), SEEN, PAIRS, None, Origin.SHARING_PARTS),
        (Question("D+E", "x"), SEEN, PAIRS, None, Origin.OTHERS),
        (Question("A+B", "x", frozenset({"A", "A+C", "B"})), SEEN, PAIRS, None, Origin.OTHERS),
        (Question("B", "x", hides_context=True), SEEN, PLAIN, None, Origin.OTHERS),
    ],
    ids=lambda value: value.name if isinstance(value, Origin) else None,
)
def test_the_kind_of_a_question(question, seen, parser, table, origin):
    members = members_of(seen, np.zeros((len(seen), 2)), parser, table)
    assert members.origin(question) is origin


def test_elsewhere_knows_transfer_and_deviation():
    seen = [("A", "y"), ("B", "y"), ("B", "x"), ("C", "x")]
    members = members_of(seen, [[4], [2], [10], [20]])
    found = members.changes(Question("A", "x"), Origin.OTHER_CONTEXTS)
    assert {name: float(value[0]) for name, value in found.items()} == {
        "mean": 15,  # of B and C here
        "transfer": 4,
        "deviation": 15 + 4 - 2,  # the mean here, and what A differs from B there
    }


def test_doses_between_two_are_interpolated_on_the_log_scale():
    members = members_of([("A@1", "x"), ("A@100", "x")], [[0], [8]], DOSES)
    found = members.changes(Question("A@10", "x"), Origin.NEAREST_DOSES)
    assert found["deviation"] == pytest.approx(4)
    beyond = members.changes(Question("A@1000", "x"), Origin.NEAREST_DOSES)
    assert beyond["deviation"] == pytest.approx(8)


def test_a_pair_is_the_mean_and_what_its_parts_differ_from_it():
    members = members_of([("A", "x"), ("B", "x"), ("C", "x")], [[1], [2], [6]], PAIRS)
    found = members.changes(Question("A+B", "x"), Origin.PARTS)
    assert found["deviation"] == pytest.approx(3 + (1 - 3) + (2 - 3))
    some = members.changes(Question("A+D", "x"), Origin.SOME_PARTS)
    assert some["deviation"] == pytest.approx(1)


def test_the_nearest_by_table_do_not_know_what_is_left_out():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(12, 4)), index=[f"P{i}" for i in range(12)])
    table.loc["P1"] = table.loc["P0"] + 1e-3
    changes = rng.normal(size=(12, 3))
    members = members_of([(f"P{i}", "x") for i in range(12)], changes, PLAIN, table)
    near = members.changes(Question("P0", "x"), Origin.NEAREST)
    assert np.abs(near["nearest"] - changes[1]).max() < np.abs(near["nearest"] - changes[0]).max()
    far = members.changes(Question("P0", "x", frozenset({"P0", "P1"})), Origin.NEAREST)
    assert np.abs(far["nearest"] - near["nearest"]).max() > 0.05
    assert set(far) == {"mean", "nearest", "ridge"}


def test_noise_of_the_deviation_is_that_of_its_rows():
    members = members_of([("A", "y"), ("A", "z"), ("B", "x")], np.zeros((3, 1)), noise=[[4], [2], [100]])
    noise = members.noise_of(Question("A", "x"), Origin.OTHER_CONTEXTS)
    assert noise == pytest.approx((4 + 2) / 2 / 2)


@pytest.fixture
def left_out():
    """Conditions of which one member knows the truth but for noise, and another is worthless."""
    rng = np.random.default_rng(0)
    truth = list(rng.normal(size=(60, 30)))
    predicted = [
        {"kernels": rng.normal(size=30), "mean": rng.normal(size=30), "transfer": t + 0.3 * rng.normal(size=30)}
        for t in truth
    ]
    return predicted, truth


def test_the_better_member_gets_the_weight(left_out):
    predicted, truth = left_out
    stack = fit_stack(predicted, [None] * 60, truth, np.ones(60))
    weights = dict(zip(MEMBERS, stack.weights, strict=True))
    assert weights["transfer"] > 0.6
    assert stack.weights.sum() == pytest.approx(1)
    assert weights["nearest"] == weights["ridge"] == weights["deviation"] == 0


def test_few_conditions_leave_the_kernels_alone(left_out):
    predicted, truth = left_out
    stack = fit_stack(predicted[:5], [None] * 5, truth[:5], np.ones(5))
    assert stack.weights.tolist() == Stack.default().weights.tolist() == [1, 0, 0, 0, 0, 0]
    some = fit_stack(predicted[:8], [None] * 8, truth[:8], np.ones(8))
    more = fit_stack(predicted, [None] * 60, truth, np.ones(60))
    assert some.weights[0] > more.weights[0]


def test_a_member_that_knows_nothing_is_replaced_by_the_kernels():
    stack = Stack(np.array([0.5, 0, 0.5, 0, 0, 0]), np.zeros(7))
    kernels = np.array([2.0])
    assert stack.apply({"kernels": kernels}, None) == pytest.approx(2)
    assert stack.apply({"kernels": kernels, "transfer": np.array([4.0])}, None) == pytest.approx(3)


def test_genes_far_beyond_their_noise_are_left_unshrunk():
    rng = np.random.default_rng(0)
    deviations = [np.where(np.arange(200) < 20, 5.0, 0.1 * rng.normal(size=200)) for _ in range(30)]
    truth = [np.where(np.arange(200) < 20, 5.0, 0.0) for _ in deviations]
    predicted = [
        {"kernels": t / 2, "mean": np.zeros(200), "deviation": d} for t, d in zip(truth, deviations, strict=True)
    ]
    noise = np.full(200, 0.01)
    stack = fit_stack(predicted, [noise] * 30, truth, np.ones(30))
    assert stack.unshrunk[-1] > 0.8
    assert (np.diff(stack.unshrunk) >= 0).all()
    assert stack.apply(predicted[0], noise)[:20] == pytest.approx(5, abs=0.5)


def test_a_context_of_opposite_effects_is_not_predicted_from_others():
    rng, n = np.random.default_rng(0), 20
    truth = rng.normal(size=(n, 30))
    contexts = np.repeat(["alike", "opposite"], n // 2)
    predicted = [{"kernels": t + 0.3 * rng.normal(size=30), "mean": np.zeros(30)} for t in truth]
    observed = np.where((contexts == "opposite")[:, None], -truth, truth)
    stack = fit_stack(predicted, [None] * n, list(observed), np.ones(n), contexts)
    assert set(stack.reliance) == {"opposite"}
    assert stack.reliance["opposite"] < 0
    errors = [np.abs(stack.apply(predicted[-1], None, c) - observed[-1]).mean() for c in ("opposite", "alike")]
    assert errors[0] < np.abs(observed[-1]).mean() < errors[1]


def test_ridge_takes_lengths_of_rows_only_where_they_say_something():
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(40, 6))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    rows, slope = direction * rng.uniform(0.2, 5, size=(40, 1)), rng.normal(size=(6, 30))
    assert _ridge_of(rows, direction @ slope).of_unit_rows
    assert not _ridge_of(rows, rows @ slope).of_unit_rows
