"""Recipes and schedules: which part trains from when, and how fast."""

from __future__ import annotations

import pytest

from scvi_tahoe.training import SCHEDULES, PartSchedule, learning_rate_share, part_in_run, part_of, resolve_recipe

ON, OFF = PartSchedule(), PartSchedule(unfreeze_at=None)


@pytest.mark.parametrize(
    ("recipe", "freeze", "upper", "lower"),
    [
        ("freeze_then_unfreeze", None, PartSchedule(unfreeze_at=20, rate=0.5), PartSchedule(unfreeze_at=40, rate=0.25)),
        ("full", None, ON, ON),
        ("heads", None, OFF, OFF),
        ("full", True, OFF, OFF),
        ("heads", False, ON, ON),
        ("heads", True, OFF, OFF),
        ("freeze_then_unfreeze", 30, PartSchedule(unfreeze_at=30, rate=0.5), PartSchedule(unfreeze_at=30, rate=0.5)),
    ],
)
def test_a_recipe_and_what_overrides_it(recipe, freeze, upper, lower):
    parts = resolve_recipe(recipe, freeze_backbone=freeze, max_steps=100)
    assert parts == {"heads": PartSchedule(), "upper": upper, "lower": lower}


def test_adapters_train_beside_a_network_that_is_frozen_whole():
    parts = resolve_recipe("lora", freeze_backbone=None, max_steps=100)
    assert set(parts) == {"heads", "upper", "lower"}
    assert all(schedule.unfreeze_at is None for schedule in parts.values())
    adapter = "network.backbone.blocks.0.down.lora_A.default.weight"
    assert part_in_run(adapter, {adapter}, 2) == "adapters"
    assert part_in_run("network.head.up.weight", set(), 2) == "new"


@pytest.mark.parametrize(
    ("name", "n_blocks", "part"),
    [
        ("network.control_encoder.layers.0.weight", 6, "heads"),
        ("network.head.project.layers.1.bias", 6, "heads"),
        ("network.backbone.norm.weight", 6, "upper"),
        ("network.backbone.blocks.3.qkv.weight", 6, "lower"),
        ("network.backbone.blocks.4.qkv.weight", 6, "upper"),
        ("network.backbone.blocks.0.qkv.weight", 1, "upper"),
        ("network.backbone.blocks.10.qkv.weight", 12, "upper"),
    ],
)
def test_the_upper_third_of_the_blocks_is_a_part_of_its_own(name, n_blocks, part):
    assert part_of(name, n_blocks) == part


def test_an_unknown_recipe_and_unfreezing_outside_the_run_are_refused():
    with pytest.raises(ValueError, match="recipe='head' is unknown; allowed are 'freeze_then_unfreeze', 'full'"):
        resolve_recipe("head", freeze_backbone=None, max_steps=100)
    for step in (-1, 100, 250):
        message = f"freeze_backbone={step} is the step at which to unfreeze and must lie in the run of 100 steps; True"
        with pytest.raises(ValueError, match=message):
            resolve_recipe("full", freeze_backbone=step, max_steps=100)


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
def test_the_rate_rises_over_the_warm_up_and_falls_to_the_floor(schedule):
    values = shares(schedule)
    assert values[:10] == sorted(values[:10])
    assert values[9] == pytest.approx(1.0)
    if schedule == "constant":
        assert set(values[10:]) == {1.0}
    else:
        assert values[10:] == sorted(values[10:], reverse=True)
        assert values[-1] == pytest.approx(0.05, abs=2e-3)
    assert shares("cosine", warmup=0.0)[0] == 1.0
