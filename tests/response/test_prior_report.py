"""What the model says its predictions start from."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scvi_tahoe import TahoeST
from scvi_tahoe.evaluate import PREDICTION_RECORD

ELSEWHERE, OTHERS = "the same perturbation in other contexts", "the mean of other perturbations"
COLUMNS = ["perturbation", "context", "starts_from", "made_from", "n_cells", "kept", "corrected"]
PAIRS = {"combination_separator": "+"}


@pytest.fixture
def pairs(screen):
    """Single perturbations A to D and two pairs, in one context; a third part of one pair was not measured alone."""
    names = dict(zip([f"perturbation_{i}" for i in range(1, 7)], ["A", "B", "C", "D", "A+B", "C+E"], strict=True))
    screen.obs["perturbation"] = screen.obs["perturbation"].astype(str).replace(names)
    return screen[(screen.obs["context"] == "context_1").to_numpy()].copy()


@pytest.mark.parametrize(
    ("prior", "starts_from", "made_from", "n_cells"),
    [
        ("cells", ELSEWHERE, "perturbation_2 in context_1 (1)", 24),
        ("transfer", ELSEWHERE, "perturbation_2 in context_1 (1)", 24),
        ("mean", OTHERS, ", ".join(f"perturbation_{i} in context_2 (0.2)" for i in (1, 3, 4, 5, 6)), 5 * 24),
    ],
)
def test_a_row_says_what_the_prior_is_made_from_also_before_training(
    prior, starts_from, made_from, n_cells, make_model
):
    report = make_model(prior=prior).prior_report(perturbations=["perturbation_2"], contexts=["context_2"])
    assert list(report.columns) == COLUMNS
    (row,) = report.itertuples()
    assert (row.perturbation, row.context) == ("perturbation_2", "context_2")
    assert (row.starts_from, row.made_from, row.n_cells) == (starts_from, made_from, n_cells)
    assert 0 < row.kept <= 1
    assert row.corrected


def test_without_labels_each_predicted_condition_has_a_row(make_model, train):
    model = train(make_model(prior="transfer"))
    report, predicted = model.prior_report(), model.predict(n_cells=1, progress=False)
    columns = ["perturbation", "context"]
    pd.testing.assert_frame_equal(report[columns], predicted.obs[columns].astype(str).reset_index(drop=True))


def test_the_heaviest_conditions_come_first_and_only_five_are_named(screen, make_model):
    more = [screen, *(screen[screen.obs["context"] == "context_1"].copy() for _ in range(7))]
    for i, part in enumerate(more[1:]):
        part.obs["context"] = f"other_{i}"
        part.X = part.X * (1 + 0.1 * i)
    data = ad.concat(more, index_unique="-")
    report = make_model(data, prior="transfer").prior_report(perturbations=["perturbation_1"], contexts=["context_1"])
    (text,) = report["made_from"]
    assert text.startswith("perturbation_1 in other_0 (")
    *named, rest = text.split(", ")
    weights = [float(one.rpartition("(")[2][:-1]) for one in named]
    assert len(named) == 5
    assert weights == sorted(weights, reverse=True)
    assert rest.startswith("3 more (")
    assert report["n_cells"].item() == 8 * 24


def test_a_saved_model_says_the_same_with_and_without_its_data(make_model, train, tmp_path):
    model = train(make_model(prior="cells"))
    expected = model.prior_report()
    model.save(tmp_path / "model")
    pd.testing.assert_frame_equal(TahoeST.load(tmp_path / "model", model.adata).prior_report(), expected)
    controls = model.adata[model.adata.obs["perturbation"] == "control"].copy()
    alone = TahoeST.load(tmp_path / "model", adata=False)
    pd.testing.assert_frame_equal(alone.prior_report(controls), expected)
    with pytest.raises(ValueError, match="has no data of its own; pass the control cells"):
        alone.prior_report()
    model.export(tmp_path / "export")
    exported = TahoeST.from_pretrained(tmp_path / "export")
    pd.testing.assert_frame_equal(exported.prior_report(controls), expected)


def test_an_untrained_model_without_data_has_no_prior_to_report(make_model, tmp_path):
    model = make_model(prior="cells")
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="this model was loaded without data"):
        TahoeST.load(tmp_path / "model", adata=False).prior_report(model.adata)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"perturbations": ["perturbation_7"]}, ValueError, r"no perturbation 'perturbation_7' \(did you mean"),
        ({"perturbations": "perturbation_1"}, TypeError, "perturbations is a list, or 'all'"),
        ({"contexts": ["context_7"]}, ValueError, "context 'context_7' is not in the data"),
    ],
)
def test_labels_are_refused_as_predict_refuses_them(options, error, message, make_model):
    with pytest.raises(error, match=message):
        make_model(prior="cells").prior_report(**options)


@pytest.mark.parametrize("prior", ["mean", "transfer", "cells"])
def test_a_single_condition_has_no_others_to_start_from(prior, screen, make_model, train):
    one = (screen.obs["context"] == "context_1") & screen.obs["perturbation"].isin(["control", "perturbation_1"])
    model = make_model(screen[one.to_numpy()].copy(), prior=prior)
    for use in (model.prior_report, lambda: train(model)):
        with pytest.raises(ValueError, match=f"prior='{prior}' makes each condition from others, and .* have 1; train"):
            use()


def test_without_a_prior_predictions_start_from_control_cells(make_model):
    report = make_model(prior="none").prior_report(contexts=["context_1"])
    assert set(report["starts_from"]) == {"control cells"}
    assert set(report["made_from"]) == {""}
    assert set(report["n_cells"]) == {40}
    assert report["kept"].isna().all()
    assert report["corrected"].all()


def test_pairs_name_their_measured_parts_and_whether_they_are_corrected(pairs, make_model, train):
    without = pairs[pairs.obs["perturbation"] != "A+B"].copy()
    model = train(make_model(without, setup=PAIRS, prior="cells"))
    report = model.prior_report(perturbations=["D+A", "D+E", "A"]).set_index("perturbation")
    assert report["starts_from"].to_list()[:2] == ["its parts", "some of its parts"]
    assert report["made_from"].to_list()[:2] == ["A in context_1 (1); D in context_1 (1)", "D in context_1 (1)"]
    assert report["n_cells"].to_list()[:2] == [48, 24]
    assert report["corrected"].to_list() == [False, True, True]
    record = model.predict(perturbations=list(report.index), n_cells=2, progress=False).uns[PREDICTION_RECORD]
    assert record["predicted_as_prior"] == ["D+A"]


def test_doses_and_screens_of_one_context_have_their_own_columns(screen, make_model):
    label = screen.obs["perturbation"].astype(str)
    is_control = (label == "control").to_numpy()
    screen.obs["drug"] = np.where(is_control, "DMSO", "P")
    screen.obs["dose"] = np.where(is_control, np.nan, label.str[-1].where(~is_control, "0").astype(float))
    setup = {"perturbation_key": "drug", "control": "DMSO", "dose_key": "dose", "context_key": None}
    report = make_model(screen, setup=setup, prior="transfer").prior_report(perturbations=["P@2.5"])
    assert list(report.columns) == ["drug", "dose", *COLUMNS[2:]]
    assert report[["drug", "dose"]].to_numpy().tolist() == [["P", 2.5]]
    assert report["starts_from"].item() == "the nearest doses of the same perturbation"
    assert set(report["made_from"].item().split(", ")) == {"P@2 (0.45)", "P@3 (0.55)"}


@pytest.mark.parametrize("prior", ["none", "mean", "transfer", "cells"])
def test_a_prediction_carries_how_many_conditions_start_from_what(prior, pairs, make_model, train, tmp_path):
    model = train(make_model(pairs, setup=PAIRS, prior=prior))
    asked = {"perturbations": ["A", "A+B", "A+C", "B+C", "D+E"]}
    expected = model.prior_report(**asked)["starts_from"].value_counts().to_dict()
    predicted = model.predict(**asked, n_cells=2, progress=False)
    assert predicted.uns[PREDICTION_RECORD]["starts_from"] == expected
    if prior in ("transfer", "cells"):
        assert expected["its parts"] == 3
        as_prior = model.predict(**asked, n_cells=2, output="prior", progress=False)
        assert as_prior.uns[PREDICTION_RECORD]["starts_from"] == expected
    predicted.write_h5ad(tmp_path / "predicted.h5ad")
    assert ad.read_h5ad(tmp_path / "predicted.h5ad").uns[PREDICTION_RECORD]["starts_from"] == expected
