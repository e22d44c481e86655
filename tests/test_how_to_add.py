"""A loss term and a split are added by one new file; `evaluate/test_evaluation.py` runs the rest of the page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from scvi_tahoe import nn
from scvi_tahoe.data import SPLITS, ConditionIndex, read_screen, split_from_dict

PAGE = Path(__file__).parents[1] / "docs" / "how_to_add.md"
#: where each example registers; undone after its test
REGISTRIES = (nn.TERMS, nn.SET_LOSSES, SPLITS)


@pytest.fixture
def example(request):
    """Run the example of a section; what it registers is taken away after the test."""
    before = [dict(registry) for registry in REGISTRIES]
    section = re.search(rf"## \.\.\. {request.param}\n.*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict = {"__name__": "example"}
    exec(compile(section.group(1), f"{PAGE.name}: {request.param}", "exec", dont_inherit=True), names)
    yield names
    for registry, kinds in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(kinds)


def of(section):
    return pytest.mark.parametrize("example", [section], indirect=True)


@of("loss term")
def test_a_term_is_trained_monitored_and_logged(example, make_model, train):
    model = make_model(objective={"terms": {"energy": 1.0, "variance_mse": 10.0}})
    train(model, monitor="validation_variance_mse")
    assert np.isfinite(model.history["validation_variance_mse"].to_numpy()).all()


@of("split")
def test_a_split_is_written_and_applied(example, screen, make_model, train):
    split = split_from_dict({"kind": "every_other_condition"})
    assert split == example["EveryOtherCondition"]()
    model = train(make_model(screen), split=split)
    index = ConditionIndex.from_screen(read_screen(screen, model.keys))
    assigned = split.assign(index)
    assert model.split_ == {"kind": "every_other_condition"}
    assert set(index.condition_of_cell[assigned.validation]) == set(range(1, len(index.conditions), 2))
