"""Tables of perturbation embeddings: what they may be made from, and how new rows come in."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvi_tahoe._names import nearest_names
from scvi_tahoe.data import EmbeddingTable

ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)
NAMES = ["A", "B", "C"]


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ("esm2.pt", TypeError, r"uns\['t'\] is a str; a .* is a mapping of label to vector, a DataFrame .*, or a pair"),
        (ROWS, TypeError, "is a ndarray; a perturbation-embedding table is"),
        ({"A": [1, 2], "B": [1]}, ValueError, r"rows have different widths: \[1, 2\]; one width is needed"),
        ({}, ValueError, r"has 0 names and a matrix of shape \(0, 0\); one row a name is needed"),
        ((NAMES[:2], ROWS), ValueError, r"has 2 names and a matrix of shape \(3, 2\)"),
        ((NAMES, ROWS[:, 0]), ValueError, r"has 3 names and a matrix of shape \(3,\)"),
        ((["A", "B", "A"], ROWS), ValueError, r"names these labels more than once: \['A'\]; keep one row each"),
        (pd.DataFrame(ROWS, index=["A", "B", "B"]), ValueError, r"more than once: \['B'\]"),
        ((NAMES, ROWS * np.nan), ValueError, r"NaN or infinite values in the rows of \['A', 'B', 'C'\]"),
        ({"A": [1, np.inf]}, ValueError, r"NaN or infinite values in the rows of \['A'\]"),
        (pd.DataFrame({"x": ["a", "b"]}, index=["A", "B"]), ValueError, "is no perturbation-embedding table: could"),
    ],
)
def test_what_is_no_table_is_refused(table, error, message):
    with pytest.raises(error, match=message):
        EmbeddingTable.from_user(table, "uns['t']")


def test_numbers_become_float32_and_labels_text():
    table = EmbeddingTable.from_user({1: [1, 2], 2: [3, 4]}, "uns['t']")
    assert table.names == ("1", "2")
    assert table.matrix.dtype == np.float32


def test_one_hot_rows_cover_every_label_once():
    table = EmbeddingTable.from_labels(["b", "a", "b", "control"])
    assert table.names == ("a", "b", "control")
    np.testing.assert_array_equal(table.matrix, np.eye(3))
    assert table.one_hot


def test_an_unknown_label_lists_the_nearest_ones():
    table = EmbeddingTable(("STAT1", "STAT2", "JAK2"), ROWS)
    with pytest.raises(KeyError, match=r"'STAT3' is unknown to the model \(did you mean 'STAT[12]', 'STAT[12]'.*3"):
        table.row("STAT3")


def test_new_rows_come_behind_the_known_ones():
    table = EmbeddingTable(("A", "B"), ROWS[:2]).extended(EmbeddingTable(("C", "A"), ROWS[[2, 0]]))
    assert table.names == ("A", "B", "C")
    np.testing.assert_array_equal(table.matrix, ROWS)


def test_a_table_of_another_width_is_refused():
    with pytest.raises(ValueError, match="is 3 wide, the model was trained with 2"):
        EmbeddingTable(("A",), ROWS[:1]).extended(EmbeddingTable(("B",), np.ones((1, 3), np.float32)))


def test_another_row_for_a_known_label_is_refused():
    with pytest.raises(ValueError, match=r"other rows for labels that the model knows: \['A'\]; give the table that"):
        EmbeddingTable(("A", "B"), ROWS[:2]).extended(EmbeddingTable(("A",), ROWS[1:2]))


def test_nothing_is_suggested_where_nothing_is_near():
    assert nearest_names("BRD4", ["control", "DMSO"]) == ""
    assert nearest_names("stat1", ["STAT2", "STAT1", "KO_A"]) == " (did you mean 'STAT1'?)"
