"""Combinations, doses and tables of perturbations, from registration to prediction."""

from __future__ import annotations

import logging
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from mudata import MuData

from scvi_tahoe import EvaluationReference, HeldOutPerturbations, TahoeST, evaluate

NAMES = [f"perturbation_{i}" for i in range(1, 7)]
SHORT = dict(zip(NAMES, ["A", "B", "C", "D", "A+B", "C+B"], strict=True))
PAIRS = {"combination_separator": "+"}
TABLE = pd.DataFrame(np.random.default_rng(0).normal(size=(5, 4)), index=list("ABCDE")).astype(np.float32)


@pytest.fixture
def pairs(screen):
    """The simulated screen with four single perturbations, two pairs, and a table that knows one label more."""
    screen.obs["perturbation"] = screen.obs["perturbation"].astype(str).replace(SHORT)
    screen.uns["table"] = TABLE
    return screen


DOSES = {"perturbation_key": "drug", "control": "DMSO", "dose_key": "dose"}


def predict(model, *labels, data=None, **options):
    labels = list(labels) or None
    return model.predict(data, **{"perturbations": labels, "n_cells": 3, "progress": False, **options})


def same(first, second):
    return np.array_equal(first.X, second.X)


# ---------------------------------------------------------------- combinations


@pytest.mark.parametrize("combination", ["sum", "learned"])
@pytest.mark.parametrize("table", [None, "table"])
def test_an_unmeasured_pair_is_predicted_from_its_parts(combination, table, pairs, make_model, train, tmp_path):
    setup = {**PAIRS, "combination": combination, "perturbation_embedding_key": table}
    model = train(make_model(pairs, setup=setup))
    unseen = predict(model, "A+D")
    assert set(unseen.obs["perturbation"]) == {"A+D"}
    for other in ("D+A", "control+D+A"):
        assert same(predict(model, other), unseen)
    assert not same(predict(model, "A"), unseen)
    assert same(predict(model, "B+A"), predict(model, "A+B"))  # measured, and written the other way round

    model.save(tmp_path / "model")
    assert same(predict(TahoeST.load(tmp_path / "model", pairs), "D+A"), unseen)
    controls = pairs[pairs.obs["perturbation"] == "control"].copy()
    alone = TahoeST.load(tmp_path / "model", adata=False)
    assert same(predict(alone, "A+D", data=controls), unseen)
    model.export(tmp_path / "export")
    exported = TahoeST.from_pretrained(tmp_path / "export")
    assert same(predict(exported, "A+D", data=pairs), unseen)
    assert set(exported.perturbation_table.names) == set(model.perturbation_table.names)


def test_one_context_starts_from_the_response_model_if_others_say_anything(pairs, make_model):
    one = pairs[(pairs.obs["context"] == "context_1").to_numpy()]
    assert make_model(one.copy(), setup=PAIRS, prior="auto").prior == "response"
    assert (
        make_model(one.copy(), setup={**PAIRS, "perturbation_embedding_key": "table"}, prior="auto").prior == "response"
    )
    # without a separator "A+B" is a name like any other, and one-hot rows say nothing
    assert make_model(one.copy(), setup={"perturbation_embedding_key": None}, prior="auto").prior == "none"


def test_the_prior_of_a_pair_is_predicted_untrained_and_in_any_order(pairs, make_model):
    one = pairs[(pairs.obs["context"] == "context_1").to_numpy()].copy()
    model = make_model(one, setup=PAIRS, prior="cells")
    first, second, single = (predict(model, label, output="prior") for label in ("A+D", "D+A", "A"))
    assert same(first, second)
    assert not same(first, single)


@pytest.mark.parametrize("prior", ["mean", "transfer", "cells", "response"])
@pytest.mark.parametrize(("without", "corrected"), [([], True), (["A+B"], True), (["A", "A+B"], False)])
def test_a_pair_is_corrected_after_training_on_pairs(prior, without, corrected, pairs, make_model, train, caplog):
    """C+B has both parts; where C is taken away, too, no pair has."""
    gone = [*without, *([] if corrected else ["C"])]
    one = pairs[((pairs.obs["context"] == "context_1") & ~pairs.obs["perturbation"].isin(gone)).to_numpy()].copy()
    model = make_model(one, setup=PAIRS, prior=prior)
    with torch.no_grad():  # as if it had learned something
        model.module.network.head.project.layers[-1].bias.fill_(0.5)
    train(model, shrink_correction=False)
    asked, left = "B+D", not corrected and prior != "mean"  # which starts from no parts
    with caplog.at_level(logging.INFO, logger="scvi_tahoe"):
        as_prior = predict(model, asked, output="prior")
        assert "are predicted as the prior" not in caplog.text
        predicted = predict(model, asked)
    assert same(predicted, as_prior) == left
    assert ("B+D) are predicted as the prior has them, from its parts" in caplog.text) == left
    assert predicted.uns["scvi_tahoe_prediction"].get("predicted_as_prior", []) == ([asked] if left else [])
    assert not same(predict(model, "B"), predict(model, "B", output="prior"))
    both = predict(model, "B", asked)
    np.testing.assert_allclose(both[both.obs["perturbation"] == asked].X, predicted.X, rtol=1e-5, atol=1e-6)


def test_a_pair_that_trained_is_corrected_however_few_have_measured_parts(pairs, make_model, train):
    """A+B has both parts; A+E and C+E have one."""
    names = {"C+B": "C+E", "D": "A+E"}
    pairs.obs["perturbation"] = pairs.obs["perturbation"].replace(names)
    one = pairs[(pairs.obs["context"] == "context_1").to_numpy()].copy()
    model = make_model(one, setup=PAIRS, prior="cells")
    with torch.no_grad():
        model.module.network.head.project.layers[-1].bias.fill_(0.5)
    train(model)
    assert not same(predict(model, "A+B"), predict(model, "A+B", output="prior"))
    assert same(predict(model, "B+C"), predict(model, "B+C", output="prior"))


def test_the_rate_is_low_only_where_a_prior_leaves_little_to_learn(pairs, make_model):
    one = pairs[(pairs.obs["context"] == "context_1").to_numpy()]
    without_parts = one[~one.obs["perturbation"].isin(["A", "C"]).to_numpy()].copy()
    assert make_model(without_parts, setup=PAIRS, prior="cells").plan_training().plan.lr == 1e-3
    assert make_model(one.copy(), setup=PAIRS, prior="none").plan_training().plan.lr == 1e-3
    for adata in (one.copy(), pairs):  # both pairs have measured parts
        assert make_model(adata, setup=PAIRS, prior="cells").plan_training().plan.lr == 1e-4


@pytest.mark.parametrize("prior", ["mean", "transfer", "cells", "response"])
def test_a_prior_serves_pairs_that_nobody_measured_in_any_order(prior, pairs, make_model, train):
    model = train(make_model(pairs, setup=PAIRS, prior=prior))
    assert same(predict(model, "A+D"), predict(model, "D+A"))
    assert same(predict(model, "A+B"), predict(model, "B+A"))


def test_all_that_was_measured_is_predicted_unless_said_otherwise(pairs, make_model, train):
    predicted = predict(train(make_model(pairs, setup=PAIRS)))
    assert set(predicted.obs["perturbation"]) == set(SHORT.values())


def test_pairs_can_be_held_out_and_evaluated(pairs, make_model, train):
    pair = pairs.obs["perturbation"] == "A+B"
    model = make_model(pairs[~pair].copy(), setup=PAIRS)
    train(model, split=HeldOutPerturbations(validation=["C+B"]))
    held_out = pairs[pair | (pairs.obs["perturbation"] == "control")].copy()
    held_out.obs["perturbation"] = held_out.obs["perturbation"].replace("A+B", "B+A")
    result = model.evaluate(held_out, preset="quick", progress=False)
    assert set(result.per_perturbation.reset_index()["perturbation"]) == {"A+B"}
    held_out.obs["perturbation"] = held_out.obs["perturbation"].replace("B+A", "B+C")  # trained on as C+B
    with pytest.raises(ValueError, match=r"B\+C"):
        model.evaluate(held_out, preset="quick", progress=False)


@pytest.mark.parametrize(
    ("kind", "setup", "label"),
    [
        ("screen", {}, "control"),
        ("pairs", PAIRS, "control"),
        ("pairs", PAIRS, "control+control"),
        ("doses", DOSES, "DMSO"),
        ("doses", DOSES, "DMSO@10"),
    ],
)
def test_the_control_is_no_perturbation_to_predict(kind, setup, label, request, make_model, train):
    adata, control = request.getfixturevalue(kind), setup.get("control", "control")
    message = re.escape(f"perturbations names '{label}', which is the control ('{control}'): control cells are what")
    for prior in ("none", "cells"):
        model = make_model(adata.copy(), setup=setup, prior=prior)
        with pytest.raises(ValueError, match=message):
            model.prior_report(perturbations=[label])
    with pytest.raises(ValueError, match=message):
        predict(train(model), {"screen": "perturbation_1", "pairs": "A", "doses": "P@1"}[kind], label)


def test_controls_of_observed_cells_may_be_written_as_a_combination(pairs, make_model, train):
    pair = (pairs.obs["perturbation"] == "A+B").to_numpy()
    control = (pairs.obs["perturbation"] == "control").to_numpy()
    model = train(make_model(pairs[~pair].copy(), setup=PAIRS))
    held_out = pairs[pair | control].copy()
    held_out.obs.iloc[np.flatnonzero(held_out.obs["perturbation"] == "control")[::3], 0] = "control+control"
    result = model.evaluate(held_out, preset="quick", progress=False)
    assert set(result.per_perturbation.reset_index()["perturbation"]) == {"A+B"}


@pytest.mark.parametrize("combination", ["sum", "learned"])
def test_a_part_named_twice_is_predicted_only_where_it_was_measured(combination, pairs, make_model, train):
    setup = {**PAIRS, "combination": combination}
    model = train(make_model(pairs, setup=setup))
    for label in ("A+A", "B+A+B"):
        with pytest.raises(ValueError, match=rf"'{re.escape(label)}' names '\w' twice, and was not measured"):
            predict(model, "A", label)
    with pytest.raises(ValueError, match="'A' twice, and was not measured"):
        model.prior_report(perturbations=["A+A"])
    pairs = pairs.copy()
    pairs.obs["perturbation"] = pairs.obs["perturbation"].replace({"C+B": "A+A"})
    assert not same(predict(model, "A+A", data=pairs), predict(model, "A", data=pairs))
    two_guides = train(make_model(pairs, setup=setup))
    assert "A+A" in set(predict(two_guides).obs["perturbation"])


def test_a_loaded_model_trains_on_pairs_of_known_parts(pairs, make_model, train, tmp_path):
    train(make_model(pairs, setup=PAIRS)).save(tmp_path / "model")
    pairs.obs["perturbation"] = pairs.obs["perturbation"].replace({"C+B": "D+A"})
    train(TahoeST.load(tmp_path / "model", pairs))
    pairs.obs["perturbation"] = pairs.obs["perturbation"].replace({"D+A": "D+X"})
    with pytest.raises(ValueError, match=r"no embedding row for these perturbations of the data: \['D\+X'\]"):
        train(TahoeST.load(tmp_path / "model", pairs))


def test_a_table_covers_pairs_with_labels_that_the_screen_lacks(pairs, make_model, train):
    model = train(make_model(pairs, setup={**PAIRS, "perturbation_embedding_key": "table"}))
    predict(model, "E", "E+A")
    row = model.perturbation_table.with_composed(["E+A"]).matrix[-1]
    np.testing.assert_allclose(row, [*(TABLE.loc["E"] + TABLE.loc["A"]), 1], rtol=1e-6)
    with pytest.raises(ValueError, match=r"knows no perturbation 'F': add their rows to the perturbation-embedding"):
        predict(model, "F+A")
    pairs.uns["table"] = pd.concat([TABLE, TABLE.loc[["A"]].rename({"A": "F"}) + 1])
    predict(model, "F+A", data=pairs)


def test_a_mudata_takes_combinations_too(pairs, train):
    measured = pairs[pairs.obs["perturbation"] != "A+B"]
    mdata = MuData({"rna": ad.AnnData(measured.X, obs=measured.obs[[]], var=measured.var)})
    for column in ("perturbation", "context"):
        mdata.obs[column] = measured.obs[column].reindex(mdata.obs_names)
    TahoeST.setup_mudata(
        mdata, "perturbation", "control", context_key="context", modalities={"expression": "rna"}, **PAIRS
    )
    model = train(TahoeST(mdata, size={"hidden": 16, "n_layers": 1, "intermediate": 32, "n_heads": 2}, set_size=8))
    assert same(predict(model, "A+D"), predict(model, "D+A"))
    held_out = pairs[pairs.obs["perturbation"].isin(["A+B", "control"])].copy()
    result = model.evaluate(held_out, preset="quick", progress=False)
    assert set(result.per_perturbation.reset_index()["perturbation"]) == {"A+B"}


REFUSED = {
    "an unknown combination": ({**PAIRS, "combination": "product"}, "combination='product' is unknown; allowed are"),
    "learned without a separator": ({"combination": "learned"}, "combination='learned' needs combination_separator"),
    "an empty separator": ({"combination_separator": " "}, "combination_separator=' ' must be text that is not part"),
    "a separator in the control": ({"combination_separator": "o"}, "not part of control='control'"),
    "the mark of doses as separator": ({"combination_separator": "@"}, "is not '@'"),
    "no tables in a list": ({"perturbation_embedding_key": []}, r"perturbation_embedding_key=\[\] must name each"),
    "a table twice": ({"perturbation_embedding_key": ["table"] * 2}, "must name each table once"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_contradict_each_other_are_refused(case, pairs, register):
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        register(pairs, **options)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("B+A", r"has 'A\+B' and 'B\+A', which mean the same; write both as 'A\+B'"),
        ("A+control", r"has 'A' and 'A\+control', which mean the same"),
        ("A+", r"'A\+' has an empty part"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(label, message, pairs, register):
    pairs.obs["perturbation"] = pairs.obs["perturbation"].replace("D", label)
    with pytest.raises(ValueError, match=message):
        register(pairs, **PAIRS)


def test_a_pair_with_an_uncovered_part_is_refused(pairs, register, make_model, train):
    pairs.uns["table"] = TABLE.drop(index="C")
    with pytest.raises(ValueError, match=r"uns\['table'\] has no row for 1 of 5 perturbations: \['C'\]"):
        register(pairs, **PAIRS, perturbation_embedding_key="table")
    model = train(make_model(pairs, setup=PAIRS))
    with pytest.raises(
        ValueError, match=r"knows no perturbation 'contrl' \(did you mean 'control'\?\): it was trained w"
    ):
        predict(model, "A+contrl")
    with pytest.raises(ValueError, match="some of .* mean the same"):
        predict(model, "A+D", "D+A")


# ---------------------------------------------------------------- doses


def test_a_dose_that_nobody_measured_is_predicted(doses, make_model, train, tmp_path):
    model = train(make_model(doses, setup=DOSES))
    assert set(model.perturbation_table.names) == {"DMSO", *(f"{d}@{n}" for d in "PQ" for n in (1, 10, 100))}
    between = predict(model, "P@3", "P@1000")
    assert list(between.obs.columns[:2]) == ["drug", "dose"]
    assert set(between.obs["drug"]) == {"P"}
    assert between.obs["dose"].dtype == float
    assert set(between.obs["dose"]) == {3.0, 1000.0}
    assert same(predict(model, "P@3.0"), predict(model, "P@3"))
    assert not same(predict(model, "P@1"), predict(model, "P@10"))
    model.save(tmp_path / "model")
    assert same(predict(TahoeST.load(tmp_path / "model", doses), "P@3", "P@1000"), between)
    model.export(tmp_path / "export")
    controls = doses[doses.obs["drug"] == "DMSO"].copy()
    del controls.obs["dose"]  # nobody gives controls a dose
    assert same(predict(TahoeST.from_pretrained(tmp_path / "export"), "P@3", "P@1000", data=controls), between)


def test_the_row_of_a_dose_is_the_drug_and_the_logarithm(doses, make_model):
    model = make_model(doses, setup=DOSES)
    table = model.perturbation_table.with_composed(["Q@0.1"])
    rows = {n: table.matrix[table.row(n)].tolist() for n in ("DMSO", "P@10", "Q@100", "Q@0.1")}
    assert rows == {"DMSO": [1, 0, 0, 0], "P@10": [0, 1, 0, 1], "Q@100": [0, 0, 1, 2], "Q@0.1": [0, 0, 1, -1]}


def test_an_unmeasured_drug_is_predicted_if_a_table_covers_it(doses, make_model, train):
    doses.uns["structure"] = {"P": [1, 0, 1], "Q": [0, 1, 1], "R": [1, 1, 0]}
    model = train(make_model(doses, setup={**DOSES, "perturbation_embedding_key": "structure"}))
    assert set(predict(model, "R@10").obs["drug"]) == {"R"}
    with pytest.raises(ValueError, match="knows no perturbation 'S'"):
        predict(model, "S@10")


def test_drugs_are_evaluated_at_each_dose(doses, make_model, train):
    high = (doses.obs["drug"] == "Q") & (doses.obs["dose"] == 100)
    model = train(make_model(doses[~high].copy(), setup=DOSES))
    held_out = doses[high | (doses.obs["drug"] == "DMSO") | (doses.obs["drug"] == "P")].copy()
    result = model.evaluate(held_out, preset="quick", baseline=None, allow_train=True, progress=False)
    assert set(result.per_perturbation.reset_index()["perturbation"]) == {"P@1", "P@10", "P@100", "Q@100"}


def test_a_ready_reference_that_merged_doses_is_refused(doses, make_model, train):
    model, keys = train(make_model(doses, setup=DOSES)), {"control": "DMSO", "context_key": "context"}
    options = {"preset": "quick", "baseline": None, "allow_train": True, "progress": False}
    with pytest.raises(ValueError, match=r"labels without doses \('P'\).*with their column 'dose'"):
        model.evaluate(EvaluationReference.from_adata(doses, perturbation_key="drug", **keys), **options)
    doses.obs["label"] = (doses.obs["drug"] + "@" + doses.obs["dose"].map("{:g}".format)).replace("DMSO@nan", "DMSO")
    reference = EvaluationReference.from_adata(doses, perturbation_key="label", **keys)
    predicted = predict(model)
    predicted.obs["label"] = predicted.obs["drug"].astype(str) + "@" + predicted.obs["dose"].map("{:g}".format)
    by_hand = evaluate(predicted, reference, preset="quick", baseline=None, allow_train=True).per_perturbation
    assert by_hand.equals(model.evaluate(doses, predicted, **options).per_perturbation)


def test_each_part_of_a_combination_has_its_dose(doses, make_model, train):
    doses.obs["drug"] = doses.obs["drug"].replace({"Q": "Q+P"})
    text = doses.obs["dose"].map("{:g}".format)
    doses.obs["dose"] = np.where(doses.obs["drug"] == "Q+P", text + "+5", text)
    model = train(make_model(doses, setup={**DOSES, **PAIRS}))
    predicted = predict(model, "Q@2+P@5", "P@7")
    assert set(zip(predicted.obs["drug"], predicted.obs["dose"], strict=True)) == {("Q+P", "2+5"), ("P", "7")}
    assert same(predict(model, "P@5+Q@2"), predict(model, "Q@2+P@5"))


@pytest.mark.parametrize("dose", [0.0, -1.0, np.nan, np.inf])
def test_a_perturbed_cell_without_a_positive_dose_is_refused(dose, doses, register):
    doses.obs.loc[doses.obs_names[doses.obs["drug"] == "P"][:2], "dose"] = dose
    with pytest.raises(ValueError, match=r"obs\['dose'\] \(dose_key\): the dose .* of 'P' is not a positive number"):
        register(doses, **DOSES)


def test_a_question_without_a_usable_dose_is_refused(doses, make_model, train):
    model = train(make_model(doses, setup=DOSES))
    for label, message in (
        ("P", "'P' needs a dose for 'P', e.g. 'P@10'"),
        ("P@-1", "the dose '-1' of 'P' is not a positive number"),
        ("P@nan", "the dose 'nan' of 'P' is not a positive number"),
        ("p@10", "knows no perturbation 'p'"),
    ):
        with pytest.raises(ValueError, match=message):
            predict(model, label)


def test_a_missing_dose_column_and_a_missing_dose_of_a_part_are_refused(doses, register):
    with pytest.raises(KeyError, match=r"dose_key='doze' is not a column of obs \(did you mean 'dose'\?\)"):
        register(doses, **{**DOSES, "dose_key": "doze"})
    doses.obs["drug"] = doses.obs["drug"].replace({"Q": "Q+P"})
    with pytest.raises(ValueError, match=r"has .* for 'Q\+P'; 2 doses are needed, e.g. '1\+1'"):
        register(doses, **DOSES, **PAIRS)


# ---------------------------------------------------------------- several tables


STRING = pd.DataFrame(np.random.default_rng(1).normal(size=(3, 2)), index=["A", "B", "E"]).astype(np.float32)
FUSED = {"perturbation_embedding_key": ["table", "string"], **PAIRS}


def test_tables_are_fused_and_later_rows_change_no_earlier_ones(pairs, make_model, train, tmp_path):
    pairs.uns["string"] = STRING
    model = train(make_model(pairs, setup=FUSED))
    parts = model.perturbation_table.components
    assert parts.width == 4 + 1 + 2 + 1
    assert parts.matrix[parts.row("C"), -3:].tolist() == [0, 0, 1]  # not in the second table
    before = predict(model, "C+A")
    pairs.uns["string"] = pd.concat([STRING, STRING.loc[["A"]].rename({"A": "F"}) + 5])
    assert same(predict(model, "C+A", data=pairs), before)
    predict(model, "F+A", data=pairs)
    model.save(tmp_path / "model")
    loaded = TahoeST.load(tmp_path / "model", pairs)
    assert same(predict(loaded, "C+A"), before)
    new = predict(loaded, "F+A")
    model.export(tmp_path / "export")
    exported = TahoeST.from_pretrained(tmp_path / "export")
    assert same(predict(exported, "C+A", data=pairs), before)
    assert same(predict(exported, "F+A", data=pairs[pairs.obs["perturbation"] == "control"].copy()), new)


def test_labels_that_no_table_has_and_tables_that_are_missing_are_refused(pairs, register):
    pairs.uns["string"] = STRING
    pairs.uns["table"] = TABLE.loc[["A", "B"]]
    with pytest.raises(ValueError, match=r"uns\['table'\] and uns\['string'\] has no row .*\['C', 'D'\]"):
        register(pairs, **FUSED)
    del pairs.uns["string"]
    with pytest.raises(KeyError, match="perturbation_embedding_key='string' is not in uns"):
        register(pairs, **FUSED)


# ---------------------------------------------------------------- new labels on known weights


def warm_start(model, folder, adata, setup, register, format="scvi-tahoe"):
    model.export(folder, format=format)
    return TahoeST.from_pretrained(folder, register(adata, **setup), check_scale=False)


@pytest.mark.parametrize("format", ["scvi-tahoe", "arc"])
def test_new_one_hot_labels_leave_the_old_untouched(format, screen, make_model, train, register, tmp_path):
    few = screen[screen.obs["perturbation"].isin(["control", *NAMES[:3]])].copy()
    model = train(make_model(few, network={"head": "hidden_residual"}))
    before = predict(model, *NAMES[:3], data=screen)
    extended = warm_start(model, tmp_path / "folder", screen, {}, register, format)
    assert set(extended.perturbation_table.names) == {"control", *NAMES}
    old, new = (m.module.network.perturbation_encoder.layers[0].weight for m in (model, extended))
    for name in ("control", *NAMES[:3]):
        place = [m.perturbation_table.row(name) for m in (model, extended)]
        np.testing.assert_array_equal(old[:, place[0]].detach(), new[:, place[1]].detach())
    np.testing.assert_allclose(predict(extended, *NAMES[:3]).X, before.X, atol=1e-5)
    predict(extended, NAMES[5])


@pytest.mark.parametrize("combination", ["sum", "learned"])
def test_known_pairs_keep_their_prediction_beside_new_parts(combination, pairs, make_model, train, register, tmp_path):
    setup = {**PAIRS, "combination": combination}
    few = pairs[pairs.obs["perturbation"].isin(["control", "B", "C", "C+B"])].copy()
    model = train(make_model(few, setup=setup))
    before = predict(model, "C+B", "B", data=pairs)
    extended = warm_start(model, tmp_path / "folder", pairs, setup, register)
    assert set(extended.perturbation_table.components.names) == {"control", "A", "B", "C", "D"}
    np.testing.assert_allclose(predict(extended, "C+B", "B").X, before.X, atol=1e-5)
    predict(train(extended), "D+A")


def test_one_hot_weights_of_single_labels_start_a_model_of_pairs(pairs, make_model, train, register, tmp_path):
    few = pairs[pairs.obs["perturbation"].isin(["control", "A", "B"])].copy()
    model = train(make_model(few))
    before = predict(model, "A", "B", data=pairs)
    extended = warm_start(model, tmp_path / "folder", pairs, PAIRS, register)
    np.testing.assert_allclose(predict(extended, "A", "B").X, before.X, atol=1e-5)


def test_a_learned_combination_has_no_place_in_a_folder_of_arc(pairs, make_model, train, tmp_path):
    options = {"network": {"head": "hidden_residual"}}
    model = train(make_model(pairs, setup={**PAIRS, "combination": "learned"}, **options))
    with pytest.raises(ValueError, match="arc-state cannot run this model: it encodes a perturbation as one vector"):
        model.export(tmp_path / "folder", format="arc")
    model = train(make_model(pairs.copy(), setup=PAIRS, **options))
    model.export(tmp_path / "folder", format="arc")
    copy = TahoeST.from_pretrained(tmp_path / "folder")
    rows = [m.perturbation_table.matrix[m.perturbation_table.row("A+B")] for m in (model, copy)]
    np.testing.assert_array_equal(*rows)
