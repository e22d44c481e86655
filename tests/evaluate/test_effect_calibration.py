"""The factor on predicted effects: found where it is known, honest by default, monotone in strength; refusals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from scvi_tahoe.evaluate import EffectCalibration, effect_size_ratio, fit_effect_calibration, scaled_mean

N_CONDITIONS, N_GENES = 12, 80
GENES = np.array([f"gene_{i}" for i in range(N_GENES)])
CONDITIONS = [(f"context_{i % 2}", f"perturbation_{i}") for i in range(N_CONDITIONS)]


@pytest.fixture
def effects():
    """Start profiles high enough to move freely, and observed deltas whose strength doubles from third to third."""
    rng = np.random.default_rng(0)
    start = rng.uniform(2, 3, (N_CONDITIONS, N_GENES))
    strength = np.repeat([0.05, 0.1, 0.2], N_CONDITIONS // 3)[:, None]
    return start, strength * rng.normal(size=start.shape)


def fit(start, predicted, observed, **options):
    return fit_effect_calibration(start + predicted, start, observed, CONDITIONS, GENES, **options)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1.25])
@pytest.mark.parametrize("criterion", ["mae", "effect_size"])
def test_a_known_factor_is_found(factor, criterion, effects):
    start, observed = effects
    result = fit(start, observed / factor, observed, criterion=criterion)
    assert result.factors == (factor,)
    assert result.after["mae"] == pytest.approx(0, abs=1e-9)
    assert result.after["effect_size_ratio"] == pytest.approx(1)
    assert result.before["effect_size_ratio"] == pytest.approx(1 / factor)


def test_no_more_is_changed_than_the_conditions_tell_from_the_best(effects):
    """They agree that effects are too strong, but not by how much."""
    start, observed = effects
    asked = np.tile([0.4, 0.5, 0.6, 0.9], N_CONDITIONS // 4)[:, None]
    result = fit(start, observed / asked, observed)
    table = result.table.set_index("factor")
    (factor,) = result.factors
    assert table["mae"].idxmin() < factor < 1
    assert result.after["mae"] < result.before["mae"]


def test_of_factors_that_change_as_much_in_sum_the_best_are_taken(effects):
    start, observed = effects
    asked = np.repeat([0.6, 0.7, 0.85], N_CONDITIONS // 3)[:, None] * np.tile([0.85, 1.15], N_CONDITIONS // 2)[:, None]
    result = fit(start, observed / asked, observed, mode="strength")
    mae = [of_bin.set_index("factor")["mae"] for _, of_bin in result.table.groupby("bin")]
    assert len(set(result.factors)) > 1
    changed = sum(1 - f for f in result.factors)
    tried = [f for f in mae[0].index if f <= 1]
    for factors in itertools.combinations_with_replacement(tried, len(mae)):
        if sum(1 - f for f in factors) == pytest.approx(changed, abs=1e-6):
            assert np.mean([m[f] for m, f in zip(mae, factors, strict=True)]) >= result.after["mae"] - 1e-9


def test_discrimination_does_not_change_a_prediction_that_gains_nothing(effects):
    start, observed = effects
    result = fit(start, observed, observed, criterion="discrimination")
    assert result.factors == (1.0,)
    assert result.after == result.before


def test_the_validation_error_never_grows_unless_that_is_allowed(effects):
    """Noise makes observed effects longer, so lengths agree only where the error has grown."""
    start, observed = effects
    noise = np.random.default_rng(1).normal(size=observed.shape) * 0.2
    honest, daring = (
        fit(start, observed, observed + noise, criterion="effect_size", allow_worse_mae=a) for a in (False, True)
    )
    assert honest.after["mae"] <= honest.before["mae"]
    assert daring.after["mae"] > daring.before["mae"]
    distance = [abs(np.log(r.after["effect_size_ratio"])) for r in (honest, daring)]
    assert distance[1] < distance[0]


@pytest.mark.parametrize("rising", [True, False])
def test_factors_follow_the_strength_of_predicted_effects_monotonically(rising, effects):
    start, observed = effects
    factors = np.repeat([0.8, 1.0, 1.2] if rising else [1.2, 1.0, 0.8], N_CONDITIONS // 3)[:, None]
    result = fit(start, observed / factors, observed, mode="strength")
    assert result.factors == tuple(factors[::4, 0])
    strength = np.linalg.norm(observed / factors, axis=1)
    np.testing.assert_array_equal(result.factor(strength), factors[:, 0])
    assert result.after["mae"] < fit(start, observed / factors, observed).after["mae"]
    zigzag = np.repeat([0.8, 1.2, 0.8], N_CONDITIONS // 3)[:, None]
    found = np.diff(fit(start, observed / zigzag, observed, mode="strength").factors)
    assert (found >= 0).all() or (found <= 0).all()


def test_fewer_conditions_give_fewer_bins(effects):
    start, observed = (x[:6] for x in effects)
    result = fit_effect_calibration(start + observed, start, observed, CONDITIONS[:6], GENES, mode="strength")
    assert len(result.factors) == 2


def test_the_table_shows_what_every_factor_costs(effects):
    start, observed = effects
    result = fit(start, observed / 0.5, observed, factors=[0.5, 2])
    table = result.table.set_index("factor")
    assert list(table.index) == [0.5, 1, 2]
    assert table["chosen"].tolist() == [True, False, False]
    assert table["mae"].is_monotonic_increasing
    assert table.loc[1.0, "mae"] == pytest.approx(np.abs(observed).mean())
    np.testing.assert_allclose(table["effect_size_ratio"], [1, 2, 4])
    assert "0.5 (global, 12 validation conditions): mae" in repr(result)


def test_it_survives_plain_values(effects):
    start, observed = effects
    result = fit(start, observed / 0.8, observed, mode="strength")
    values = result.to_dict()
    assert {type(v) for v in values.values()} <= {str, int, tuple, dict}
    back = EffectCalibration.from_dict(values)
    assert back.table.equals(result.table)
    assert back.to_dict() == values


def test_the_plot_has_a_line_a_bin_and_a_dot_a_chosen_factor(effects):
    start, observed = effects
    figure = fit(start, observed / 0.8, observed, mode="strength").plot()
    for ax in figure.axes:
        lines = [line for line in ax.lines if len(line.get_xdata()) > 2]
        assert len(lines) == len(ax.collections) == 3
    assert [t.get_text() for t in figure.axes[-1].get_legend().texts] == [
        f"{s} effects" for s in ("weak", "medium", "strong")
    ]


def test_a_scaled_mean_is_never_negative_nor_more_than_doubled():
    mean, start = np.array([[1.0, 0.1, 0.1, 0.0]]), np.array([[0.5, 0.9, 1.0, 1.0]])
    np.testing.assert_allclose(scaled_mean(mean, start, np.array([2.0])), [[1.5, 0, 0, 0]])
    np.testing.assert_allclose(scaled_mean(mean, start, np.array([0.5])), [[0.75, 0.2, 0.2, 0]])
    np.testing.assert_allclose(scaled_mean(mean, start, np.array([1.0])), mean)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "local"}, "mode='local' is unknown; allowed are 'global', 'strength'"),
        ({"criterion": "pds"}, "criterion='pds' is unknown; allowed are 'mae', 'effect_size', 'discrimination'"),
        ({"factors": [0.5, 3]}, "must lie between 0 and 2"),
        ({"factors": [-1]}, "must lie between 0 and 2"),
        ({"factors": [float("nan")]}, "must lie between 0 and 2"),
        ({"factors": np.array([0.5, 3])}, "must lie between 0 and 2"),
        ({"factors": "all"}, "factors='all' must be numbers between 0 and 2"),
    ],
)
def test_unknown_options_are_refused(options, message, effects):
    start, observed = effects
    with pytest.raises(ValueError, match=message):
        fit(start, observed, observed, **options)


def test_too_few_conditions_are_refused(effects):
    start, observed = (x[:5] for x in effects)
    with pytest.raises(ValueError, match="5 validation conditions are too few for mode='strength', which needs 6"):
        fit_effect_calibration(start, start, observed, CONDITIONS[:5], GENES, mode="strength")
    with pytest.raises(ValueError, match="1 validation conditions are too few for mode='global', which needs 2"):
        fit_effect_calibration(start[:1], start[:1], observed[:1], CONDITIONS[:1], GENES)
    with pytest.raises(ValueError, match="needs two validation conditions in one context"):
        fit_effect_calibration(start[:2], start[:2], observed[:2], CONDITIONS[:2], GENES, criterion="discrimination")


def test_lengths_come_to_the_observed_ones_in_both_directions(effects):
    start, observed = effects
    for factor in (0.8, 1.25):
        scaled = scaled_mean(start + observed / factor, start, np.full(N_CONDITIONS, factor)) - start
        np.testing.assert_allclose(effect_size_ratio(scaled, observed), 1)
