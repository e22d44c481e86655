"""The examples of the page "How to add a ..." are run, and what they add works."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from scvi_tahoe import evaluate, nn
from scvi_tahoe.data import SPLITS, ConditionIndex, read_screen, split_from_dict

PAGE = Path(__file__).parents[1] / "docs" / "how_to_add.md"
#: where each example registers; undone after its test
REGISTRIES = (nn.TERMS, nn.SET_LOSSES, evaluate.METRICS, evaluate.PRESETS, evaluate.BASELINES, SPLITS)


@pytest.fixture
def example(request):
    """Run the example of a section; what it registers is taken away after the test."""
    before = [dict(registry) for registry in REGISTRIES]
    section = re.search(rf"## \.\.\. {request.param}\n.*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict = {"__name__": "example"}
    exec(compile(section.group(1), f"{PAGE.name}: {request.param}", "exec"), names)
    yield names
    for registry, kinds in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(kinds)


def of(section):
    return pytest.mark.parametrize("example", [section], indirect=True)


def scored(simulated, **options):
    held_out = simulated[simulated.obs["perturbation"].isin(["control", "perturbation_1", "perturbation_2"])].copy()
    labels = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}
    return evaluate(held_out, held_out, **labels, train=simulated, allow_train=True, **{"preset": "quick", **options})


@of("loss term")
def test_a_term_is_trained_monitored_and_logged(example, make_model, train):
    model = make_model(objective={"terms": {"energy": 1.0, "variance_mse": 10.0}})
    train(model, monitor="validation_variance_mse")
    assert np.isfinite(model.history["validation_variance_mse"].to_numpy()).all()


@of("metric")
def test_a_metric_is_in_the_table_of_a_result(example, simulated):
    row = scored(simulated).summary.loc["sign_of_largest"]
    assert row["value"] == 1


@of("evaluation preset")
def test_a_preset_makes_the_overall_score(example, simulated):
    result = scored(simulated, preset="correlation")
    assert result.vcc["overall"] == pytest.approx(1)


@of("baseline")
def test_a_baseline_stands_beside_the_scores(example, simulated):
    assert scored(simulated, baseline="nothing_happens").summary["baseline"].notna().any()


@of("split")
def test_a_split_is_written_and_applied(example, screen, make_model, train):
    split = split_from_dict({"kind": "every_other_condition"})
    assert split == example["EveryOtherCondition"]()
    model = train(make_model(screen), split=split)
    index = ConditionIndex.from_screen(read_screen(screen, model.keys))
    assigned = split.assign(index)
    assert model.split_ == {"kind": "every_other_condition"}
    assert set(index.condition_of_cell[assigned.validation]) == set(range(1, len(index.conditions), 2))


def test_every_section_of_the_page_has_a_test():
    sections = re.findall(r"^## \.\.\. (.+)$", PAGE.read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(re.findall(r'^@of\("(.+)"\)$', Path(__file__).read_text(), re.MULTILINE))
