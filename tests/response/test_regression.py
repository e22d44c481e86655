"""Gaussian process regression: what closed forms say equals an explicit refit, and weights find what is there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from scvi_tahoe.data import LabelParser
from scvi_tahoe.response._kernels import ConditionKernels, Conditions, TableKernel
from scvi_tahoe.response._regression import LeftOut, Weights, group_ends, learn_weights, response_basis, solve

CPU = torch.device("cpu")
PARSER = LabelParser(control="control")


def nothing() -> None:
    """No progress bar."""


@pytest.fixture
def screen():
    """Conditions of two contexts, a table, changes and their noise."""
    rng = np.random.default_rng(0)
    labels = [f"P{i}" for i in range(7)] * 2
    conditions = Conditions.of(labels, ["a"] * 7 + ["b"] * 7, PARSER)
    table = pd.DataFrame(rng.normal(size=(9, 3)), index=[f"P{i}" for i in range(9)])
    kernels = ConditionKernels.of(conditions, PARSER, {"t": TableKernel.of(table, conditions.components)}, {})
    changes = table.to_numpy()[[*range(7)] * 2] @ rng.normal(size=(3, 11)) + 0.1 * rng.normal(size=(14, 11))
    return kernels, conditions, changes, rng.uniform(0.01, 0.2, changes.shape)


@pytest.fixture
def learned(screen):
    kernels, conditions, changes, noise = screen
    options = {"n_components": 5, "chosen": [np.arange(14)], "seed": 0, "tick": nothing}
    return learn_weights(kernels, conditions, changes, noise, **options)


def without(learned: Weights, screen, rows):
    """Fit to the other conditions with the same basis and weights."""
    kernels, conditions, changes, noise = screen
    kept = np.setdiff1d(np.arange(len(changes)), rows)
    some = conditions.take(kept, PARSER)
    fit, _ = solve(learned, kernels, some, changes[kept], noise[kept], blocks={}, device=CPU, tick=nothing)
    return fit, some


@pytest.mark.parametrize(
    ("block", "wanted"),
    [([3], [True]), ([2, 9], [True, True]), ([1, 2, 8], [False, True, True])],
    ids=["one condition", "a perturbation", "a block of which some are asked for"],
)
def test_leaving_out_in_closed_form_equals_a_fit_without_the_rows(screen, learned, block, wanted):
    kernels, conditions, changes, noise = screen
    rows = np.array(block)
    blocks = {"way": [(rows, np.array(wanted))]}
    _, left = solve(learned, kernels, conditions, changes, noise, blocks=blocks, device=CPU, tick=nothing)
    refit, some = without(learned, screen, rows)
    asked = rows[np.array(wanted)]
    mean = refit.predict(kernels, conditions.take(asked, PARSER), some, CPU)
    variance, _ = refit.variance(kernels, conditions.take(asked, PARSER), some, CPU)
    np.testing.assert_allclose(left["way"].mean_nQ[asked], mean, atol=2e-4)
    np.testing.assert_allclose(left["way"].variance_nQ[asked], variance, rtol=2e-3, atol=1e-6)
    assert sorted(left["way"].rows.tolist()) == sorted(asked.tolist())


def test_a_measured_condition_is_the_posterior_of_its_own_nugget(screen, learned):
    kernels, conditions, changes, noise = screen
    fit, _ = solve(learned, kernels, conditions, changes, noise, blocks={}, device=CPU, tick=nothing)
    rows = np.array([0, 5])
    measured = fit.predict(kernels, conditions.take(rows, PARSER), conditions, CPU, rows)
    # y = f + nugget + noise: the posterior mean of f + nugget is y without the noise that is expected
    expected = np.empty_like(measured)
    for group in fit.groups:
        s = slice(group.start, group.stop)
        own = group.noise[rows, None] * fit.size_Q[s]
        expected[:, s] = changes[rows] @ fit.basis_QG[s].T - own * fit.coefficients_nQ[rows, s]
    np.testing.assert_allclose(measured, expected, atol=1e-4)
    alone, _ = fit.variance(kernels, conditions.take(rows, PARSER), conditions, CPU)
    known, _ = fit.variance(kernels, conditions.take(rows, PARSER), conditions, CPU, rows)
    assert (known < alone).all()


def test_without_noise_and_nugget_a_regression_interpolates(screen, learned):
    kernels, conditions, changes, _ = screen
    logs = tuple(np.append(np.zeros(len(log) - 1), -14.0) for log in learned.logs)
    exact = replace(learned, logs=logs)
    zeros = np.zeros_like(changes)
    fit, _ = solve(exact, kernels, conditions, changes, zeros, blocks={}, device=CPU, tick=nothing)
    found = fit.predict(kernels, conditions, conditions, CPU)
    np.testing.assert_allclose(found, changes @ fit.basis_QG.T, rtol=1e-2, atol=1e-2)


def test_the_prior_variance_of_an_unknown_condition_is_what_is_left(screen, learned):
    kernels, conditions, changes, noise = screen
    fit, _ = solve(learned, kernels, conditions, changes, noise, blocks={}, device=CPU, tick=nothing)
    asked = Conditions.of(["P8", "nobody"], ["a", "a"], PARSER)
    posterior, prior = fit.variance(kernels, asked, conditions, CPU)
    assert (posterior <= prior + 1e-9).all()
    shares = posterior.sum(1) / prior.sum(1)
    assert shares[0] < shares[1]  # a row of the table says something


def test_weights_find_the_kernel_that_made_the_responses():
    rng = np.random.default_rng(1)
    names = [f"P{i}" for i in range(40)]
    good, bad = (pd.DataFrame(rng.normal(size=(40, 4)), index=names) for _ in range(2))
    conditions = Conditions.of(names, ["a"] * 40, PARSER)
    tables = {n: TableKernel.of(t, names) for n, t in (("good", good), ("bad", bad))}
    kernels = ConditionKernels.of(conditions, PARSER, tables, {})
    changes = tables["good"].matrix @ rng.normal(size=(4, 20))
    options = {"n_components": 4, "chosen": [np.arange(40)], "seed": 0, "tick": nothing}
    learned = learn_weights(kernels, conditions, changes, np.full(changes.shape, 0.01), **options)
    total = {name: np.mean([np.exp(log[k]) for log in learned.logs]) for k, name in enumerate(kernels.names)}
    assert total["good, linear"] > 20 * total["bad, linear"]


def test_noisy_conditions_count_less_in_the_basis():
    rng = np.random.default_rng(0)
    signal = 2 * rng.normal(size=(20, 1)) @ np.eye(1, 30)
    noise = np.full((20, 30), 1e-4)
    noise[10:] = 2.0
    changes = signal + rng.normal(size=(20, 30)) * np.sqrt(noise)
    weighted, unweighted = (response_basis(changes, v, 1, 0)[0] for v in (noise, np.zeros_like(noise)))
    assert abs(weighted[0]) > abs(unweighted[0]) + 0.05


def test_the_basis_is_orthonormal_and_leaves_out_what_holds_nothing():
    rng = np.random.default_rng(0)
    changes = rng.normal(size=(12, 2)) @ rng.normal(size=(2, 9))
    basis = response_basis(changes, np.zeros_like(changes), 128, 0)
    assert basis.shape == (2, 9)
    np.testing.assert_allclose(basis @ basis.T, np.eye(2), atol=1e-9)


@pytest.mark.parametrize(("n_components", "n_conditions"), [(1, 5), (12, 100), (128, 100), (128, 1000), (128, 9000)])
def test_groups_cover_all_components_and_are_fewer_for_more_conditions(n_components, n_conditions):
    ends = group_ends(n_components, n_conditions)
    assert ends[-1] == n_components
    assert ends == sorted(set(ends))
    assert len(group_ends(n_components, 10 * n_conditions)) <= len(ends)


def test_folds_keep_the_basis_of_each():
    bases = (np.eye(2, 3), np.eye(1, 3)[:, ::-1])
    parts = [
        LeftOut(np.array([[1.0, 2.0], [np.nan, np.nan]]), np.array([[1.0, 1.0], [np.nan, np.nan]]), (bases[0],), None),
        LeftOut(np.array([[np.nan], [5.0]]), np.array([[np.nan], [4.0]]), (bases[1],), None),
    ]
    mean, variance = LeftOut.joined(parts).changes(np.array([0, 1]))
    assert mean.tolist() == [[1, 2, 0], [0, 0, 5]]
    assert variance.tolist() == [[1, 1, 0], [0, 0, 4]]
