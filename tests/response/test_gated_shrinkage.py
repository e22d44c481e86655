"""The network corrects the response model where it helps conditions it was not fitted to, and is silent elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_tahoe.response._residual import gated_shrinkage


def conditions(rng, n, share, noise=1.0):
    """Start, network and observed means: ``share`` of the correction is right, the rest of what is missing is noise."""
    start = rng.normal(size=(n, 200))
    correction = rng.normal(size=(n, 200))
    return start, start + correction, start + share * correction + rng.normal(scale=noise, size=(n, 200))


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_a_correction_that_holds_is_kept_as_far_as_it_holds(share):
    factor, gain, error = gated_shrinkage(*conditions(np.random.default_rng(0), 20, share))
    assert factor == pytest.approx(share, abs=0.06)
    assert gain > error > 0


def test_without_signal_the_network_is_silent_in_nearly_all_screens():
    factors = [gated_shrinkage(*conditions(np.random.default_rng(seed), 8, 0.0))[0] for seed in range(100)]
    assert np.mean(np.array(factors) > 0) <= 0.1
    assert max(factors) < 0.1


def test_a_correction_that_helps_one_condition_alone_is_not_kept():
    start, network, observed = conditions(np.random.default_rng(1), 8, 0.0)
    observed[0] = network[0]
    assert gated_shrinkage(start, network, observed)[0] == 0


def test_a_network_that_changes_nothing_is_silent():
    start, _, observed = conditions(np.random.default_rng(2), 5, 0.0)
    assert gated_shrinkage(start, start, observed) == (0.0, 0.0, 0.0)
