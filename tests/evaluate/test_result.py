"""What a result can do: be saved and loaded, shown, divided into groups, and compared with others."""

from __future__ import annotations

import dataclasses
import html
import json
import re

import numpy as np
import pandas as pd
import pytest

from scvi_tahoe.evaluate import (
    EvaluationReference,
    EvaluationResult,
    baseline_results,
    compare_results,
    evaluate,
)


def test_a_saved_result_comes_back_equal(result, tmp_path):
    result.save(tmp_path / "scores")
    again = EvaluationResult.load(tmp_path / "scores")
    for name in ("summary", "per_perturbation", "checks", "cells", "de_predicted", "baseline_per_perturbation"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(result, name), check_dtype=False)
    assert again.vcc["overall"] == result.vcc["overall"]
    assert again.provenance == json.loads(json.dumps(result.provenance))
    np.testing.assert_array_equal(again.effects.predicted, result.effects.predicted)
    assert again.effects.conditions == result.effects.conditions


def test_saving_replaces_a_result_of_the_known_format_and_nothing_else(quick, result, tmp_path):
    result.save(tmp_path / "scores")
    quick.save(tmp_path / "scores")
    assert EvaluationResult.load(tmp_path / "scores").de_observed is None
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="is no evaluation result"):
        quick.save(tmp_path / "mine")
    with pytest.raises(FileNotFoundError, match="no result.json"):
        EvaluationResult.load(tmp_path / "mine")
    path = tmp_path / "scores" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        EvaluationResult.load(tmp_path / "scores")


def test_the_text_form_names_year_and_score(result):
    text = repr(result)
    assert f"VCC 2025 overall {result.vcc['overall']:.2f}" in text
    terms = text[text.index("VCC 2025") :].splitlines()[0]
    for name in ("DES", "PDS", "MAE"):
        term = f"{name} {result.vcc[name]:.4f} (baseline {result.vcc['baseline'][name]:.4f}, counts "
        assert f"{term}{result.vcc['scaled'][name]:.4f} of 1)" in terms


def test_an_overall_score_from_another_baseline_says_so(result):
    note = "(from 'no_change', not from 'train_mean')"
    other = dataclasses.replace(result, provenance={**result.provenance, "baseline": "no_change"})
    assert note in repr(other)
    assert html.escape(note) in other._repr_html_()
    assert "not from" not in repr(result) + result._repr_html_()


def test_warnings_stand_above_the_numbers(scored, predicted, reference):
    double = predicted.copy()
    double.X = np.log1p(double.X)
    result = scored(double, reference, preset="vcc2025", representation_check="warn")
    text, shown = repr(result), result._repr_html_()
    assert all(line in text and html.escape(line) in shown for line in result.findings)
    for page, metric in ((text, "mae"), (shown, "PDS (L1)")):
        places = [page.index(part) for part in ("error: scale: log1p was applied twice", "VCC 2025 overall", metric)]
        assert places == sorted(places)


def test_results_side_by_side_end_with_the_ceiling(result):
    table = compare_results({"one": result, "two": result})
    assert list(table.index) == ["one", "two", "baseline (train_mean)", "ceiling (replicate)"]
    assert table.loc["one", "VCC 2025 overall"] == result.vcc["overall"]
    pd.testing.assert_frame_equal(result.compare(result, names=("one", "two")), table)


def test_results_that_cannot_be_compared_are_refused(result, quick):
    for compare, error, message in (
        (lambda: result.compare(quick, names=("one", "two")), ValueError, "'one' and 'two' cannot .* differ in preset"),
        (lambda: compare_results({}), ValueError, "no result to compare"),
        (lambda: compare_results({"one": quick}, metrics=["overlap_at_N"]), KeyError, "not in every result"),
    ):
        with pytest.raises(error, match=message):
            compare()


def test_scores_from_different_baselines_are_not_comparable(predicted, reference, quick, task, keys):
    part = EvaluationReference.from_adata(task.held_out, baseline_from=task.train[::2].copy(), **keys)
    for truth, baseline in ((reference, "control"), (part, "train_mean")):
        with pytest.raises(ValueError, match="they differ in baseline"):
            quick.compare(evaluate(predicted, truth, preset="quick", baseline=baseline, baselines=False))
    quick.compare(evaluate(predicted, reference, preset="quick", seed=1))  # drawn anew, the same otherwise
    quick.compare(evaluate(predicted, reference, preset="quick", baseline=None, baselines=False))
    # a baseline among the results needs no row of its own
    both = {"mean": baseline_results(reference, ("train_mean",), preset="quick")["train_mean"], "cells": quick}
    assert list(compare_results(both).index) == ["mean", "cells", "ceiling (replicate)"]


def test_strata_show_that_strong_effects_are_told_apart_better(result):
    table = result.strata()
    assert list(table.index) == ["weak", "medium", "strong"]
    assert table[("n_perturbations", "")].sum() == 12
    pearson = table[("pearson_delta", "value")]
    assert pearson["strong"] > pearson["weak"]
    with pytest.raises(ValueError, match="n_groups must be between 2 and"):
        result.strata(n_groups=13)
    strong = table.loc["strong", "mae"]
    assert strong["ceiling"] < strong["value"] < strong["baseline"]
    way = (strong["value"] - strong["baseline"]) / (strong["ceiling"] - strong["baseline"])
    assert strong["scaled"] == pytest.approx(way)


def test_strata_average_contexts_one_by_one(scored, two_contexts, task, keys):
    prediction, truth = two_contexts
    here = prediction.obs[task.context_key] == "rep_2"
    named = prediction.obs[task.perturbation_key]
    few = prediction[~here | named.isin(sorted(named.unique())[:2])].copy()
    result = scored(few, truth, baseline=None, **keys)
    assert result.per_perturbation.groupby(level="context").size().nunique() == 2
    table = result.strata(n_groups=2)
    error = result.per_perturbation["mae"].iloc[np.argsort(np.linalg.norm(result.effects.observed, axis=1))]
    means = [error.loc[context].iloc[-n_strong:].mean() for context, n_strong in (("rep_2", 1), ("rep_3", 2))]
    assert table.loc["strong", ("mae", "value")] == pytest.approx(np.mean(means))
    # groups that no context can fill are empty
    few = prediction[named.isin(sorted(named.unique())[:2])].copy()
    table = scored(few, truth, baseline=None, **keys).strata(n_groups=3)
    assert list(table.index) == ["weak", "medium", "strong"]
    assert list(table[("n_perturbations", "")]) == [0, 2, 2]


def test_the_page_for_people_says_what_the_verdict_says_and_needs_nothing_else(quick, tmp_path):
    quick.to_html(tmp_path / "report.html", title="A <small> screen", command="scvi-tahoe evaluate a.h5ad b.h5ad")
    text = (tmp_path / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert "A &lt;small&gt; screen" in text
    assert "scvi-tahoe evaluate a.h5ad b.h5ad" in re.sub("<[^>]+>", "", text)
    assert text.count("data:image/png") >= 2
    assert len(quick.verdict.best) >= 2
    for metric, row in quick.verdict.best.iterrows():
        words = {"not told apart": "not distinguishable", "undefined": "without an interval"}
        assert f"<td>{words.get(row['standing'], row['standing'])}</td><td>{row['baseline']}</td>" in text, metric
    assert text.count(" in ") >= len(quick.per_perturbation)
