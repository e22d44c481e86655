"""Rows of combinations and doses, made from those of their components."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_tahoe.data import Composition, EmbeddingTable, LabelParser

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
