"""The few-shot task on the shipped screen, evaluated once for all tests of this folder."""

from __future__ import annotations

import anndata
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


@pytest.fixture(scope="session")
def two_contexts(task):
    """Replicates 2 and 3 of the strong targets, predicted by replicate 1."""
    everything = anndata.concat([task.train, task.held_out])
    strong = everything[everything.obs[task.perturbation_key].isin(["JAK2", "IRF1", "STAT1", task.control])]
    replicate = strong.obs[task.context_key].astype(str)
    truth = strong[replicate.isin(["rep_2", "rep_3"])].copy()
    first = strong[(replicate == "rep_1") & (strong.obs[task.perturbation_key] != task.control)]
    copies = []
    for name in ("rep_2", "rep_3"):
        copy = first.copy()
        copy.obs[task.context_key] = name
        copies.append(copy)
    prediction = anndata.concat(copies)
    prediction.obs_names_make_unique()
    return prediction, truth
