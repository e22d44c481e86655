"""Labels of combinations and doses: what they say, and which are refused."""

from __future__ import annotations

import pytest

from scvi_tahoe.data import Component, LabelParser, dose_label

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


@pytest.mark.parametrize("dose", [0, -1, float("nan"), float("inf"), "high", None])
def test_a_dose_that_is_no_positive_number_is_refused(dose):
    with pytest.raises(ValueError, match=r"dose .* of 'A' is not a positive number; a dose is above 0 and finite"):
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


def test_a_dose_is_written_as_short_as_it_goes():
    assert dose_label("Trametinib", 10) == "Trametinib@10"


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
