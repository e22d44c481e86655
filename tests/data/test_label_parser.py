"""Labels of combinations and doses: what they say, and which are refused."""

from __future__ import annotations

import pytest

from scvi_tahoe.data import Component, LabelParser, dose_label

PAIRS = LabelParser(control="ctrl", combination_separator="+")
DOSES = LabelParser(control="DMSO", has_dose=True)
BOTH = LabelParser(control="DMSO", combination_separator="+", has_dose=True)


@pytest.mark.parametrize(
    ("parser", "label", "components"),
    [
        (PAIRS, "A+B", (Component("A"), Component("B"))),
        (PAIRS, "B+A", (Component("A"), Component("B"))),
        (PAIRS, "A+ctrl", (Component("A"),)),
        (PAIRS, "ctrl+A", (Component("A"),)),
        (PAIRS, "ctrl", (Component("ctrl"),)),
        (PAIRS, "ctrl+ctrl", (Component("ctrl"),)),
        (DOSES, "A@10", (Component("A", 10.0),)),
        (DOSES, "a@b@1e-3", (Component("a@b", 0.001),)),
        (DOSES, "A+B@2", (Component("A+B", 2.0),)),
        (DOSES, "DMSO", (Component("DMSO"),)),
        (BOTH, "B@1+A@10", (Component("A", 10.0), Component("B", 1.0))),
        (BOTH, "B@1+DMSO", (Component("B", 1.0),)),
        (BOTH, "B@1+DMSO@5", (Component("B", 1.0),)),
        (DOSES, "DMSO@0", (Component("DMSO"),)),
        (LabelParser(control="ctrl"), "A+B@2", (Component("A+B@2"),)),
    ],
)
def test_a_label_is_read_into_sorted_parts_without_the_control(parser, label, components):
    assert parser.components(label) == components


@pytest.mark.parametrize(("label", "spelling"), [("B@1.0+A@10", "A@10+B@1"), ("DMSO+A@2", "A@2"), ("DMSO", "DMSO")])
def test_labels_that_mean_the_same_have_one_spelling(label, spelling):
    assert BOTH.spelling(label) == spelling


def test_a_label_without_its_doses_is_its_perturbations():
    assert DOSES.without_doses("a@b@10") == "a@b"
    assert BOTH.without_doses("B@1+DMSO+A@10") == "A+B"
    assert PAIRS.without_doses("B+A@2") == "A@2+B"
    assert LabelParser(control="ctrl").without_doses("A+B") == "A+B"


@pytest.mark.parametrize("dose", [0, -1, float("nan"), float("inf"), "high", None])
def test_a_dose_that_is_no_positive_number_is_refused(dose):
    with pytest.raises(ValueError, match=r"dose .* of 'A' is not a positive number; a dose is above 0 and finite"):
        dose_label("A", dose)
    with pytest.raises(ValueError, match="of 'A' is not a positive number"):
        DOSES.components(f"A@{dose}")


def test_a_label_without_its_dose_or_with_an_empty_part_is_refused():
    with pytest.raises(ValueError, match=r"'A' needs a dose for 'A', e.g. 'A@10': the model was trained with doses"):
        DOSES.components("A")
    with pytest.raises(ValueError, match=r"'A\+' has an empty part between '\+'"):
        PAIRS.components("A+")


def test_a_dose_label_is_what_the_reading_reads():
    assert dose_label("Trametinib", 10) == "Trametinib@10"
    assert DOSES.components(dose_label("Trametinib", 0.05)) == (Component("Trametinib", 0.05),)


@pytest.mark.parametrize(
    ("parser", "label", "control"),
    [
        (PAIRS, "ctrl", True), (PAIRS, "ctrl+ctrl", True), (PAIRS, "ctrl+A", False), (DOSES, "DMSO@10", True),
        (DOSES, "A@10", False), (LabelParser(control="ctrl"), "ctrl", True),
        (LabelParser(control="ctrl"), "ctrl+ctrl", False),
    ],
)  # fmt: skip
def test_the_control_is_known_by_any_label_that_means_it(parser, label, control):
    assert parser.is_control(label) == control


@pytest.mark.parametrize(
    ("parser", "label", "part"),
    [(PAIRS, "A+B", None), (PAIRS, "B+A+B", "B"), (PAIRS, "ctrl+ctrl+A", None), (BOTH, "A@1+A@10", "A")],
)
def test_a_part_that_comes_twice_is_named(parser, label, part):
    assert parser.repeated(label) == part
