"""Tables of perturbation embeddings: what they may be made from, combinations, doses, several tables as one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvi_tahoe._names import nearest_names
from scvi_tahoe.data import Composition, EmbeddingTable, LabelParser, TableFusion

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


PARTS = EmbeddingTable(("A", "B", "C", "ctrl"), np.array([[1, 2], [3, 4], [5, 7], [0, 0]], np.float32))
PAIRS = LabelParser(control="ctrl", combination_separator="+")
DOSES = LabelParser(control="ctrl", has_dose=True)


def composed(labels, parser=PAIRS, components=PARTS, **options):
    return EmbeddingTable.composed(Composition(parser=parser, components=components, **options), labels)


def test_a_sum_keeps_single_rows_and_counts_further_parts():
    table = composed(["ctrl", "A", "A+B", "A+B+C"])
    np.testing.assert_array_equal(table.matrix, [[0, 0, 0], [1, 2, 0], [4, 6, 1], [9, 13, 2]])


def test_one_hot_parts_become_several_hot_rows():
    table = composed(["A+C", "ctrl"], components=EmbeddingTable.one_hot_of(["A", "B", "C", "ctrl"]))
    np.testing.assert_array_equal(table.matrix, [[1, 0, 1, 0, 1], [0, 0, 0, 1, 0]])
    assert table.composition.columns == ("A", "B", "C", "ctrl", "further parts")


def test_doses_enter_as_their_logarithm_and_the_control_has_none():
    table = composed(["ctrl", "A@1", "A@10", "B@0.01"], DOSES)
    np.testing.assert_allclose(table.matrix, [[0, 0, 0], [1, 2, 0], [1, 2, 1], [3, 4, -2]])


def test_learned_parts_stay_beside_each_other_with_a_mark_of_presence():
    table = composed(["A", "B+A"], combination="learned", n_components=2)
    np.testing.assert_array_equal(table.matrix, [[1, 2, 1, 0, 0, 0], [1, 2, 1, 3, 4, 1]])
    assert (table.width, table.encoder_width, table.n_components) == (6, 2, 2)


def test_labels_are_covered_as_far_as_their_parts_have_rows():
    table = composed(["ctrl", "A", "B+A"]).with_composed(["A+B", "B+ctrl", "C+A", "A+X"])
    assert table.names == ("ctrl", "A", "B+A", "B", "A+C")
    assert table.row("A+B") == table.row("B+A") == 2
    np.testing.assert_array_equal(table.matrix[4], [6, 9, 1])
    with pytest.raises(KeyError, match=r"'A\+X' is unknown to the model"):
        table.row("A+X")
    assert table.with_composed(["A"]) is table


def test_new_rows_of_parts_leave_known_rows_untouched():
    table = composed(["ctrl", "A+B"])
    longer = table.extended(EmbeddingTable(("A", "D"), np.array([[1, 2], [10, 10]], np.float32)))
    np.testing.assert_array_equal(longer.matrix, table.matrix)
    np.testing.assert_array_equal(longer.with_composed(["A+D"]).matrix[-1], [11, 12, 1])
    with pytest.raises(ValueError, match=r"other rows for labels that the model knows: \['A'\]"):
        table.extended(EmbeddingTable(("A",), np.zeros((1, 2), np.float32)))


def test_more_parts_than_the_network_takes_are_refused():
    with pytest.raises(ValueError, match=r"'A\+B\+C' has 3 parts; the model was built for up to 2"):
        composed(["A"], combination="learned", n_components=2).with_composed(["A+B+C"])


@pytest.mark.parametrize("options", [{}, {"combination": "learned", "n_components": 3}])
def test_a_composition_survives_as_plain_values(options):
    composition = Composition(parser=PAIRS, components=PARTS, **options)
    assert Composition.from_dict(composition.to_dict(), PARTS) == composition


ESM = EmbeddingTable(("A", "B"), np.array([[0, 5], [2, 5]], np.float32))
STRING = EmbeddingTable(("B", "C", "D"), np.array([[0], [3], [6]], np.float32))


def test_blocks_are_standardised_and_marked_where_a_label_lacks_them():
    table = TableFusion.of([ESM, STRING]).apply([ESM, STRING])
    assert table.names == ("A", "B", "C", "D")
    step = np.sqrt(1.5)
    expected = [[-1, 0, 0, 0, 1], [1, 0, 0, -step, 0], [0, 0, 1, 0, 0], [0, 0, 1, step, 0]]
    np.testing.assert_allclose(table.matrix, expected, rtol=1e-6)


def test_rows_that_come_later_are_standardised_as_the_first_and_change_none():
    fusion = TableFusion.of([ESM, STRING])
    longer = EmbeddingTable((*STRING.names, "E"), np.append(STRING.matrix, [[30]], axis=0).astype(np.float32))
    table = TableFusion.from_dict(fusion.to_dict()).apply([ESM, longer])
    first = fusion.apply([ESM, STRING])
    np.testing.assert_array_equal(table.matrix[:4], first.matrix)
    np.testing.assert_allclose(table.matrix[4], [0, 0, 1, 27 / np.sqrt(6), 0], rtol=1e-6)
    assert first.extended(table).names == ("A", "B", "C", "D", "E")


def test_a_table_of_another_width_is_not_fused():
    with pytest.raises(ValueError, match="is 1 wide, the model was trained with 2"):
        TableFusion.of([ESM, STRING]).apply([STRING, STRING])
