"""How strongly each gene responds: against scipy's t test, and on a screen whose effects are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr, ttest_ind

from scvi_tahoe.data import FractionSplit, HeldOutPerturbations, ScreenKeys, make_store, read_screen
from scvi_tahoe.training._data import Moments, condition_moments, de_weights

CPU = torch.device("cpu")


def store(cells):
    return make_store(np.asarray(cells, dtype=np.float32), CPU)


def moments(cells):
    return Moments.of(store(cells), np.arange(len(cells)), CPU)


def test_weights_are_the_squared_t_scores_of_scipy_scaled_and_normalised():
    rng = np.random.default_rng(0)
    perturbed, control = rng.normal(0.3, 1, (20, 15)), rng.normal(0, 2, (50, 15))
    t = np.abs(ttest_ind(perturbed, control, equal_var=False).statistic)
    expected = ((t - t.min()) / (t.max() - t.min())) ** 2
    weights = de_weights(moments(perturbed), moments(control))
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-4, atol=1e-6)
    assert weights.dtype == np.float32
    assert weights.sum() == pytest.approx(1, abs=1e-6)


def test_without_a_spread_genes_weigh_the_same_or_by_that_of_the_controls():
    same = np.ones((6, 5))
    np.testing.assert_allclose(de_weights(moments(same), moments(same)), 0.2, rtol=1e-6)
    control = np.random.default_rng(0).normal(0, [0.1, 1.0], (40, 2))
    weights = de_weights(moments(np.array([[1.0, 1.0]])), moments(control))
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(weights, [1, 0])  # the same change is the more surprising in the steadier gene


def described(screen, split):
    keys = ScreenKeys(perturbation_key="perturbation", control="control", context_key="context")
    read = read_screen(screen, keys)
    index = read.index
    assigned = split.assign(index)
    return index, assigned, *condition_moments(make_store(read.expression, CPU), assigned, device=CPU, seed=0)


def test_genes_that_respond_in_truth_weigh_most(screen):
    index, _, conditions, controls = described(screen, FractionSplit(validation=0.1))
    weights = [de_weights(m, controls[c.context]) for m, c in zip(conditions, index.conditions, strict=True)]
    truth = [screen.uns["true_delta"][c.context].loc[c.perturbation].abs() for c in index.conditions]
    assert np.mean([spearmanr(w, t).statistic for w, t in zip(weights, truth, strict=True)]) > 0.5


def test_conditions_are_described_by_their_training_cells(screen):
    split = HeldOutPerturbations(validation=["perturbation_1"], test=["perturbation_2"])
    index, assigned, conditions, controls = described(screen, split)
    x = screen.X.toarray()
    for found, condition in zip(conditions, index.conditions, strict=True):
        if condition.perturbation == "perturbation_2":
            assert found is None
            continue
        np.testing.assert_allclose(found.mean, x[index.rows(condition)].mean(0), rtol=1e-4, atol=1e-6)
    for context, found in controls.items():
        np.testing.assert_allclose(found.mean, x[index.controls(context)].mean(0), rtol=1e-4, atol=1e-6)

    index, assigned, conditions, _ = described(screen, FractionSplit(validation=0.3))
    rows = np.intersect1d(index.rows(index.conditions[0]), assigned.train)
    np.testing.assert_allclose(conditions[0].mean, x[rows].mean(0), rtol=1e-4, atol=1e-6)
    assert len(rows) < len(index.rows(index.conditions[0]))
