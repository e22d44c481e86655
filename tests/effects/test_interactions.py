"""Pairs are compared with the sum of their parts."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_tahoe.effects import interactions

LABELS = ["A", "B", "C", "A+B", "A+C", "B+C", "A+D"]


@pytest.fixture
def pairs(table_of):
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(0, 1, (3, 300))
    changes = np.stack([a, b, c, a + b, 1.5 * (a + c), b, a])
    noisy = changes + rng.normal(0, 0.1, changes.shape)
    return table_of(noisy, sd=0.1, perturbation=LABELS)


def test_scores_tell_additive_synergistic_and_dominated_pairs_apart(pairs):
    scores = interactions(pairs, perturbation_key="perturbation", separator="+").obs.set_index("perturbation")
    assert set(scores.index) == {"A+B", "A+C", "B+C"}  # D was not measured
    assert scores.loc["A+B", "magnitude"] == pytest.approx(np.sqrt(2), abs=0.05)
    assert scores.loc["A+C", "magnitude"] == pytest.approx(1.5 * np.sqrt(2), abs=0.05)
    assert scores.loc["B+C", "dominance"] > 1 > 0.1 > scores.loc["A+B", "dominance"]
    assert scores.loc["A+B", "n_genes"] < 5 < scores.loc["A+C", "n_genes"]
    assert (scores["magnitude_sd"] < 0.05).all()


def test_deviations_are_the_pair_minus_its_parts_largest_first(pairs):
    found = interactions(pairs, perturbation_key="perturbation", separator="+")
    row = found[found.obs["perturbation"] == "A+B"]
    expected = pairs.X[0] + pairs.X[1]
    np.testing.assert_allclose(row.layers["expected"][0], expected, rtol=1e-6)
    np.testing.assert_allclose(row.X[0], pairs.X[3] - expected, rtol=1e-5, atol=1e-6)
    lengths = np.linalg.norm(found.X, axis=1)
    assert (np.diff(lengths) <= 0).all()


def test_parts_are_those_of_the_same_context(table_of):
    changes = np.random.default_rng(0).normal(size=(4, 20))
    effects = table_of(changes, perturbation=["A", "B", "A+B", "A+B"], line=["x", "x", "x", "y"])
    found = interactions(effects, perturbation_key="perturbation", context_key="line", separator="+")
    assert found.obs["line"].tolist() == ["x"]
    assert "sd" not in found.layers
    assert found.obs["n_genes"].isna().all()


def test_a_table_without_pairs_is_refused(table_of):
    effects = table_of(np.ones((2, 3)), perturbation=["A", "B"])
    with pytest.raises(ValueError, match="no pair"):
        interactions(effects, perturbation_key="perturbation", separator="+")
    with pytest.raises(ValueError, match="made without a combination_separator"):
        interactions(effects, perturbation_key="perturbation")
