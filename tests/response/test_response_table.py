"""Tables of responses: what is read, what is ignored and counted, and what is refused before anything costly."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from scvi_tahoe.response import ResponseModel, _response_table_model
from scvi_tahoe.response._response_table import read_responses, read_tables

DEFAULTS = dict.fromkeys(["context_key", "control", "dose_key", "combination_separator", "variance_layer"])


def table_of(n=6, contexts=("x", "y"), n_genes=5, seed=0):
    """Random changes of ``n`` perturbations in every context."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame([(f"P{i}", c) for c in contexts for i in range(n)], columns=["gene", "line"]).rename(str)
    return AnnData(rng.normal(size=(len(obs), n_genes)), obs=obs)


def read(adata, **options):
    return read_responses(adata, perturbation_key="gene", **{**DEFAULTS, "context_key": "line", **options})


def test_rows_are_conditions_and_controls_are_left_out():
    adata = table_of()
    adata.obs.loc["0", "gene"] = "ctrl"
    found = read(adata, control="ctrl")
    assert found.responses.changes.tolist() == adata.X[1:].tolist()
    assert found.responses.perturbations.tolist() == adata.obs["gene"].tolist()[1:]
    assert found.notes == ("1 control rows are left out",)
    assert not found.has_noise.any()


@pytest.mark.parametrize("make", [sp.csr_matrix, sp.csc_matrix, np.float32, lambda x: np.round(x * 9).astype(int)])
def test_any_matrix_of_numbers_is_read(make):
    adata = table_of()
    adata.X = make(adata.X)
    expected = adata.X.toarray() if sp.issparse(adata.X) else adata.X
    np.testing.assert_array_equal(read(adata).responses.changes, expected)


def test_replicates_are_averaged_each_gene_over_what_was_measured():
    adata = table_of(2, ("x",), 2)
    twice = AnnData(np.array([[1, 2], [3, np.nan], [5, 6.0]]), obs=adata.obs.iloc[[0, 0, 1]].reset_index().rename(str))
    twice.layers["v"] = np.array([[4, 4], [2, 1], [1, 1.0]])
    found = read(twice, variance_layer="v")
    assert found.responses.changes.tolist() == [[2, 2], [5, 6]]
    assert found.responses.noise.tolist() == [[(4 + 2) / 2 / 2, 4], [1, 1]]
    assert "3 rows are averaged to 2 conditions" in found.notes


def test_missing_values_are_counted_and_say_nothing():
    adata = table_of()
    adata.X[2, 1:3] = np.nan
    adata.X[4] = np.nan
    adata.X[:, 4] = np.nan
    found = read(adata)
    assert found.notes == (
        "1 rows without any value are left out",
        "1 genes without any value are left out",
        "2 values that are missing (NaN) are ignored",
    )
    noise = found.responses.noise
    assert (noise[2, 1:3] > 0).all()
    assert np.count_nonzero(noise) == 2
    assert found.responses.genes.tolist() == ["0", "1", "2", "3"]


def test_variances_that_are_not_known_are_the_usual_ones_of_the_gene():
    adata = table_of(3, ("x",), 2)
    adata.layers["v"] = np.array([[1, 2], [3, np.nan], [np.nan, np.nan]])
    found = read(adata, variance_layer="v")
    assert found.responses.noise.tolist() == [[1, 2], [3, 2], [2, 2]]
    assert found.has_noise.tolist() == [True, True, False]


@pytest.mark.parametrize("value", [0.0, np.nan], ids=["zero", "missing"])
def test_variances_of_nothing_are_none(value):
    adata = table_of()
    adata.layers["v"] = np.full(adata.shape, value)
    found = read(adata, variance_layer="v")
    assert not found.responses.noise.any()
    assert not found.has_noise.any()


def test_a_value_of_infinite_variance_is_not_known():
    adata = table_of()
    adata.layers["v"] = np.ones(adata.shape)
    adata.layers["v"][0, 0] = np.inf
    assert np.isnan(read(adata, variance_layer="v").responses.changes[0, 0])


def layer_of(adata, value):
    adata.layers["v"] = np.full(adata.shape, value)


BROKEN = {
    "": lambda a: None,
    "infinite": lambda a: a.X.__setitem__((3, 2), np.inf),
    "text": lambda a: setattr(a, "X", a.X.astype(str).astype(object)),
    "zeros": lambda a: a.X.fill(0),
    "nothing measured": lambda a: a.X.fill(np.nan),
    "only controls": lambda a: a.obs.__setitem__("gene", "ctrl"),
    "negative variance": lambda a: layer_of(a, -1.0),
    "empty label": lambda a: a.obs.replace({"line": {"y": None}}, inplace=True),
    "same genes": lambda a: setattr(a, "var_names", ["a", "a", "b", "c", "d"]),
    "empty": lambda a: setattr(a, "X", None),
}


def broken(what):
    adata = table_of()
    if what == "no rows":
        return adata[:0].copy()
    BROKEN[what](adata)
    return adata


@pytest.mark.parametrize(
    ("what", "options", "error", "says"),
    [
        ("infinite", {}, ValueError, "1 infinite values, the first in row 3, column 2"),
        ("text", {}, ValueError, "real numbers are needed"),
        ("zeros", {}, ValueError, "0 in every condition"),
        ("nothing measured", {}, ValueError, "no finite value"),
        ("no rows", {}, ValueError, "no rows"),
        ("only controls", {"control": "ctrl"}, ValueError, "only control rows"),
        ("negative variance", {"variance_layer": "v"}, ValueError, "60 negative values"),
        ("", {"variance_layer": "w"}, KeyError, "no 'w'"),
        ("", {"context_key": "lin"}, KeyError, "did you mean 'line'"),
        ("empty label", {}, ValueError, "empty in 6 rows"),
        ("same genes", {}, ValueError, "more than once"),
        ("empty", {}, ValueError, "is empty"),
        ("", {"combination_separator": ""}, ValueError, "is empty"),
        ("", {"tables": pd.DataFrame([[1.0]], index=["Q0"])}, ValueError, "no row for any of the 6 perturbations"),
        ("", {"tables": np.ones((6, 2))}, TypeError, "DataFrame"),
        ("", {"criterion": "best"}, ValueError, "'error', 'discrimination'"),
        ("", {"device": "abacus"}, ValueError, "'abacus' is unknown"),
        ("", {"control_expression": pd.DataFrame([[1.0] * 5], index=["x"])}, ValueError, r"contexts \['y'\]"),
        ("", {"control_expression": pd.DataFrame([[1.0]] * 2, index=["x", "y"])}, ValueError, "column for"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_fitted(what, options, error, says, monkeypatch):
    monkeypatch.setattr(_response_table_model, "fit_responses", lambda *_, **__: pytest.fail("fitted"))
    with pytest.raises(error, match=says) as raised:
        ResponseModel.fit(broken(what), perturbation_key="gene", **{"context_key": "line", **options})
    assert "\n" not in str(raised.value)


def test_only_anndata_is_read():
    with pytest.raises(TypeError, match="DataFrame"):
        ResponseModel.fit(pd.DataFrame(), perturbation_key="gene")


NAMES = ["P0", "P1", "P2"]


def test_rows_that_are_incomplete_or_repeated_are_left_out():
    table = pd.DataFrame([[1.0, 2], [3, 4], [np.nan, 1], [3, 4]], index=["P0", "P1", "P2", "P1"])
    found, notes = read_tables(table, NAMES)
    assert found["table"].index.tolist() == ["P0", "P1"]
    assert notes == [
        "1 rows of table 'table' have missing values (NaN) and are left out",
        "table 'table' has rows for 2 of 3 perturbations",
    ]


def test_a_constant_table_is_named():
    _, notes = read_tables({"t": pd.DataFrame(np.ones((3, 2)), index=NAMES)}, NAMES)
    assert notes == ["table 't' has the same values in every row and says nothing"]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (pd.DataFrame([[1.0], [2.0]], index=["P0", "P0"]), "different rows of the same name"),
        (pd.DataFrame([[np.inf]], index=["P0"]), "infinite"),
        (pd.DataFrame([["a"]], index=["P0"]), "no numbers"),
        (pd.DataFrame(index=["P0"]), "empty"),
        (pd.DataFrame([[1.0]], index=["p0"]), "did you mean 'p0'"),
    ],
)
def test_bad_tables_are_refused(table, says):
    with pytest.raises(ValueError, match=says):
        read_tables({"t": table}, NAMES)
