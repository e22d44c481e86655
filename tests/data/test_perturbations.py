"""Perturbation labels, and tables of their embeddings: combinations, doses, several tables as one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from scvi_tahoe._names import nearest_names
from scvi_tahoe.data import Component, Composition, EmbeddingTable, LabelParser, TableFusion, dose_label

PAIRS = LabelParser(control="ctrl", combination_separator="+")
DOSES = LabelParser(control="DMSO", has_dose=True)
BOTH = LabelParser(control="DMSO", combination_separator="+", has_dose=True)
NAMES = LabelParser(control="ctrl")


A, B = Component("A"), Component("B")


@pytest.mark.parametrize(
    ("parser", "label", "components"),
    [
        (PAIRS, "A+B", (A, B)), (PAIRS, "B+A", (A, B)), (PAIRS, "A+ctrl", (A,)), (PAIRS, "ctrl+A", (A,)),
        (PAIRS, "ctrl", (Component("ctrl"),)), (PAIRS, "ctrl+ctrl", (Component("ctrl"),)),
        (DOSES, "A@10", (Component("A", 10.0),)), (DOSES, "a@b@1e-3", (Component("a@b", 0.001),)),
        (DOSES, "A+B@2", (Component("A+B", 2.0),)), (DOSES, "DMSO", (Component("DMSO"),)),
        (BOTH, "B@1+A@10", (Component("A", 10.0), Component("B", 1.0))), (BOTH, "B@1+DMSO", (Component("B", 1.0),)),
        (BOTH, "B@1+DMSO@5", (Component("B", 1.0),)), (DOSES, "DMSO@0", (Component("DMSO"),)),
        (NAMES, "A+B@2", (Component("A+B@2"),)), (DOSES, dose_label("A", 0.05), (Component("A", 0.05),)),
    ],
)  # fmt: skip
def test_a_label_is_read_into_sorted_parts_without_the_control(parser, label, components):
    assert parser.components(label) == components


@pytest.mark.parametrize(
    ("parser", "label", "spelling", "without_doses"),
    [
        (BOTH, "B@1.0+A@10", "A@10+B@1", "A+B"), (BOTH, "DMSO+A@2", "A@2", "A"), (BOTH, "DMSO", "DMSO", "DMSO"),
        (DOSES, "a@b@10", "a@b@10", "a@b"), (PAIRS, "B+A@2", "A@2+B", "A@2+B"), (NAMES, "A+B", "A+B", "A+B"),
    ],
)  # fmt: skip
def test_labels_that_mean_the_same_have_one_spelling(parser, label, spelling, without_doses):
    assert parser.spelling(label) == spelling
    assert parser.without_doses(label) == without_doses


def test_a_dose_is_written_as_short_as_it_goes():
    assert [dose_label("A", dose) for dose in (10, 0.05)] == ["A@10", "A@0.05"]


@pytest.mark.parametrize("dose", [0, -1, np.nan, np.inf, "high", None])
def test_a_dose_that_is_no_positive_number_is_refused(dose):
    with pytest.raises(ValueError, match="dose .* of 'A' is not a positive number|^dose is "):
        dose_label("A", dose)
    with pytest.raises(ValueError, match="of 'A' is not a positive number"):
        DOSES.components(f"A@{dose}")


@pytest.mark.parametrize(
    ("parser", "label", "message"),
    [
        (DOSES, "A", r"'A' needs a dose for 'A', e.g. 'A@10': the model was trained with doses"),
        (PAIRS, "A+", r"'A\+' has an empty part between '\+'"),
    ],
)
def test_a_label_without_a_dose_or_a_part_is_refused(parser, label, message):
    with pytest.raises(ValueError, match=message):
        parser.components(label)


@pytest.mark.parametrize(
    ("parser", "label", "is_control", "repeated"),
    [
        (PAIRS, "ctrl", True, None), (PAIRS, "ctrl+ctrl", True, None), (PAIRS, "ctrl+A", False, None),
        (DOSES, "DMSO@10", True, None), (DOSES, "A@10", False, None), (NAMES, "ctrl", True, None),
        (NAMES, "ctrl+ctrl", False, None), (PAIRS, "A+B", False, None), (PAIRS, "B+A+B", False, "B"),
        (PAIRS, "ctrl+ctrl+A", False, None), (BOTH, "A@1+A@10", False, "A"),
    ],
)  # fmt: skip
def test_a_control_and_a_part_that_comes_twice_are_found(parser, label, is_control, repeated):
    assert parser.is_control(label) == is_control
    assert parser.repeated(label) == repeated


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
        (pd.DataFrame({"x": ["a", "b"]}, index=["A", "B"]), ValueError, "is not a perturbation-embedding table: could"),
    ],
)
def test_what_is_no_table_is_refused(table, error, message):
    with pytest.raises(error, match=message):
        EmbeddingTable.from_user(table, "uns['t']")


def test_a_table_is_made_of_vectors_or_of_labels_alone():
    table = EmbeddingTable.from_user({1: [1, 2], 2: [3, 4]}, "uns['t']")
    assert (table.names, table.matrix.dtype) == (("1", "2"), np.float32)
    table = EmbeddingTable.from_labels(["b", "a", "b", "control"])
    assert (table.names, table.one_hot) == (("a", "b", "control"), True)
    np.testing.assert_array_equal(table.matrix, np.eye(3))


def test_an_unknown_label_lists_the_nearest_ones_if_there_are_any():
    table = EmbeddingTable(("STAT1", "STAT2", "JAK2"), ROWS)
    with pytest.raises(KeyError, match=r"'STAT3' is unknown to the model \(did you mean 'STAT[12]', 'STAT[12]'.*3"):
        table.row("STAT3")
    assert nearest_names("BRD4", ["control", "DMSO"]) == ""
    assert nearest_names("stat1", ["STAT2", "STAT1", "KO_A"]) == " (did you mean 'STAT1'?)"


def test_new_rows_come_behind_the_known_ones():
    table = EmbeddingTable(("A", "B"), ROWS[:2]).extended(EmbeddingTable(("C", "A"), ROWS[[2, 0]]))
    assert table.names == ("A", "B", "C")
    np.testing.assert_array_equal(table.matrix, ROWS)


PARTS = EmbeddingTable(("A", "B", "C", "ctrl"), np.array([[1, 2], [3, 4], [5, 7], [0, 0]], np.float32))
DRUGS = replace(PARTS, names=("A", "B", "C", "DMSO"))
ONE_HOT = EmbeddingTable.one_hot_of(["A", "B", "C", "ctrl"])


def composed(labels, parser=PAIRS, components=PARTS, **options):
    return EmbeddingTable.composed(Composition(parser=parser, components=components, **options), labels)


@pytest.mark.parametrize(
    ("labels", "options", "rows"),
    [
        pytest.param(["ctrl", "A", "A+B", "A+B+C"], {}, [[0, 0, 0], [1, 2, 0], [4, 6, 1], [9, 13, 2]], id="sums"),
        pytest.param(["A+C", "ctrl"], {"components": ONE_HOT}, [[1, 0, 1, 0, 1], [0, 0, 0, 1, 0]], id="one-hot"),
        pytest.param(["DMSO", "A@1", "A@10", "B@0.01"], {"parser": DOSES, "components": DRUGS},
            [[0, 0, 0], [1, 2, 0], [1, 2, 1], [3, 4, -2]], id="doses"),
        pytest.param(["A", "B+A"], {"combination": "learned", "n_components": 2},
            [[1, 2, 1, 0, 0, 0], [1, 2, 1, 3, 4, 1]], id="learned"),
    ],
)  # fmt: skip
def test_rows_of_labels_are_made_of_those_of_their_parts(labels, options, rows):
    np.testing.assert_allclose(composed(labels, **options).matrix, rows)


def test_the_encoder_sees_one_part_where_it_is_learned_and_knows_columns():
    table = composed(["A", "B+A"], combination="learned", n_components=2)
    assert (table.width, table.encoder_width, table.n_components) == (6, 2, 2)
    assert composed(["A+C"], components=ONE_HOT).composition.columns == ("A", "B", "C", "ctrl", "further parts")


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


def test_a_composition_survives_as_plain_values():
    composition = Composition(parser=PAIRS, components=PARTS, combination="learned", n_components=3)
    assert Composition.from_dict(composition.to_dict(), PARTS) == composition


ESM = EmbeddingTable(("A", "B"), np.array([[0, 5], [2, 5]], np.float32))
STRING = EmbeddingTable(("B", "C", "D"), np.array([[0], [3], [6]], np.float32))


def test_blocks_are_standardised_and_marked_where_a_label_lacks_them():
    table = TableFusion.of([ESM, STRING]).apply([ESM, STRING])
    assert table.names == ("A", "B", "C", "D")
    step = np.sqrt(1.5)
    expected = [[-1, 0, 0, 0, 1], [1, 0, 0, -step, 0], [0, 0, 1, 0, 0], [0, 0, 1, step, 0]]
    np.testing.assert_allclose(table.matrix, expected, rtol=1e-6)


def test_rows_that_come_later_are_standardised_as_the_first():
    fusion = TableFusion.of([ESM, STRING])
    longer = EmbeddingTable((*STRING.names, "E"), np.append(STRING.matrix, [[30]], axis=0).astype(np.float32))
    table = TableFusion.from_dict(fusion.to_dict()).apply([ESM, longer])
    first = fusion.apply([ESM, STRING])
    np.testing.assert_array_equal(table.matrix[:4], first.matrix)
    np.testing.assert_allclose(table.matrix[4], [0, 0, 1, 27 / np.sqrt(6), 0], rtol=1e-6)
    assert first.extended(table).names == ("A", "B", "C", "D", "E")


@pytest.mark.parametrize(
    ("use", "message"),
    [
        pytest.param(lambda: ESM.extended(STRING), "is 1 wide, the model was trained with 2", id="another width"),
        pytest.param(lambda: TableFusion.of([ESM, STRING]).apply([STRING, STRING]),
            "is 1 wide, the model was trained with 2", id="another width of several"),
        pytest.param(lambda: ESM.extended(replace(ESM, matrix=ROWS[:2])),
            r"other rows for labels that the model knows: \['A', 'B'\]; give the table that", id="another row"),
        pytest.param(lambda: composed(["ctrl", "A+B"]).extended(ESM),
            r"other rows for labels that the model knows: \['A', 'B'\]", id="another row of a part"),
        pytest.param(lambda: composed(["A"], combination="learned", n_components=2).with_composed(["A+B+C"]),
            r"'A\+B\+C' has 3 parts; the model was built for up to 2", id="too many parts"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_the_model_is_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use()
