"""The verdict says what intervals allow, and why a score says nothing."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from scvi_tahoe.evaluate import EvaluationReference, EvaluationResult, baseline_prediction, evaluate, paired_differences
from scvi_tahoe.evaluate._prediction_checks import check_de_counts
from scvi_tahoe.evaluate._verdict import judge


@pytest.fixture(scope="module")
def judged(task, keys):
    """A prediction worse than a baseline in MAE and Pearson, better than the mean, beside every baseline."""
    reference = EvaluationReference.from_adata(task.held_out, baseline_from=task.train, ceiling=False, **keys)
    return evaluate(baseline_prediction("context_transfer", task.held_out, task.train, **keys), reference)


def table(n, *, mae, des=0.5, n_de=20):
    index = pd.MultiIndex.from_product([["one"], [f"p{i}" for i in range(n)]], names=["context", "perturbation"])
    noise = np.random.default_rng(0).normal(0, 0.001, n)
    columns = {"overlap_at_N": des, "discrimination_score_l1": 0.5, "mae": mae + noise, "n_de_observed": n_de}
    return pd.DataFrame(columns, index=index)


def beside(**tables):
    return pd.concat(tables, names=["baseline"])


def test_every_baseline_is_scored_and_printed_by_default(judged):
    names = ["prediction", "control", "train_mean", "context_transfer", "deviation", "cells_quantile", "vcc2025_mean"]
    assert list(judged.baselines.index) == names
    assert judged.baselines.loc["prediction", "overall"] == pytest.approx(judged.vcc["overall"])
    text = repr(judged)
    assert all(name in text and name in judged._repr_html_() for name in names)
    assert str(judged.verdict) in text
    # the baseline that the challenge prescribes stands beside ours
    assert judged.vcc["challenge"]["baseline"] == "vcc2025_mean"
    assert f"challenge prescribes: {judged.vcc['challenge']['overall']:.2f}" in text


def test_the_verdict_names_what_is_ahead_behind_and_undefined(judged):
    verdict = judged.verdict
    assert verdict.best.loc["mae", "baseline"] == "deviation"
    assert verdict.best.loc["mae", "standing"] == verdict.best.loc["pearson_delta", "standing"] == "behind"
    assert "train_mean" in verdict.baselines("ahead", "pearson_delta")
    assert "context_transfer" in verdict.baselines("not told apart", "discrimination_score_l1")
    assert "no differentially expressed gene in 3 of 12 conditions and only one in 5" in verdict.undefined["DES"]
    assert any("deviation" in line for line in verdict.advice)
    assert "MAE: behind the best baseline, deviation" in str(verdict)


def test_ahead_and_behind_are_said_only_where_the_interval_excludes_zero(judged):
    table = judged.verdict.differences
    for sign, standing in ((1, "ahead"), (-1, "behind")):
        rows = table[table["standing"] == standing]
        direction = np.where(rows.index.get_level_values("metric") == "mae", -sign, sign)
        assert (rows["low"] * direction > 0).all()
        assert (rows["high"] * direction > 0).all()
    level = table[table["standing"] == "not told apart"]
    assert ((level["low"] <= 0) & (level["high"] >= 0)).all()


def test_the_overall_score_has_an_interval_of_its_difference(judged):
    row = judged.verdict.differences.loc["deviation", "overall"]
    assert row["value"] == pytest.approx(judged.vcc["overall"])
    assert row["other"] == pytest.approx(judged.baselines.loc["deviation", "overall"])
    assert row["low"] < row["difference"] < row["high"]


def test_differences_are_paired_and_in_the_direction_of_the_metric():
    found = paired_differences(table(20, mae=0.02), beside(worse=table(20, mae=0.03), equal=table(20, mae=0.02)))
    assert found.loc[("worse", "mae"), ["low", "high", "difference"]].to_numpy() == pytest.approx(-0.01)
    assert found.loc[("worse", "mae"), "standing"] == "ahead"
    assert found.loc[("equal", "mae"), "standing"] == "not told apart"


def test_a_metric_of_few_conditions_has_no_interval_and_says_so(judged):
    assert judged.verdict.best.loc["overlap_at_N", "standing"] == "undefined"
    assert "4 conditions are left, too few for an interval; 5 are needed" in judged.verdict.undefined["DES"]
    assert "DES: no interval against the best baseline" in str(judged.verdict)


def test_few_conditions_have_no_interval_and_so_no_standing():
    verdict = judge(table(3, mae=0.02), beside(worse=table(3, mae=0.9)))
    assert set(verdict.differences["standing"]) == {"undefined"}
    assert "3 conditions are too few" in verdict.undefined["intervals"]


def test_conditions_without_de_genes_are_left_out_of_des_and_named():
    mine, other = (
        table(10, mae=0.02, des=[value] * 5 + [0.0] * 5, n_de=[9] * 5 + [0, 0, 1, 1, 1]) for value in (0.6, 0.3)
    )
    verdict = judge(mine, beside(base=other))
    row = verdict.differences.loc["base", "overlap_at_N"]
    assert (row["n_conditions"], row["value"], row["standing"]) == (5, pytest.approx(0.6), "ahead")
    assert "no differentially expressed gene in 2 of 10 conditions and only one in 3" in verdict.undefined["DES"]


def test_missing_de_genes_are_not_blamed_on_the_spread_of_cells():
    scores = pd.DataFrame({"n_de_observed": [0, 1, 1], "n_de_predicted": [7, 90, 80]})
    undefined, ratio = check_de_counts(scores)
    assert ratio.status == "ok"
    assert "undefined" in undefined.message
    assert "1 of 3 conditions have no observed differentially expressed gene and 2 one" in undefined.message
    # and where there are some, the spread is
    scores = pd.DataFrame({"n_de_observed": [10, 12, 1], "n_de_predicted": [90, 108, 1]})
    assert check_de_counts(scores)[1].status == "warning"


def test_without_training_data_the_verdict_asks_for_them(task, keys, predicted):
    bare = EvaluationReference.from_adata(task.held_out, ceiling=False, **keys)
    result = evaluate(predicted, bare, preset="quick", baseline="control")
    assert list(result.baselines.index) == ["prediction", "control"]
    assert "give the training data" in str(result.verdict)
    alone = evaluate(predicted, bare, preset="quick", baseline=None, baselines=False)
    assert "baselines=True" in str(alone.verdict)


def test_a_saved_result_has_the_same_verdict_and_plain_data(judged, tmp_path):
    judged.save(tmp_path / "scores")
    again = EvaluationResult.load(tmp_path / "scores")
    assert str(again.verdict) == str(judged.verdict)
    pd.testing.assert_frame_equal(again.baselines, judged.baselines)
    data = json.loads(json.dumps(judged.verdict.to_dict(), default=float))
    assert data["text"] == str(judged.verdict)
    assert {"baseline", "metric", "low", "high", "standing"} <= set(data["differences"][0])
