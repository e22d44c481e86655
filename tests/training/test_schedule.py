"""The learning rate as a function of the step."""

from __future__ import annotations

import pytest

from scvi_tahoe.training import SCHEDULES, learning_rate_share


def shares(schedule, *, start=0, end=100, warmup=0.1, floor=0.05):
    options = {"schedule": schedule, "start": start, "end": end, "warmup": warmup, "floor": floor}
    return [learning_rate_share(step, **options) for step in range(end)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("start", [0, 40])
def test_the_rate_is_zero_before_the_start_and_never_from_there_on(schedule, start):
    values = shares(schedule, start=start)
    assert set(values[:start]) <= {0.0}
    assert min(values[start:]) > 0
    assert max(values) == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_rises_over_the_warm_up(schedule):
    values = shares(schedule)[:10]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_the_rate_falls_to_the_floor(schedule):
    values = shares(schedule)
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[-1] == pytest.approx(0.05, abs=2e-3)


def test_a_constant_rate_stays():
    assert set(shares("constant")[10:]) == {1.0}


def test_a_run_without_warm_up_starts_at_the_peak():
    assert shares("cosine", warmup=0.0)[0] == 1.0
