"""Fold changes taken beside the GPU: those of pdex to the last bit, so that ranks do not depend on the backend."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp

from scvi_tahoe.evaluate._cells import CellTable
from scvi_tahoe.evaluate._differential_expression import (
    _places,
    differential_expression,
    fits_single_precision,
    fold_changes,
)

TARGETS = ("a", "b", "c")


def table(*, dtype=np.float32, form="csr", shuffled=True):
    """Cells; gene 0 is in no cell, gene 1 in no control, gene 2 in the controls alone."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["control", *TARGETS], 60)
    labels = rng.permutation(labels) if shuffled else labels
    matrix = np.log1p(rng.poisson(rng.gamma(0.4, 2, 300), (len(labels), 300)) * rng.gamma(8, 1 / 8, (len(labels), 1)))
    matrix[:, 0] = 0
    matrix[:, 1] = labels != "control"
    matrix[:, 2] = labels == "control"
    matrix = matrix.astype(dtype)
    names = np.arange(len(labels)).astype(str)
    return CellTable(
        sp.csr_matrix(matrix) if form == "csr" else np.asarray(matrix, order=form),
        labels,
        np.full(len(labels), "all"),
        np.array([f"gene_{i}" for i in range(matrix.shape[1])]),
        names,
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", ["csr", "C", "F"])
@pytest.mark.parametrize("shuffled", [True, False])
def test_fold_changes_are_those_of_pdex_bit_by_bit(dtype, form, shuffled):
    cells = table(dtype=dtype, form=form, shuffled=shuffled)
    pdex = differential_expression(cells, control="control").sort("target", maintain_order=True)
    ours = fold_changes(cells, TARGETS, control="control", num_threads=2)
    np.testing.assert_array_equal(ours.ravel(), pdex["log2_fold_change"].to_numpy())


def test_a_gene_of_one_side_is_infinite_and_one_of_neither_unchanged():
    changes = fold_changes(table(), TARGETS, control="control")
    np.testing.assert_array_equal(changes[:, :3], [[0, np.inf, -np.inf]] * 3)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
@pytest.mark.parametrize("shuffled", [True, False])
def test_fold_changes_find_the_rows_of_a_table_in_whatever_order_it_is(order, shuffled):
    genes = np.array(["x", "y", "z", "w"])
    table = pl.DataFrame({"target": np.repeat(np.array(TARGETS)[order], 4), "feature": np.tile(genes, 3)})
    table = table.sample(fraction=1.0, shuffle=True, seed=0) if shuffled else table
    values = np.arange(12.0).reshape(3, 4)
    found = values[_places(table, TARGETS, genes)].ravel()
    expected = [values[TARGETS.index(t), list(genes).index(g)] for t, g in table.iter_rows()]
    np.testing.assert_array_equal(found, expected)


def test_no_perturbation_gives_no_row():
    assert fold_changes(table(), (), control="control").shape == (0, 300)


def test_float64_values_beyond_float32_are_tested_on_the_cpu_with_a_warning():
    cells = table(dtype=np.float64)
    with pytest.warns(UserWarning, match="runs on the CPU: the expression is float64"):
        asked_for_gpu = differential_expression(cells, control="control", backend="gpu")
    assert asked_for_gpu.equals(differential_expression(cells, control="control"))


@pytest.mark.parametrize("form", ["csr", "C"])
def test_float32_values_fit_whatever_type_holds_them(form):
    single, double = table(form=form), table(dtype=np.float64, form=form)
    held = CellTable(
        single.expression.astype(np.float64), single.perturbation, single.context, single.genes, single.names
    )
    assert fits_single_precision(single)
    assert fits_single_precision(held)
    assert not fits_single_precision(double)
    some = np.arange(0, single.n_cells, 2)  # of a context, say, which is not copied
    assert fits_single_precision(held.take(some, copy=False))
    assert not fits_single_precision(double.take(some, copy=False))
