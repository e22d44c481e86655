"""A metric, a preset and a baseline are added by one new file each; the examples of the docs are such files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scvi_tahoe.evaluate import BASELINES, METRICS, PRESETS, MetricInfo, baseline_prediction, evaluate, metric_info

GUIDE = (Path(__file__).parents[2] / "docs" / "how_to_add.md").read_text()


@pytest.fixture
def examples():
    """Run the examples of the guide as files of the package would be run, and forget them afterwards."""
    known = [dict(registry) for registry in (METRICS, PRESETS, BASELINES)]
    section = GUIDE[GUIDE.index("## ... metric") : GUIDE.index("## ... split")]
    for example in re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL):
        exec(example, {"__name__": "example"})
    yield
    for registry, before in zip((METRICS, PRESETS, BASELINES), known):
        registry.clear()
        registry.update(before)


def test_what_the_guide_registers_is_scored(examples, task, keys, predicted, reference):
    result = evaluate(predicted, reference, preset="discrimination", baseline="half_mean")
    assert result.summary.loc["median_error", ["value", "baseline", "ceiling"]].gt(0).all()
    assert result.summary.loc["median_error", "direction"] == "lower"
    assert result.vcc["overall"] == pytest.approx(result.summary.loc["pds_cosine", "value"])
    assert f"overall {result.vcc['overall']:.2f}" in repr(result)
    assert "overall" in result._repr_html_()
    truth = evaluate(task.held_out, reference, preset="discrimination", representation_check="off")
    assert truth.summary.loc["median_error", "value"] == pytest.approx(0, abs=1e-6)
    assert baseline_prediction("half_mean", task.held_out, task.train, **keys).n_obs == predicted.n_obs


def test_an_unknown_name_is_answered_with_the_nearest_ones(predicted, reference, task, keys):
    with pytest.raises(ValueError, match="no preset 'vcc25'.*did you mean 'vcc2025'.*choose one of"):
        evaluate(predicted, reference, preset="vcc25")
    with pytest.raises(ValueError, match="no baseline 'train_means'.*did you mean 'train_mean'.*choose one of"):
        evaluate(predicted, reference, baseline="train_means")
    with pytest.raises(ValueError, match="no baseline 'mean'"):
        baseline_prediction("mean", task.held_out, task.train, **keys)


def test_a_name_is_registered_once_and_an_unknown_metric_a_diagnostic():
    assert metric_info("of_a_later_release").direction == "diagnostic"
    with pytest.raises(ValueError, match="metric 'mae' already"):
        METRICS.register("mae", MetricInfo(label="MAE", best=0))
