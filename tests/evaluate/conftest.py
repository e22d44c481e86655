"""The few-shot task on the shipped screen, evaluated once for all tests of this folder."""

from __future__ import annotations

import pytest

from scvi_tahoe.datasets import papalexi_few_shot
from scvi_tahoe.evaluate import EvaluationReference, baseline_prediction, evaluate


@pytest.fixture(scope="session")
def task():
    return papalexi_few_shot()


@pytest.fixture(scope="session")
def keys(task):
    return {"perturbation_key": task.perturbation_key, "control": task.control, "context_key": task.context_key}


@pytest.fixture(scope="session")
def reference(task, keys):
    return EvaluationReference.from_adata(task.held_out, baseline_from=task.train, **keys)


@pytest.fixture(scope="session")
def predicted(task, keys):
    """Cells of other replicates moved here through the quantiles of the controls: a good prediction."""
    return baseline_prediction("cells_quantile", task.held_out, task.train, **keys)


@pytest.fixture(scope="session")
def result(predicted, reference):
    return evaluate(predicted, reference, preset="minimal")


@pytest.fixture(scope="session")
def quick(predicted, reference):
    return evaluate(predicted, reference, preset="quick")
