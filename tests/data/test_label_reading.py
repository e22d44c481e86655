"""Labels of combinations and doses: what they say, and which are refused."""

from __future__ import annotations

import pytest

from scvi_tahoe.data import LabelReading, Part, dose_label

PAIRS = LabelReading(control="ctrl", combination_separator="+")
DOSES = LabelReading(control="DMSO", has_dose=True)
BOTH = LabelReading(control="DMSO", combination_separator="+", has_dose=True)


@pytest.mark.parametrize(
    ("reading", "label", "parts"),
    [
        (PAIRS, "A+B", (Part("A"), Part("B"))),
        (PAIRS, "B+A", (Part("A"), Part("B"))),
        (PAIRS, "A+ctrl", (Part("A"),)),
        (PAIRS, "ctrl+A", (Part("A"),)),
        (PAIRS, "ctrl", (Part("ctrl"),)),
        (PAIRS, "ctrl+ctrl", (Part("ctrl"),)),
        (DOSES, "A@10", (Part("A", 10.0),)),
        (DOSES, "a@b@1e-3", (Part("a@b", 0.001),)),
        (DOSES, "A+B@2", (Part("A+B", 2.0),)),
        (DOSES, "DMSO", (Part("DMSO"),)),
        (BOTH, "B@1+A@10", (Part("A", 10.0), Part("B", 1.0))),
        (BOTH, "B@1+DMSO", (Part("B", 1.0),)),
        (BOTH, "B@1+DMSO@5", (Part("B", 1.0),)),
        (DOSES, "DMSO@0", (Part("DMSO"),)),
        (LabelReading(control="ctrl"), "A+B@2", (Part("A+B@2"),)),
    ],
)
def test_a_label_is_read_into_sorted_parts_without_the_control(reading, label, parts):
    assert reading.parts(label) == parts


@pytest.mark.parametrize(("label", "spelling"), [("B@1.0+A@10", "A@10+B@1"), ("DMSO+A@2", "A@2"), ("DMSO", "DMSO")])
def test_labels_that_mean_the_same_have_one_spelling(label, spelling):
    assert BOTH.spelling(label) == spelling


def test_a_label_without_its_doses_is_its_perturbations():
    assert DOSES.without_doses("a@b@10") == "a@b"
    assert BOTH.without_doses("B@1+DMSO+A@10") == "A+B"
    assert PAIRS.without_doses("B+A@2") == "A@2+B"
    assert LabelReading(control="ctrl").without_doses("A+B") == "A+B"


@pytest.mark.parametrize("dose", [0, -1, float("nan"), float("inf"), "high", None])
def test_a_dose_that_is_no_positive_number_is_refused(dose):
    with pytest.raises(ValueError, match=r"dose .* of 'A' is not a positive number; a dose is above 0 and finite"):
        dose_label("A", dose)
    with pytest.raises(ValueError, match="of 'A' is not a positive number"):
        DOSES.parts(f"A@{dose}")


def test_a_label_without_its_dose_or_with_an_empty_part_is_refused():
    with pytest.raises(ValueError, match=r"'A' needs a dose for 'A', e.g. 'A@10': the model was trained with doses"):
        DOSES.parts("A")
    with pytest.raises(ValueError, match=r"'A\+' has an empty part between '\+'"):
        PAIRS.parts("A+")


def test_a_dose_label_is_what_the_reading_reads():
    assert dose_label("Trametinib", 10) == "Trametinib@10"
    assert DOSES.parts(dose_label("Trametinib", 0.05)) == (Part("Trametinib", 0.05),)


@pytest.mark.parametrize(
    ("reading", "label", "control"),
    [
        (PAIRS, "ctrl", True), (PAIRS, "ctrl+ctrl", True), (PAIRS, "ctrl+A", False), (DOSES, "DMSO@10", True),
        (DOSES, "A@10", False), (LabelReading(control="ctrl"), "ctrl", True),
        (LabelReading(control="ctrl"), "ctrl+ctrl", False),
    ],
)  # fmt: skip
def test_the_control_is_known_by_any_label_that_means_it(reading, label, control):
    assert reading.is_control(label) == control


@pytest.mark.parametrize(
    ("reading", "label", "part"),
    [(PAIRS, "A+B", None), (PAIRS, "B+A+B", "B"), (PAIRS, "ctrl+ctrl+A", None), (BOTH, "A@1+A@10", "A")],
)
def test_a_part_that_comes_twice_is_named(reading, label, part):
    assert reading.repeated(label) == part
