"""Splits: which cells train and which are held out."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_tahoe import FewShotContext, FractionSplit, HeldOutConditions, HeldOutContexts, HeldOutPerturbations
from scvi_tahoe.data import read_screen, split_from_dict
from scvi_tahoe.datasets import simulate_screen


def conditions(assigned, part):
    return {assigned.index.conditions[c] for c in np.unique(assigned.index.condition_of_cell[assigned.rows(part)])}


def assign(split, index, seed=0):
    """Every perturbed cell is in one part."""
    assigned = split.assign(index, seed=seed)
    rows = np.concatenate([assigned.train, assigned.validation, assigned.test])
    np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(~index.is_control))
    return assigned


def test_a_fraction_of_every_condition_is_held_out_by_the_seed(index):
    assigned = assign(FractionSplit(validation=0.25, test=0.125), index, seed=3)
    for part, n in (("train", 15), ("validation", 6), ("test", 3)):
        assert np.bincount(index.condition_of_cell[assigned.rows(part)]).tolist() == [n] * 12
    first, second, third = (FractionSplit().assign(index, seed=s).validation for s in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, third)


def test_a_condition_too_small_to_share_trains_whole(screen, keys):
    labels = screen.obs["perturbation"].astype(str).to_numpy()
    single = np.flatnonzero((labels == "perturbation_1") & (screen.obs["context"] == "context_1"))[1:]
    index = read_screen(screen[np.delete(np.arange(screen.n_obs), single)], keys).index
    assigned = FractionSplit(validation=0.5, test=0.4).assign(index)
    assert index.rows(("context_1", "perturbation_1"))[0] in assigned.train


def test_held_out_perturbations_are_unseen_everywhere(index):
    assigned = assign(HeldOutPerturbations(validation=["perturbation_1"], test=["perturbation_2"]), index)
    assert conditions(assigned, "test") == {("context_1", "perturbation_2"), ("context_2", "perturbation_2")}
    assert assigned.audit().unseen_perturbations == ("perturbation_1", "perturbation_2")
    assert assigned.audit().leaks == ()


def test_held_out_contexts_keep_their_controls_out_of_every_part(index):
    assigned = assign(HeldOutContexts(test=["context_2"]), index)
    assert {c.context for c in conditions(assigned, "train")} == {"context_1"}
    assert len(index.controls("context_2")) == 40


def test_a_few_shot_context_trains_on_its_other_perturbations(index):
    split = FewShotContext(context="context_2", validation=["perturbation_1"], test=["perturbation_2"])
    assigned = assign(split, index)
    assert conditions(assigned, "validation") == {("context_2", "perturbation_1")}
    assert ("context_1", "perturbation_1") in conditions(assigned, "train")
    assert ("context_2", "perturbation_3") in conditions(assigned, "train")


def test_the_audit_names_what_parts_share_and_what_is_empty(index):
    audit = FractionSplit(validation=0.25).assign(index).audit()
    assert audit.leaks == ("12 conditions have cells in train and in validation",)
    assert audit.empty == ("test",)
    assert audit.table.loc["train", "conditions"] == 12
    assert "empty: test" in str(audit)


def test_a_split_survives_as_plain_values():
    named = HeldOutPerturbations(test=[1]), HeldOutContexts(validation=["b"]), FewShotContext(context="d", test=["a"])
    for split in (FractionSplit(validation=0.2, test=0.1), *named):
        assert split_from_dict(split.to_dict()) == split
    assert named[0].test == ("1",)  # labels are text


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FractionSplit(validation=1.0), ValueError, "validation=1.0 and test=0.0 must be fractions from 0"),
        (lambda: FractionSplit(validation=0.6, test=0.5), ValueError, "sum to less than 1"),
        (lambda: HeldOutPerturbations(test="STAT1"), TypeError, "test is a list; got the text 'STAT1', write"),
        (lambda: HeldOutContexts(test=["a"], validation=["a"]), ValueError,
            r"contexts are held out for validation and for test: \['a'\]; choose one"),
        (lambda: split_from_dict({"kind": "random"}), ValueError, r"There is no split 'random'; choose one of"),
        (lambda: split_from_dict({"kind": "fraction", "fold": 1}), ValueError, "split 'fraction': .*'fold'"),
    ],
)  # fmt: skip
def test_impossible_splits_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (HeldOutPerturbations(test=["perturbation_9"]), r"names perturbations .* not have: \['perturbation_9'\] \(did"),
        (HeldOutPerturbations(test=["control"]), "names perturbations that the screen does not have"),
        (HeldOutContexts(test=["K562"]), r"names contexts .* it has 2: \['context_1', 'context_2'\]"),
        (FewShotContext(context="K562"), r"names contexts that the screen does not have: \['K562'\]"),
        (FewShotContext(context="context_1", test=["BRD4"]), r"perturbation in 'context_1' with cells .*\['BRD4'\]"),
        (HeldOutContexts(test=["context_1", "context_2"]), "leaves no cell to train on; hold out less"),
    ],
)
def test_splits_that_do_not_fit_the_screen_are_refused(split, message, index):
    with pytest.raises(ValueError, match=message):
        split.assign(index)


def test_a_screen_of_one_context_has_no_conditions_to_hold_out(keys):
    one = read_screen(simulate_screen(1, 6, n_genes=20, n_cells=4, n_control_cells=4), keys).index
    with pytest.raises(ValueError, match=r"in one context, 'context_1', none can be. .*HeldOutPerturbations\(val") as e:
        HeldOutConditions(validation=0.2).assign(one)
    assert "hold out less" not in str(e.value)
