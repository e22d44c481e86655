"""The few-shot task on the shipped screen, evaluated once for all tests of this folder."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pytest
import scipy.sparse as sp

from scvi_tahoe.datasets import papalexi_few_shot
from scvi_tahoe.evaluate import EvaluationReference, EvaluationWarning, baseline_prediction, evaluate
from scvi_tahoe.evaluate._cells import CellTable


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
    return evaluate(predicted, reference, preset="minimal", baselines=False)


@pytest.fixture(scope="session")
def full(predicted, reference):
    return evaluate(predicted, reference, preset="full", baselines=False)


@pytest.fixture(scope="session")
def quick(predicted, reference):
    return evaluate(predicted, reference, preset="quick")


@pytest.fixture(scope="session")
def scored():
    """A quick result with the warnings kept in its checks."""

    def scored(prediction, reference, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EvaluationWarning)
            return evaluate(prediction, reference, **{"preset": "quick", "baselines": False, **options})

    return scored


@pytest.fixture(scope="session")
def cells_of():
    """Make a table of 60 shuffled cells of each label, in one context."""

    def cells_of(labels, *, seed=0, n_cells=60, n_genes=300, form="csr", dtype=np.float32, shuffled=True):
        rng = np.random.default_rng(seed)
        labels = np.repeat(labels, n_cells)
        labels = rng.permutation(labels) if shuffled else labels
        counts = rng.poisson(rng.gamma(0.4, 2, n_genes), (len(labels), n_genes))
        matrix = np.log1p(counts * rng.gamma(8, 1 / 8, (len(labels), 1)))
        # gene 0 is in no cell, gene 1 in no control, gene 2 in the controls alone
        matrix[:, :3] = np.column_stack([np.zeros(len(labels)), labels != "control", labels == "control"])
        return CellTable(
            sp.csr_matrix(matrix.astype(dtype)) if form == "csr" else np.asarray(matrix, order=form, dtype=dtype),
            labels,
            np.full(len(labels), "all"),
            np.array([f"gene_{i}" for i in range(n_genes)]),
            np.arange(len(labels)).astype(str),
        )

    return cells_of


@pytest.fixture(scope="session")
def two_contexts(task):
    """Replicates 2 and 3 of the strong targets, predicted by replicate 1."""
    everything = anndata.concat([task.train, task.held_out])
    strong = everything[everything.obs[task.perturbation_key].isin(["JAK2", "IRF1", "STAT1", task.control])]
    replicate = strong.obs[task.context_key].astype(str)
    truth = strong[replicate.isin(["rep_2", "rep_3"])].copy()
    first = strong[(replicate == "rep_1") & (strong.obs[task.perturbation_key] != task.control)]
    copies = [first.copy(), first.copy()]
    for copy, name in zip(copies, ("rep_2", "rep_3")):
        copy.obs[task.context_key] = name
    return anndata.concat(copies, index_unique="-"), truth
