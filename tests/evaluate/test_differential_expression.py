"""Differential expression: on CPU or GPU, of one table or of two, with numbers that do not depend on it."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import polars as pl
import pytest
import torch

from scvi_tahoe.evaluate import EvaluationReference, evaluate
from scvi_tahoe.evaluate._cells import concatenate
from scvi_tahoe.evaluate._context_truth import content_hash
from scvi_tahoe.evaluate._differential_expression import (
    _places,
    chosen_backend,
    differential_expression,
    fits_single_precision,
    fold_changes,
)

TARGETS = ("a", "b", "c")
LABELS = ("control", *TARGETS)
MANY_TARGETS = [f"p{i}" for i in range(20)]
MANY = {"n_cells": 130, "n_genes": 120, "form": "C"}  # more than are tested at once


def test_without_gpudge_the_extra_is_named_and_auto_is_the_cpu(task, keys):
    with pytest.raises(ValueError, match="'cuda' is unknown; allowed are 'auto', 'cpu', 'gpu'"):
        EvaluationReference.from_adata(task.held_out, de_backend="cuda", **keys)
    if find_spec("gpudge"):
        pytest.skip("gpudge is installed")
    with pytest.raises(ImportError, match=r'pip install "scvi-tahoe\[gpu\]"'):
        chosen_backend("gpu")
    assert chosen_backend("auto") == "cpu"


def test_without_a_device_the_gpu_is_refused_and_auto_is_the_cpu():
    pytest.importorskip("gpudge", reason="needs pip install 'scvi-tahoe[gpu]'")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(RuntimeError, match="needs a CUDA device"):
        chosen_backend("gpu")
    assert chosen_backend("auto") == "cpu"


@pytest.mark.gpu
def test_auto_is_the_gpu_where_there_is_one():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    pytest.importorskip("gpudge", reason="needs pip install 'scvi-tahoe[gpu]'")
    assert [chosen_backend(wanted) for wanted in ("auto", "gpu", "cpu")] == ["gpu", "gpu", "cpu"]


@pytest.mark.gpu
def test_ranks_and_scores_are_those_of_the_cpu(task, keys, predicted):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    pytest.importorskip("gpudge", reason="needs pip install 'scvi-tahoe[gpu]'")
    results = []
    for backend in ("cpu", "gpu"):
        options = {"baseline_from": task.train, "ceiling": False, "de_backend": backend}
        results.append(
            evaluate(predicted, EvaluationReference.from_adata(task.held_out, **options, **keys), preset="full")
        )
    for side in ("de_observed", "de_predicted"):
        cpu, gpu = (getattr(found, side).set_index(["perturbation", "gene"]).sort_index() for found in results)
        np.testing.assert_allclose(gpu["p_value"], cpu["p_value"], rtol=1e-9)
        np.testing.assert_array_equal(gpu["fdr"] < 0.05, cpu["fdr"] < 0.05)
        np.testing.assert_array_equal(gpu["log2_fold_change"], cpu["log2_fold_change"])
        np.testing.assert_array_equal(*(table["p_value"].groupby("perturbation").rank() for table in (cpu, gpu)))
    cpu, gpu = (found.summary["value"].astype(float) for found in results)
    np.testing.assert_allclose(gpu, cpu, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", ["csr", "C", "F"])
@pytest.mark.parametrize("shuffled", [True, False])
def test_fold_changes_are_those_of_pdex_bit_by_bit(cells_of, dtype, form, shuffled):
    cells = cells_of(LABELS, dtype=dtype, form=form, shuffled=shuffled)
    pdex = differential_expression(cells, control="control").sort("target", maintain_order=True)
    ours = fold_changes(cells, TARGETS, control="control", num_threads=2)
    np.testing.assert_array_equal(ours.ravel(), pdex["log2_fold_change"].to_numpy())


def test_a_gene_of_one_side_is_infinite_and_one_of_neither_unchanged(cells_of):
    changes = fold_changes(cells_of(LABELS), TARGETS, control="control")
    np.testing.assert_array_equal(changes[:, :3], [[0, np.inf, -np.inf]] * 3)
    assert fold_changes(cells_of(LABELS), (), control="control").shape == (0, 300)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
@pytest.mark.parametrize("shuffled", [True, False])
def test_fold_changes_find_the_rows_of_a_table_in_any_order(order, shuffled):
    genes = np.array(["x", "y", "z", "w"])
    table = pl.DataFrame({"target": np.repeat(np.array(TARGETS)[order], 4), "feature": np.tile(genes, 3)})
    table = table.sample(fraction=1.0, shuffle=True, seed=0) if shuffled else table
    values = np.arange(12.0).reshape(3, 4)
    found = values[_places(table, TARGETS, genes)].ravel()
    np.testing.assert_array_equal(found, [values[TARGETS.index(t), list(genes).index(g)] for t, g in table.iter_rows()])


def test_float64_beyond_float32_is_tested_on_the_cpu_with_a_warning(cells_of):
    cells = cells_of(LABELS, dtype=np.float64)
    with pytest.warns(UserWarning, match="runs on the CPU: the expression is float64"):
        asked_for_gpu = differential_expression(cells, control="control", backend="gpu")
    assert asked_for_gpu.equals(differential_expression(cells, control="control"))


@pytest.mark.parametrize("form", ["csr", "C"])
def test_float32_values_fit_whatever_type_holds_them(cells_of, form):
    single, double = (cells_of(LABELS, dtype=dtype, form=form) for dtype in (np.float32, np.float64))
    held = replace(single, expression=single.expression.astype(np.float64))
    some = np.arange(0, single.n_cells, 2)  # of a context, say, which is not copied
    for cells, fits in ((single, True), (held, True), (double, False)):
        assert fits_single_precision(cells) is fits
        assert fits_single_precision(cells.take(some, copy=False)) is fits


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
    cells = cells_of(["control", *MANY_TARGETS], seed=1, **{**MANY, **predicted})
    together = concatenate(controls, cells, cells.perturbation != "control")
    found = differential_expression(cells, control="control", controls=controls)
    assert found.equals(differential_expression(together, control="control"))


def test_selected_cells_are_those_of_a_copy(cells_of):
    cells = cells_of(["control", *MANY_TARGETS], **MANY)
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
