"""How alike deltas are, and when that is an alarm."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from scvi_tahoe.evaluate import check_collapse, mean_cosine


def test_the_mean_cosine_is_the_mean_over_pairs_of_different_perturbations():
    deltas = np.random.default_rng(0).normal(size=(5, 20))
    pairs = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in permutations(deltas, 2)]
    assert mean_cosine(deltas) == pytest.approx(np.mean(pairs))
    assert mean_cosine(np.concatenate([deltas, np.zeros((2, 20))])) == pytest.approx(np.mean(pairs))
    assert np.isnan(mean_cosine(deltas[:1]))


def test_deltas_that_are_more_alike_than_observed_ones_are_a_warning():
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=(1, 200)), rng.normal(size=(6, 200))
    observed = mean_cosine(own)
    assert check_collapse(own, observed).status == "ok"
    assert check_collapse(0.3 * shared + own, observed).status == "ok"  # a mean cosine of 0.08
    found = check_collapse(shared + own, observed, of="seen")
    assert found.status == "warning"
    assert "mean cosine of 0.5" in found.message
    assert "(seen: " in found.message


def test_what_cannot_be_compared_passes():
    assert check_collapse(np.zeros((4, 10)), 0.1).status == "ok"
    assert check_collapse(np.ones((4, 10)), float("nan")).status == "ok"
