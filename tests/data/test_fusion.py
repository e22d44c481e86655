"""Several perturbation-embedding tables as one."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_tahoe.data import EmbeddingTable, TableFusion

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


def test_a_table_of_another_width_is_refused():
    with pytest.raises(ValueError, match="is 1 wide, the model was trained with 2"):
        TableFusion.of([ESM, STRING]).apply([STRING, STRING])
