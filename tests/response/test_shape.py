"""How much of a predicted change is kept, by its strength."""

import numpy as np
import pytest

from scvi_tahoe.response._shape import fit_shares, shaped


@pytest.fixture
def screen():
    """Changes of which one gene in ten answers, and predictions of them with some noise in all genes."""
    rng = np.random.default_rng(0)
    observed = np.where(rng.random((60, 100)) < 0.1, 3 * rng.normal(size=(60, 100)), 0)
    return observed + 0.3 * rng.normal(size=observed.shape), observed


def test_weak_changes_are_kept_less_than_strong_ones(screen):
    predicted, observed = screen
    scale = np.sqrt(np.square(observed).mean(axis=0))
    shares = fit_shares(predicted, observed, scale, np.ones(60))
    assert (np.diff(shares) >= 0).all()
    assert shares[0] < 0.4
    assert shares[-1] > 0.9
    before, after = (np.abs(x - observed).mean() for x in (predicted, shaped(predicted, shares, scale)))
    assert after < 0.7 * before


def test_changes_keep_their_order_and_sign(screen):
    predicted, observed = screen
    scale = np.ones(1000)
    shares = fit_shares(predicted, observed, np.ones(100), np.ones(60))
    line = np.linspace(-4, 4, 1000)
    assert (np.diff(shaped(line, shares, scale)) >= 0).all()
    assert (np.sign(shaped(line, shares, scale)) == np.sign(line)).all()


def test_few_conditions_say_nothing_of_shares_and_missing_values_are_left_out(screen):
    predicted, observed = screen
    assert fit_shares(predicted[:5], observed[:5], np.ones(100), np.ones(5)) is None
    some = np.where(np.arange(100) < 50, observed, np.nan)
    halves = [fit_shares(predicted[:, :50], observed[:, :50], np.ones(50), np.ones(60))]
    halves.append(fit_shares(predicted, some, np.ones(100), np.ones(60)))
    assert halves[0] == pytest.approx(halves[1])


def test_changes_are_left_as_they_are_where_little_is_gained():
    rng = np.random.default_rng(0)
    observed = rng.normal(size=(30, 50))
    assert fit_shares(observed / 3, observed, np.ones(50), np.ones(30)) is None  # shares are at most 1
