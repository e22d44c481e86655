"""Kernels over conditions: which there are, and what each says of two conditions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvi_tahoe.data import LabelParser
from scvi_tahoe.response._kernels import ConditionKernels, Conditions, TableKernel

PLAIN = LabelParser(control="control")
PAIRS = LabelParser(control="control", combination_separator="+")
DOSES = LabelParser(control="control", has_dose=True)


def kernels_of(labels, contexts, parser=PLAIN, tables=None, profiles=None):
    conditions = Conditions.of(labels, contexts, parser)
    read = {name: TableKernel.of(table, conditions.components) for name, table in (tables or {}).items()}
    return ConditionKernels.of(conditions, parser, read, profiles or {}), conditions


def matrix(kernels, name, rows, columns=None):
    return dict(kernels.matrices(rows, columns or rows))[name].numpy()


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    return pd.DataFrame(rng.normal(size=(6, 3)), index=[f"P{i}" for i in range(6)])


def test_a_screen_of_one_context_has_the_shared_response_alone():
    kernels, _ = kernels_of(["A", "B"], ["x", "x"])
    assert kernels.names == ("shared",)


def test_labels_in_several_contexts_add_their_identity_and_the_context():
    kernels, conditions = kernels_of(["A", "B", "A"], ["x", "x", "y"])
    assert kernels.names == ("shared", "shared x context", "perturbation")
    assert matrix(kernels, "shared x context", conditions).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert matrix(kernels, "perturbation", conditions).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]


def test_a_pair_is_the_sum_of_its_parts():
    kernels, conditions = kernels_of(["A", "B", "A+B", "C"], ["x"] * 4, PAIRS)
    position = {label: i for i, label in enumerate(conditions.perturbations)}
    found = matrix(kernels, "perturbation", conditions)
    pair = found[position["A+B"]]
    np.testing.assert_allclose(pair, found[position["A"]] + found[position["B"]])
    label = matrix(kernels, "label", conditions)
    assert label[position["A+B"]].tolist() == [0, 0, 1, 0]  # the interaction is the pair's alone


def test_doses_are_alike_by_their_logarithm():
    kernels, conditions = kernels_of(["A@1", "A@10", "A@100", "B@1"], ["x"] * 4, DOSES)
    found = matrix(kernels, "perturbation at its dose", conditions)
    np.testing.assert_allclose(found[0, :3], np.exp(-0.5 * np.array([0, 1, 4])))
    assert found[0, 3] == 0
    assert matrix(kernels, "perturbation, any dose", conditions)[0].tolist() == [1, 1, 1, 0]


def test_a_label_without_a_row_has_no_say(table):
    kernels, conditions = kernels_of(["P0", "P1", "nobody"], ["x"] * 3, tables={"t": table})
    for name in kernels.names:
        if name.startswith("t, "):
            assert not matrix(kernels, name, conditions)[2].any()
            if not name.startswith("t, linear"):
                assert matrix(kernels, name, conditions)[0, 0] == pytest.approx(1)


def test_linear_kernels_of_a_table_are_products_and_cosines_of_standardised_rows(table):
    kernels, conditions = kernels_of(["P0", "P1", "P2"], ["x"] * 3, tables={"t": table})
    rows = ((table - table.mean()) / table.std(ddof=0)).to_numpy()
    scaled = rows[:3] / np.sqrt(np.square(rows).sum(axis=1).mean())  # of unit length in the root mean square
    np.testing.assert_allclose(matrix(kernels, "t, linear", conditions), scaled @ scaled.T, atol=1e-12)
    unit = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    np.testing.assert_allclose(matrix(kernels, "t, cosine", conditions), unit @ unit.T, atol=1e-12)


def test_narrow_kernels_see_the_nearest_only(table):
    kernels, conditions = kernels_of([f"P{i}" for i in range(6)], ["x"] * 6, tables={"t": table})
    wide, narrow = (matrix(kernels, f"t, radius {r}", conditions) for r in ("1", "0.125"))
    apart = ~np.eye(6, dtype=bool)
    assert (narrow[apart] < wide[apart]).all()
    np.testing.assert_allclose(narrow.diagonal(), 1)


def test_constant_columns_change_nothing_and_constant_tables_are_left_out(table):
    with_constant = table.assign(constant=7.0)
    for name in ("t, cosine", "t, radius 1"):
        made = [kernels_of(["P0", "P1", "P2"], ["x"] * 3, tables={"t": t}) for t in (table, with_constant)]
        first, second = (matrix(kernels, name, conditions) for kernels, conditions in made)
        np.testing.assert_allclose(first, second)
    kernels, _ = kernels_of(["P0", "P1"], ["x"] * 2, tables={"t": table * 0 + 1})
    assert kernels.names == ("shared",)


def test_a_table_that_covers_one_perturbation_says_nothing(table):
    kernels, _ = kernels_of(["P0", "B"], ["x"] * 2, tables={"t": table})
    assert not kernels.tables


def test_contexts_are_alike_by_their_controls():
    profiles = {"x": np.zeros(4), "y": np.full(4, 0.1), "z": np.full(4, 3.0)}
    kernels, conditions = kernels_of(["A", "A", "A"], ["x", "y", "z"], profiles=profiles)
    found = matrix(kernels, "perturbation x likeness of contexts", conditions)
    assert found[0, 1] > 0.9
    assert found[0, 2] < found[0, 1]
    few, _ = kernels_of(["A", "A"], ["x", "y"], profiles=profiles)  # two say nothing of likeness
    assert not few.control_profiles


def test_diagonals_are_those_of_the_matrices(table):
    kernels, conditions = kernels_of(["P0", "P1+P2", "P1", "P0"], ["x", "x", "y", "y"], PAIRS, {"t": table})
    expected = np.stack([k.numpy().diagonal() for _, k in kernels.matrices(conditions, conditions)])
    np.testing.assert_allclose(kernels.diagonals(conditions), expected)


def test_rows_of_new_names_are_standardised_as_the_others(table):
    kernel = TableKernel.of(table, list(table.index[:4]))
    fresh = kernel.with_rows(table.set_axis([f"Q{i}" for i in range(6)]))
    assert fresh.names == (*table.index, *[f"Q{i}" for i in range(6)])
    np.testing.assert_allclose(fresh.matrix[:6], fresh.matrix[6:])
    assert kernel.with_rows(table) is kernel


def test_bits_of_a_fingerprint_count_alike_however_rare():
    bits = np.zeros((40, 3))
    bits[:20, 0], bits[:2, 1], bits[::3, 2] = 1, 1, 1
    bits = pd.DataFrame(bits, index=[f"P{i}" for i in range(40)])
    table = TableKernel.of(bits.assign(constant=1.0), list(bits.index))
    span = np.ptp(table.matrix, axis=0)
    assert span[0] == pytest.approx(span[1]) == pytest.approx(span[2])
    assert span[3] == 0
    other = TableKernel.of(bits * [1.0, 2.0, 3.0], list(bits.index))  # no bits: standardised
    assert np.allclose(other.matrix.std(axis=0), other.matrix.std(axis=0)[0])
