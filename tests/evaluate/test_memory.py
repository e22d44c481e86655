"""What an evaluation needs beside both matrices, counted in copies of one: nothing is copied whole on the way."""

from __future__ import annotations

import tracemalloc

import anndata
import numpy as np
import pandas as pd
import pytest

from scvi_tahoe.evaluate import EvaluationReference
from scvi_tahoe.evaluate._cells import concatenate
from scvi_tahoe.evaluate._context_truth import content_hash
from scvi_tahoe.evaluate._differential_expression import differential_expression

PERTURBATIONS = [f"p{i}" for i in range(30)]
MANY = {"n_cells": 130, "n_genes": 120, "form": "C"}  # more than are tested at once
KEYS = {"perturbation_key": "target", "control": "control", "context_key": "line"}


def screen(seed, *, n_cells=200, n_genes=500, contexts=("a",)):
    """Shuffled cells, dense: no condition lies together by accident."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.repeat(["control", *PERTURBATIONS], n_cells // len(contexts)), len(contexts))
    lines = np.repeat(list(contexts), len(labels) // len(contexts))
    effects = np.random.default_rng(0).gamma(1, 1, (len(PERTURBATIONS) + 1, n_genes))
    counts = rng.poisson(effects[np.unique(labels, return_inverse=True)[1]]).astype(np.float32)
    matrix = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e3)
    order = rng.permutation(len(labels))
    obs = pd.DataFrame({"target": labels[order], "line": lines[order]}, index=order.astype(str))
    return anndata.AnnData(matrix[order], obs=obs, var=pd.DataFrame(index=[f"gene_{i}" for i in range(n_genes)]))


def copies(scored, truth, prediction, *, ceiling, baseline=None):
    """Peak of the memory that Python traces above that of both sides, in units of one matrix."""
    tracemalloc.start()
    try:
        reference = EvaluationReference.from_adata(truth, ceiling=ceiling, **KEYS)
        result = scored(prediction, reference, preset="vcc2025", baseline=baseline)  # kept, as users keep it
        assert result.de_predicted is not None
        return tracemalloc.get_traced_memory()[1] / truth.X.nbytes
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module", autouse=True)
def compiled(scored):
    """Libraries and compiled code are no matrices."""
    copies(scored, *(screen(seed, n_cells=8, n_genes=40) for seed in (1, 2)), ceiling=True, baseline="control")


@pytest.mark.parametrize("contexts", [("a",), ("a", "b")], ids=["one context", "two contexts"])
def test_an_evaluation_with_ceiling_needs_less_than_three_matrices(scored, contexts):
    assert copies(scored, *(screen(seed, contexts=contexts) for seed in (1, 2)), ceiling=True) < 1


def test_a_named_baseline_needs_its_own_cells_and_no_second_copy_of_them(scored):
    assert copies(scored, screen(1), screen(2), ceiling=False, baseline="control") < 2


@pytest.mark.parametrize(
    ("observed", "predicted"),
    [
        pytest.param({}, {}, id="dense"),
        pytest.param({"form": "F"}, {"form": "F"}, id="by columns"),
        pytest.param({"form": "csr"}, {"form": "csr"}, id="sparse"),
        pytest.param({"form": "csr"}, {}, id="sparse controls"),
        pytest.param({"dtype": np.float64}, {}, id="two precisions"),
    ],
)
def test_other_controls_test_like_one_table_of_both(cells_of, observed, predicted):
    controls = cells_of(["control"], **{**MANY, **observed})
    cells = cells_of(["control", *PERTURBATIONS[:20]], seed=1, **{**MANY, **predicted})
    together = concatenate(controls, cells, cells.perturbation != "control")
    found = differential_expression(cells, control="control", controls=controls)
    assert found.equals(differential_expression(together, control="control"))


def test_selected_cells_are_those_of_a_copy(cells_of):
    cells = cells_of(["control", *PERTURBATIONS[:20]], **MANY)
    rows = np.random.default_rng(1).permutation(cells.n_cells)[:2000]
    copied, selected = cells.take(rows), cells.take(rows, copy=False)
    once_more = selected.take(selected.perturbation != "p3", copy=False)
    assert not isinstance(selected.expression, np.ndarray)
    for condition in copied.rows:
        np.testing.assert_array_equal(selected.block(*condition), copied.block(*condition))
    for ours, theirs in ((selected, copied), (once_more, copied.take(copied.perturbation != "p3"))):
        np.testing.assert_array_equal(ours.expression, theirs.expression)
        assert content_hash(ours) == content_hash(theirs)
        assert differential_expression(ours, control="control").equals(
            differential_expression(theirs, control="control")
        )
