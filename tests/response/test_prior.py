"""What the network's change is added to, made from constructed data whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scvi_tahoe.data import Condition, ConditionIndex, EmbeddingTable
from scvi_tahoe.data._perturbations import Composition, LabelParser
from scvi_tahoe.data._screen import CellLabels
from scvi_tahoe.response import CellPrior

N_GENES, N_CELLS = 40, 300
QUIET = np.zeros(N_GENES)


def gene(*positions, by=1.0):
    """A change of some genes."""
    change = QUIET.copy()
    change[list(positions)] = by
    return change


class Cells:
    """Cells whose genes are normal around a mean, some of them zero, condition by condition."""

    def __init__(self, effects, *, of_context=None, noise=0.6, seed=0):
        rng = np.random.default_rng(seed)
        contexts = sorted({context for context, _ in effects})
        labels = {**{(context, "control"): QUIET for context in contexts}, **effects}
        base = rng.uniform(3, 5, N_GENES)
        blocks = [
            base + (of_context or {}).get(context, 0) + change + noise * rng.normal(size=(N_CELLS, N_GENES))
            for (context, _), change in labels.items()
        ]
        self.expression = sp.csr_matrix(np.concatenate(blocks).astype(np.float32))
        context, perturbation = (np.repeat([label[i] for label in labels], N_CELLS) for i in (0, 1))
        context_labels, perturbation_labels = CellLabels.from_values(context), CellLabels.from_values(perturbation)
        conditions = tuple(sorted(Condition(*label) for label in effects))
        position = {label: i for i, label in enumerate(conditions)}
        of_cell = np.repeat([position.get(label, -1) for label in labels], N_CELLS)
        self.index = ConditionIndex(conditions, of_cell, context_labels, perturbation_labels, None, "control")

    def controls(self, context):
        return self.expression[self.index.controls(context)].toarray()

    def mean(self, context, perturbation):
        return np.asarray(self.expression[self.index.rows(Condition(context, perturbation))].mean(0)).ravel()

    def prior(self, kind="cells", *, without=()):
        hidden = [i for i, c in enumerate(self.index.conditions) if c in without]
        rows = np.flatnonzero(~self.index.is_control & ~np.isin(self.index.condition_of_cell, hidden))
        return CellPrior.from_cells(kind, self.expression, self.index, rows)

    def changes(self, prior, *asked, table=None, n_cells=300):
        """Change of the mean that a prior says, for each condition asked."""
        conditions = [Condition(*c) for c in asked]
        controls = {c.context: self.controls(c.context) for c in conditions}
        table = table or EmbeddingTable.from_labels(self.index.perturbation.names)
        base = prior.base(conditions, controls, table, n_cells=n_cells)
        if base.cells is None:
            return [base.shift[i] for i in range(len(conditions))]
        mean = {c: np.asarray(base.cells[base.rows[c]].mean(0)).ravel() for c in conditions}
        return [mean[c] - controls[c.context].mean(0) for c in conditions]


def combinations(*singles):
    """A table whose rows are made from those of the parts."""
    parser = LabelParser(control="control", combination_separator="+")
    composition = Composition(parser=parser, components=EmbeddingTable.from_labels(["control", *singles]))
    return EmbeddingTable.composed(composition, ["control", *singles])


# ---------------------------------------------------------------- what is kept of a difference


@pytest.mark.parametrize("kind", ["transfer", "cells"])
def test_the_effect_seen_elsewhere_is_kept_and_noise_is_dropped(kind):
    effect = gene(0, 1, 2, by=1.0)
    anchors = {(c, p): gene(i + 5) for c in ("X", "Y") for i, p in enumerate("BCDE")}
    cells = Cells({**anchors, ("X", "A"): effect})
    (change,) = cells.changes(cells.prior(kind), ("Y", "A"))
    np.testing.assert_allclose(change[:3], 1.0, atol=0.2)
    anchors = {c: np.mean([*(cells.mean(c, p) for p in "BCDE"), cells.controls(c).mean(0)], axis=0) for c in "XY"}
    raw = cells.mean("X", "A") - anchors["X"]
    kept = change - (anchors["Y"] - cells.controls("Y").mean(0))
    assert np.abs(kept[10:]).mean() < 0.75 * np.abs(raw[10:]).mean()


@pytest.mark.parametrize("kind", ["transfer", "cells"])
@pytest.mark.parametrize("size", [3.0, 12.0])
def test_an_effect_beyond_all_that_the_anchors_show_keeps_its_size(kind, size):
    effects = {(c, p): gene(i + 5) for c in ("X", "Y") for i, p in enumerate("BCDEFGHI")}
    cells = Cells({**effects, ("X", "A"): gene(0, by=size)}, of_context={"Y": 2.0})
    (change,) = cells.changes(cells.prior(kind), ("Y", "A"))
    np.testing.assert_allclose(change[0], size, atol=0.2)


@pytest.mark.parametrize("kind", ["transfer", "cells"])
def test_what_all_perturbed_cells_of_a_context_share_is_no_effect(kind):
    shared = gene(*range(20, 30), by=2.0)  # of being perturbed, in X only
    effects = {(c, p): gene(i + 5) + (shared if c == "X" else 0) for c in ("X", "Y") for i, p in enumerate("BCDEFGHI")}
    cells = Cells({**effects, ("X", "A"): gene(0) + shared}, of_context={"X": 1.0})
    (change,) = cells.changes(cells.prior(kind), ("Y", "A"))
    naive = cells.mean("X", "A") - cells.controls("X").mean(0)
    assert naive[20:30].mean() > 1.8
    # the controls, one anchor of nine, are what is left of the shared part
    assert change[20:30].mean() < 2.0 / 9 + 0.1
    assert change[0] > 0.8


# ---------------------------------------------------------------- what it is made from


@pytest.fixture(scope="module")
def screen():
    effects = {(c, p): gene(i) for c in ("X", "Y") for i, p in enumerate("ABCDE")}
    return Cells(effects)


@pytest.mark.parametrize("kind", ["mean", "transfer", "cells"])
def test_the_cells_of_a_condition_never_enter_its_own_prior(kind, screen):
    with_them = screen.prior(kind)
    without = screen.prior(kind, without=[("Y", "A")])
    (first,), (second,) = (screen.changes(p, ("Y", "A")) for p in (with_them, without))
    np.testing.assert_allclose(first, second, atol=0.08)  # which of the others' cells are kept is drawn anew
    moved = Cells({**{(c, p): gene(i) for c in "XY" for i, p in enumerate("ABCDE")}, ("Y", "A"): gene(9, by=50)})
    (third,) = moved.changes(moved.prior(kind), ("Y", "A"))
    assert abs(third[9]) < 0.2


@pytest.mark.parametrize("kind", ["mean", "transfer", "cells"])
def test_a_prior_does_not_depend_on_what_else_is_asked(kind, screen):
    prior = screen.prior(kind)
    (alone,) = screen.changes(prior, ("Y", "A"))
    among = screen.changes(prior, ("X", "B"), ("Y", "A"), ("Y", "C"))
    np.testing.assert_array_equal(alone, among[1])


ELSEWHERE, OTHERS = "the same perturbation in other contexts", "the mean of other perturbations"


@pytest.mark.parametrize(("kind", "words"), [("mean", [OTHERS, OTHERS]), ("transfer", [ELSEWHERE, OTHERS])])
def test_what_a_prior_starts_from_is_said_in_words(kind, words, screen):
    table = EmbeddingTable.from_labels([*screen.index.perturbation.names, "Z"])
    origins = screen.prior(kind).starts_from([Condition("Y", "A"), Condition("Y", "Z")], table)
    assert [origin.value for origin in origins] == words


def test_combinations_start_from_their_parts_in_words_without_names(one_context):
    table = combinations(*SINGLES, "Y", "Z").with_composed(["A+B", "A+Z", "Y+Z"])
    origins = one_context.prior().starts_from([Condition("X", pair) for pair in ("A+B", "A+Z", "Y+Z")], table)
    words = [origin.value for origin in origins]
    assert words == ["its parts", "some of its parts", "the mean of other perturbations"]


@pytest.mark.parametrize("kind", ["mean", "transfer", "cells"])
def test_the_origin_names_other_conditions_with_weights_that_add_up_to_1(kind, screen):
    prior = screen.prior(kind)
    table = EmbeddingTable.from_labels(screen.index.perturbation.names)
    (origin,) = prior.origins(prior.targets({"Y": screen.controls("Y")}), [Condition("Y", "A")], table)
    (weights,) = origin.made_from
    expected = [("Y", p) for p in "BCDE"] if kind == "mean" else [("X", "A")]
    assert sorted(weights) == expected
    assert sum(weights.values()) == pytest.approx(1)
    assert origin.n_cells == N_CELLS * len(expected)


def test_each_part_of_a_combination_has_weights_of_its_own(one_context):
    table = combinations(*SINGLES).with_composed(["A+B"])
    prior = one_context.prior()
    (origin,) = prior.origins(prior.targets({"X": one_context.controls("X")}), [Condition("X", "A+B")], table)
    assert origin.made_from == ({("X", "A"): 1.0}, {("X", "B"): 1.0})
    assert origin.n_cells == 2 * N_CELLS


def test_the_share_that_is_kept_is_the_length_of_what_the_prior_adds(screen):
    prior, asked = screen.prior("transfer"), Condition("Y", "A")
    table = EmbeddingTable.from_labels(screen.index.perturbation.names)
    (origin,) = prior.origins(prior.targets({"Y": screen.controls("Y")}), [asked], table)
    (change,) = screen.changes(prior, asked)
    anchors = {c: np.mean([*(screen.mean(c, p) for p in "BCDE"), screen.controls(c).mean(0)], axis=0) for c in "XY"}
    kept = change + screen.controls("Y").mean(0) - anchors["Y"]
    whole = screen.mean("X", "A") - anchors["X"]
    assert 0.5 < origin.kept < 0.999
    assert origin.kept == pytest.approx(np.linalg.norm(kept) / np.linalg.norm(whole), rel=1e-4)


def test_all_of_a_strong_effect_is_kept_little_of_noise_and_all_of_a_mean():
    effects = {(c, p): gene(i + 5) for c in "XY" for i, p in enumerate("BCDEFGHI")}
    cells = Cells({**effects, ("X", "strong"): gene(0, by=20), ("X", "none"): np.mean(list(effects.values()), axis=0)})
    table = EmbeddingTable.from_labels(cells.index.perturbation.names)
    asked = [Condition("Y", "strong"), Condition("Y", "none")]
    for kind in ("mean", "transfer", "cells"):
        prior = cells.prior(kind)
        strong, none = (o.kept for o in prior.origins(prior.targets({"Y": cells.controls("Y")}), asked, table))
        assert strong > 0.99
        assert none == 1 if kind == "mean" else none < 0.75


def test_the_nearest_perturbations_stand_for_one_seen_nowhere():
    cells = Cells({("X", p): gene(i, by=2.0) for i, p in enumerate("ABCDEFGH")})
    rows = np.eye(8, dtype=np.float32)
    table = EmbeddingTable((*"ABCDEFGH", "Z"), np.concatenate([rows, rows[:1] + 0.1 * rows[1:2]]))
    (change,) = cells.changes(cells.prior("transfer"), ("X", "Z"), table=table)
    assert change.argmax() == 0
    assert change[0] > 1.5


def test_perturbations_that_are_equally_near_count_alike():
    cells = Cells({("X", p): gene(i, by=2.0) for i, p in enumerate("ABCDEFGH")})
    table = EmbeddingTable((*"ABCDEFGHZ",), np.eye(9, dtype=np.float32))
    (change,) = cells.changes(cells.prior("transfer"), ("X", "Z"), table=table)
    np.testing.assert_allclose(change[:8], 2.0 / 8, atol=0.15)


def test_a_prior_that_was_saved_says_the_same(screen):
    prior = screen.prior("cells")
    again = CellPrior.from_dict(prior.to_dict())
    np.testing.assert_array_equal(*(screen.changes(p, ("Y", "A"))[0] for p in (prior, again)))


@pytest.mark.parametrize("unit", [1.0, 1e3])
def test_an_unmeasured_dose_starts_from_other_doses_in_any_unit(unit):
    drugs, doses = "ABCDEFGH", [f"{unit * d:g}" for d in (0.1, 1, 10)]
    cells = Cells({("X", f"{p}@{dose}"): gene(i, by=2.0) for i, p in enumerate(drugs) for dose in doses})
    parser = LabelParser(control="control", has_dose=True)
    composition = Composition(parser=parser, components=EmbeddingTable.from_labels(["control", *drugs]))
    measured = [p for _, p in cells.index.conditions]
    table = EmbeddingTable.composed(composition, ["control", *measured]).with_composed([f"A@{3 * unit:g}"])
    (change,) = cells.changes(cells.prior("transfer"), ("X", f"A@{3 * unit:g}"), table=table)
    np.testing.assert_allclose(change[0], 2.0, atol=0.2)
    np.testing.assert_allclose(change[1:8], 0.0, atol=0.15)


def of_doses(*, contexts="X", unmeasured=()):
    """Eight drugs whose effect on a gene of their own grows by 1 with every decade of dose, and their table."""
    drugs, doses = "ABCDEFGH", ("0.1", "1", "10")
    cells = Cells(
        {
            (c, f"{p}@{dose}"): gene(i, by=1.0 + k)
            for c in contexts
            for i, p in enumerate(drugs)
            for k, dose in enumerate(doses)
            if (c, p) not in unmeasured
        }
    )
    composition = Composition(
        parser=LabelParser(control="control", has_dose=True),
        components=EmbeddingTable.from_labels(["control", *drugs]),
    )
    measured = sorted({p for _, p in cells.index.conditions})
    return cells, EmbeddingTable.composed(composition, ["control", *measured])


@pytest.mark.parametrize("kind", ["transfer", "cells"])
def test_a_dose_starts_from_the_doses_next_to_it_by_log_distance(kind):
    cells, table = of_doses()
    asked = {"A@0.001": 1.0, "A@0.11": 1.04, "A@0.3162": 1.5, "A@3.162": 2.5, "A@1000": 3.0}
    table = table.with_composed(list(asked))
    prior = cells.prior(kind)
    changes = cells.changes(prior, *(("X", label) for label in asked), table=table)
    for change, expected in zip(changes, asked.values(), strict=True):
        assert change[0] == pytest.approx(expected, abs=0.25)
        np.testing.assert_allclose(change[1:8], 0.0, atol=0.2)
    assert {origin.value for origin in prior.starts_from([Condition("X", p) for p in asked], table)} == {
        "the nearest doses of the same perturbation"
    }


@pytest.mark.parametrize("kind", ["transfer", "cells"])
def test_a_dose_of_a_drug_of_other_contexts_starts_from_its_doses_there(kind):
    cells, table = of_doses(contexts="XY", unmeasured=[("Y", "A")])
    (change,) = cells.changes(cells.prior(kind), ("Y", "A@3.162"), table=table.with_composed(["A@3.162"]))
    assert change[0] == pytest.approx(2.5, abs=0.25)
    np.testing.assert_allclose(change[1:8], 0.0, atol=0.2)


@pytest.mark.parametrize("kind", ["transfer", "cells"])
def test_an_unmeasured_drug_starts_from_its_neighbours_at_that_dose(kind):
    cells, _ = of_doses()
    rows = np.vstack([np.zeros(9), np.eye(8, 9), np.eye(1, 9)]).astype(np.float32)  # "New" is described as "A" is
    parts = EmbeddingTable(("control", *"ABCDEFGH", "New"), rows)
    composition = Composition(parser=LabelParser(control="control", has_dose=True), components=parts)
    measured = sorted({p for _, p in cells.index.conditions})
    asked = {"New@0.1": 1.0, "New@3.162": 2.5, "New@10": 3.0}
    table = EmbeddingTable.composed(composition, ["control", *measured]).with_composed(list(asked))
    changes = cells.changes(cells.prior(kind), *(("X", label) for label in asked), table=table)
    for change, expected in zip(changes, asked.values(), strict=True):
        assert change[0] == pytest.approx(expected, abs=0.3)


# ---------------------------------------------------------------- combinations

SHARED = gene(*range(20, 30), by=1.0)
SINGLES = {p: gene(i) for i, p in enumerate("ABCDEFGHIJ")}


@pytest.fixture(scope="module")
def one_context():
    """One context with ten single perturbations, all of which share an effect of being perturbed."""
    return Cells({("X", p): change + SHARED for p, change in SINGLES.items()})


@pytest.mark.parametrize("kind", ["transfer", "cells"])
def test_a_pair_starts_from_its_parts_and_counts_what_they_share_once(kind, one_context):
    table = combinations(*SINGLES).with_composed(["A+B"])
    (change,) = one_context.changes(one_context.prior(kind), ("X", "A+B"), table=table)
    np.testing.assert_allclose(change[:2], 1.0, atol=0.2)
    np.testing.assert_allclose(change[20:30], 1.0, atol=0.3)
    added = sum(one_context.mean("X", p) - one_context.controls("X").mean(0) for p in "AB")
    np.testing.assert_allclose(added[20:30], 2.0, atol=0.3)


@pytest.mark.parametrize("kind", ["transfer", "cells"])
def test_the_order_of_the_parts_does_not_matter(kind, one_context):
    table = combinations(*SINGLES).with_composed(["A+B"])
    prior = one_context.prior(kind)
    (first,), (second,) = (one_context.changes(prior, ("X", label), table=table) for label in ("A+B", "B+A"))
    np.testing.assert_array_equal(first, second)


def test_three_parts_add_up_as_two_do(one_context):
    table = combinations(*SINGLES).with_composed(["A+B+C"])
    (change,) = one_context.changes(one_context.prior("cells"), ("X", "A+B+C"), table=table)
    np.testing.assert_allclose(change[:3], 1.0, atol=0.2)
    np.testing.assert_allclose(change[20:30], 1.0, atol=0.6)


def test_what_one_part_switches_on_the_other_part_leaves_on():
    effects = {("X", p): gene(i) for i, p in enumerate("BCDEFGH")}
    cells = Cells({**effects, ("X", "A"): gene(30, by=20.0)})
    table = combinations(*"ABCDEFGH").with_composed(["A+B"])
    (change,) = cells.changes(cells.prior("cells"), ("X", "A+B"), table=table)
    np.testing.assert_allclose(change[30], 20.0, atol=0.3)
    np.testing.assert_allclose(change[0], 1.0, atol=0.2)


def test_a_part_that_nobody_measured_alone_is_left_out(one_context):
    table = combinations(*SINGLES, "Z").with_composed(["A+Z"])
    prior = one_context.prior("transfer")
    (change,) = one_context.changes(prior, ("X", "A+Z"), table=table)
    np.testing.assert_allclose(change[0], 1.0, atol=0.2)
    (origin,) = prior.origins(prior.targets({"X": one_context.controls("X")}), [Condition("X", "A+Z")], table)
    assert origin.made_from == ({("X", "A"): 1.0},)


def test_parts_may_come_from_another_context_spelled_with_the_control():
    effects = {(c, p): change for c in ("X", "Y") for p, change in SINGLES.items() if p not in "AB"}
    cells = Cells({**effects, ("X", "A+control"): SINGLES["A"], ("Y", "B"): SINGLES["B"]}, of_context={"Y": 1.0})
    table = combinations(*SINGLES).with_composed(["A+control", "A+B"])
    (change,) = cells.changes(cells.prior("cells"), ("X", "A+B"), table=table)
    np.testing.assert_allclose(change[:2], 1.0, atol=0.2)


def test_a_pair_seen_in_another_context_starts_from_there():
    effects = {(c, p): change for c in ("X", "Y") for p, change in SINGLES.items()}
    cells = Cells({**effects, ("X", "A+B"): gene(15)})
    table = combinations(*SINGLES).with_composed(["A+B"])
    (change,) = cells.changes(cells.prior("cells"), ("Y", "A+B"), table=table)
    assert change[15] > 0.85
    assert abs(change[:2]).max() < 0.2


def test_the_cells_of_a_pair_never_enter_its_own_prior_either(one_context):
    cells = Cells({**{("X", p): change + SHARED for p, change in SINGLES.items()}, ("X", "A+B"): gene(15, by=50)})
    table = combinations(*SINGLES).with_composed(["A+B"])
    (change,) = cells.changes(cells.prior("cells"), ("X", "A+B"), table=table)
    assert abs(change[15]) < 0.2
    np.testing.assert_allclose(change[:2], 1.0, atol=0.2)
