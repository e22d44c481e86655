"""Regression by inducing conditions: its closed forms, and how near it is to the exact one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

from scvi_tahoe.data import LabelParser
from scvi_tahoe.response import _inducing
from scvi_tahoe.response._inducing import blocks_of, choose_inducing
from scvi_tahoe.response._kernels import ConditionKernels, Conditions, TableKernel
from scvi_tahoe.response._members import Question
from scvi_tahoe.response._precision import JITTER
from scvi_tahoe.response._regression import learn_weights, solve
from scvi_tahoe.response._response_model import fit_responses, predicted_changes
from scvi_tahoe.response._responses import Responses
from scvi_tahoe.response._saved import fitted_from_plain, plain_of_fitted, wrong_plain
from scvi_tahoe.response._uncertainty import variance_and_support

CPU = torch.device("cpu")
PARSER = LabelParser(control="control", combination_separator="+")


def made(n_labels: int, contexts: str, seed: int = 0, n_genes: int = 20):
    """Conditions whose changes follow a table and a context, with noise, and perturbations of the table alone."""
    rng = np.random.default_rng(seed)
    names = [f"P{i}" for i in range(n_labels + 10)]
    table = pd.DataFrame(rng.normal(size=(len(names), 4)), index=names)
    own = rng.normal(size=(len(names), n_genes))
    loadings = rng.normal(size=(len(contexts), 4, n_genes)) / 2 + rng.normal(size=(4, n_genes))
    truth = {c: table.to_numpy() @ loadings[k] + own for k, c in enumerate(contexts)}
    labels = [name for name in names[:n_labels] for c in contexts if c != "c" or int(name[1:]) % 2]
    where = [c for name in names[:n_labels] for c in contexts if c != "c" or int(name[1:]) % 2]
    changes = np.stack([truth[c][int(name[1:])] for name, c in zip(labels, where, strict=True)])
    noise = rng.uniform(0.2, 0.6, changes.shape)
    observed = changes + rng.normal(size=changes.shape) * np.sqrt(noise)
    return np.array(labels), np.array(where), observed, noise, table, truth


@pytest.fixture
def fitted(monkeypatch):
    """Weights of a small screen in blocks of 12 conditions, and its inverse covariance as a dense matrix."""
    monkeypatch.setattr(_inducing, "_BLOCK", 12)
    monkeypatch.setattr(_inducing, "blocks_of", lambda train: blocks_of(train, 12))
    labels, where, observed, noise, table, _ = made(16, "abc")
    conditions = Conditions.of(labels, where, PARSER)
    tables = {"t": TableKernel.of(table, conditions.components)}
    kernels = ConditionKernels.of(conditions, PARSER, tables, {})
    options = {"n_components": 3, "chosen": [np.arange(len(labels))], "seed": 0, "tick": lambda: None}
    learned = learn_weights(kernels, conditions, observed, noise, **options)
    return kernels, conditions, observed, noise, learned, choose_inducing(conditions, 9, np.random.default_rng(0))


def dense_covariance(kernels, conditions, group, rows) -> np.ndarray:
    """What inducing conditions explain of the covariance, and within blocks all of it."""
    (whole,) = (k.numpy() for k in kernels.sums(conditions, conditions, [group.weights]))
    inner = whole[np.ix_(rows, rows)] + (np.diag(whole)[rows].mean() + 1) * JITTER * np.eye(len(rows))
    explained = whole[:, rows] @ np.linalg.solve(inner, whole[rows])
    for block in blocks_of(conditions, 12):
        explained[np.ix_(block, block)] = whole[np.ix_(block, block)]
    return explained + np.diag(group.weights[-1] + group.noise + JITTER)


@pytest.mark.parametrize(
    "ways", [{"condition": [[3], [7]]}, {"perturbation": [[0, 1], [33, 34]]}, {"context": [list(range(0, 40, 3))]}],
    ids=["conditions", "perturbations", "a context across blocks"],
)  # fmt: skip
@pytest.mark.parametrize("small", [256, 0], ids=["few at once", "many at once"])
def test_leaving_out_equals_the_inverse_of_the_whole_matrix(fitted, ways, small, monkeypatch):
    monkeypatch.setattr("scvi_tahoe.response._precision._SMALL", small)
    kernels, conditions, observed, noise, learned, rows = fitted
    ((way, listed),) = ways.items()
    blocks = {way: [(np.array(b), np.ones(len(b), bool)) for b in listed]}
    options = {"blocks": blocks, "device": CPU, "tick": lambda: None, "inducing": rows}
    regression, left = solve(learned, kernels, conditions, observed, noise, **options)
    scores = observed @ regression.basis_QG.T
    for group in regression.groups:
        s, size = slice(group.start, group.stop), regression.size_Q[group.start : group.stop]
        precision = np.linalg.inv(dense_covariance(kernels, conditions, group, rows))
        solved = precision @ (scores[:, s] / size)
        np.testing.assert_allclose(regression.coefficients_nQ[:, s], solved, atol=1e-5)
        for block in listed:
            inner = np.linalg.inv(precision[np.ix_(block, block)])
            expected = scores[block, s] - inner @ solved[block] * size
            np.testing.assert_allclose(left[way].mean_nQ[block, s], expected, atol=1e-4)
            variance = (np.diag(inner) - group.noise[block])[:, None] * np.square(size)
            np.testing.assert_allclose(left[way].variance_nQ[block, s], variance, rtol=1e-3)


def test_with_all_conditions_inducing_it_is_the_exact_regression(fitted):
    kernels, conditions, observed, noise, learned, _ = fitted
    asked = Conditions.of(["P3", "P2", "P20", "nobody"], ["c", "c", "a", "b"], PARSER)
    found = []
    for rows in (None, np.arange(len(conditions))):
        options = {"blocks": {}, "device": CPU, "tick": lambda: None, "inducing": rows}
        regression, _ = solve(learned, kernels, conditions, observed, noise, **options)
        mean = regression.predict(kernels, asked, conditions, CPU)
        variance, _ = regression.variance(kernels, asked, conditions, CPU)
        own = regression.variance(kernels, conditions, conditions, CPU, np.arange(len(conditions)))[0]
        found.append((mean, variance, own))
    for exact, other in zip(*found, strict=True):
        np.testing.assert_allclose(other, exact, rtol=1e-3, atol=1e-3)


def test_some_hundred_conditions_by_inducing_ones_are_predicted_as_by_all(monkeypatch):
    monkeypatch.setattr("scvi_tahoe.response._response_model._INDUCING", 80)
    monkeypatch.setattr(_inducing, "blocks_of", lambda train: blocks_of(train, 40))
    labels, where, observed, noise, table, truth = made(80, "abc")
    responses = Responses(labels, where, observed, noise, np.array([f"g{i}" for i in range(20)]), {})
    tables = {"t": TableKernel.of(table, np.unique(labels).tolist())}
    questions = [Question(f"P{i}", "c") for i in range(0, 80, 2)] + [Question(f"P{i}", "a") for i in range(80, 90)]
    wanted = np.stack([truth[q.context][int(q.perturbation[1:])] for q in questions])
    errors, supports = [], []
    for limit in (10_000, 100):
        fit = fit_responses(responses, PARSER, tables, exact_up_to=limit)
        assert (fit.regression.inducing is None) == (limit > len(labels))
        found, _ = predicted_changes(fit, questions, {})
        errors.append([np.sqrt(np.square(found - wanted)[k].mean()) for k in (slice(0, 40), slice(40, None))])
        supports.append(variance_and_support(fit, questions, {})[1])
    np.testing.assert_allclose(errors[1], errors[0], rtol=0.02)
    assert np.abs(supports[1] - supports[0]).mean() < 0.02
    arrays, settings = plain_of_fitted(fit)
    pairs = list(zip(where.tolist(), labels.tolist(), strict=True))
    assert wrong_plain(arrays, settings, pairs, {}, 20) == ""
    again = fitted_from_plain(arrays, settings, pairs, {})
    np.testing.assert_array_equal(predicted_changes(again, questions, {})[0], found)
    assert "inducing" in wrong_plain(arrays, settings | {"inducing": None}, pairs, {}, 20)


def test_inducing_conditions_come_from_all_contexts_alike():
    conditions = Conditions.of([f"P{i}" for i in range(60)], ["few"] * 4 + ["many"] * 56, PARSER)
    chosen = choose_inducing(conditions, 12, np.random.default_rng(0))
    assert len(set(chosen.tolist())) == 12
    assert np.unique(conditions.contexts[chosen], return_counts=True)[1].tolist() == [4, 8]


@pytest.mark.parametrize("labels", [[f"P{i // 4}" for i in range(200)], ["P1"] * 90 + ["P2+P3"] * 110], ids=str)
def test_blocks_hold_perturbations_whole_unless_one_is_very_large(labels):
    conditions = Conditions.of(labels, [f"c{i}" for i in range(200)], PARSER)
    blocks = blocks_of(conditions, 30)
    assert sorted(np.concatenate(blocks).tolist()) == list(range(200))
    assert max(map(len, blocks)) < 60
    if len(set(labels)) > 2:
        assert all(set(conditions.label[a]).isdisjoint(conditions.label[b]) for a, b in pairwise(blocks))
