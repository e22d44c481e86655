"""The perturbed gene's own change."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_tahoe.data import LabelParser
from scvi_tahoe.response._own_gene import OwnGene, target_genes, without_targets


def test_a_knock_down_is_a_line_in_expression_and_never_below_zero():
    expression = np.array([0.5, 1.0, 2.0, 3.0])
    own = OwnGene.fit(["A", "B", "C", "D"], ["x"] * 4, expression, -0.8 * expression - 0.1)
    assert (own.slope, own.intercept) == (pytest.approx(-0.8), pytest.approx(-0.1))
    assert own.error == pytest.approx(0)
    assert own.predict("E", "x", 2.5, knows_elsewhere=True) == pytest.approx(-2.1)
    assert own.predict("E", "x", 0.2, knows_elsewhere=True) == pytest.approx(-0.2)


def test_a_gene_of_one_expression_has_no_slope():
    own = OwnGene.fit(["A", "B"], ["x"] * 2, np.ones(2), np.array([-0.4, -0.6]))
    assert (own.slope, own.intercept) == (0, pytest.approx(-0.5))


def test_what_a_target_differs_from_the_line_is_carried_over_as_far_as_it_holds():
    rng = np.random.default_rng(0)
    names = [f"P{i}" for i in range(20)] * 2
    deviation = np.tile(rng.normal(size=20), 2)
    own = OwnGene.fit(names, ["x"] * 20 + ["y"] * 20, np.full(40, 9.0), deviation - 1)
    assert own.kept == pytest.approx(1)
    expected = deviation[3] - 1
    assert own.predict("P3", "z", 9.0, knows_elsewhere=True) == pytest.approx(expected)
    assert own.predict("P3", "z", 9.0, knows_elsewhere=False) == pytest.approx(deviation.mean() - 1)
    noise = OwnGene.fit(names, ["x"] * 20 + ["y"] * 20, np.full(40, 9.0), rng.normal(size=40))
    assert noise.kept < 0.5


def test_targets_are_the_measured_genes_that_a_label_names():
    parser = LabelParser(control="c", combination_separator="+")
    found = target_genes(["A", "B+A", "D"], ["B", "X", "A"], parser)
    assert [sorted(genes) for genes in found] == [[2], [0, 2], []]


def test_a_targets_own_change_is_replaced_by_that_of_the_others_of_its_context():
    changes = np.array([[-5.0, 1], [1, -7], [3, 2], [10, 20]])
    found = without_targets(changes, np.array(["x", "x", "x", "y"]), [[0], [1], [], [0]])
    assert found.tolist() == [[2, 1], [1, 1.5], [3, 2], [0, 20]]
    assert changes[0, 0] == -5  # the input is kept
