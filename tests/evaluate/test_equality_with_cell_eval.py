"""Our numbers are those of a direct call of cell-eval, to the last bit, and of cell-eval2, from raw counts."""

from __future__ import annotations

import sys
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
from cell_eval import MetricsEvaluator, metrics_registry

from scvi_tahoe.datasets import norman_k562, simulate_screen
from scvi_tahoe.evaluate import EvaluationReference, RepresentationError, evaluate
from scvi_tahoe.evaluate._differential_expression import usable_threads
from scvi_tahoe.evaluate._preset_vcc2026 import VCC2026_METRICS


def evaluator(prediction, reference, *, key, control, folder):
    """cell-eval, called as its documentation says."""
    return MetricsEvaluator(
        None if prediction is None else plain(prediction, key),
        plain(reference, key),
        **{"control_pert": control, "pert_col": key, "num_threads": usable_threads(2), "outdir": str(folder / "out")},
    )


def plain(adata, key):
    obs = pd.DataFrame({key: pd.Categorical(adata.obs[key].astype(str))}, index=adata.obs_names)
    return anndata.AnnData(adata.X.copy(), obs=obs, var=adata.var[[]])


def assert_equal(ours, evaluator, profile):
    scores, _ = evaluator.compute(profile, write_csv=False, break_on_error=True)
    theirs = pd.DataFrame(scores.to_dict(as_series=False)).set_index("perturbation").astype(float)
    ours = ours.droplevel("context").loc[theirs.index, theirs.columns]
    pd.testing.assert_frame_equal(ours, theirs, check_names=False, check_exact=True)
    return len(theirs.columns)


def test_all_metrics_are_equal_on_papalexi(task, predicted, full, tmp_path):
    key, control = task.perturbation_key, task.control
    whole = anndata.concat([task.held_out[task.held_out.obs[key] == control], predicted], index_unique="-")
    theirs = evaluator(whole, task.held_out, key=key, control=control, folder=tmp_path)
    assert assert_equal(full.per_perturbation, theirs, "full") == 28


def test_metrics_are_equal_on_norman_with_the_predicted_controls(tmp_path):
    screen = norman_k562()
    screen = screen[screen.obs["perturbation"].isin(["control", "KLF1", "TGFBR2", "MAPK1", "SGK1"])]
    half = np.random.default_rng(0).random(screen.n_obs) < 0.5
    sides = screen[half].copy(), screen[~half].copy()
    options = {"perturbation_key": "perturbation", "control": "control", "control_cells": "predicted"}
    result = evaluate(*sides, baseline=None, match_cells=False, **options)
    theirs = evaluator(*sides, key="perturbation", control="control", folder=tmp_path)
    assert_equal(result.per_perturbation, theirs, "vcc")


def test_the_ceiling_with_own_controls_is_that_of_cell_eval(task, keys, tmp_path):
    held_out = task.held_out
    result = evaluate(held_out, held_out, baseline=None, control_cells="predicted", preset="minimal", **keys)
    theirs = evaluator(None, held_out, key=task.perturbation_key, control=task.control, folder=tmp_path)
    _, ceiling = theirs.compute_ceiling("minimal", write_csv=False)
    for metric in ("overlap_at_N", "precision_at_N", "pearson_delta", "discrimination_score_l1"):
        assert result.summary.loc[metric, "ceiling"] == pytest.approx(ceiling[metric][0], abs=1e-14)


def test_quick_metrics_agree_with_cell_eval_where_both_have_them(result, quick):
    for metric in ("mae", "mse", "pearson_delta", "discrimination_score_l1"):
        np.testing.assert_allclose(quick.per_perturbation[metric], result.per_perturbation[metric], rtol=2e-5)


def test_a_profile_changes_neither_other_metrics_nor_the_registry(predicted, reference, result):
    before = {name: dict(info.kwargs or {}) for name, info in metrics_registry.metrics.items()}
    alone = evaluate(predicted, reference, baselines=False).per_perturbation
    theirs = ["overlap_at_N", "discrimination_score_l1", "mae", "n_de_observed", "n_de_predicted"]
    pd.testing.assert_frame_equal(alone[theirs], result.per_perturbation[theirs], check_exact=True)
    assert {name: dict(info.kwargs or {}) for name, info in metrics_registry.metrics.items()} == before


def test_the_truth_against_itself_is_perfect(task, keys):
    result = evaluate(task.held_out, task.held_out, baseline="control", preset="vcc2025", baselines=False, **keys)
    value = result.summary["value"]
    assert value["mae"] == 0
    assert value["discrimination_score_l1"] == 1
    # cell-eval gives 0 to perturbations without any differentially expressed gene
    assert value["overlap_at_N"] == pytest.approx((result.per_perturbation["n_de_observed"] > 0).mean())


# the challenge of 2026


@pytest.fixture(scope="module")
def counts(task):
    """Predicted counts (the targets' cells of another replicate) and the reference with its counts in a layer."""
    rows = (task.train.obs[task.context_key] == "rep_1") & task.train.obs[task.perturbation_key].isin(task.targets)
    prediction = task.train[rows].copy()
    prediction.X = prediction.layers.pop("counts")
    prediction.obs[task.context_key] = task.context
    return prediction, task.held_out


@pytest.fixture
def truth(counts, keys):
    return EvaluationReference.from_adata(counts[1], layer="counts", **keys)


def test_without_cell_eval2_the_extra_is_named(counts, truth, monkeypatch):
    monkeypatch.setitem(sys.modules, "cell_eval2", None)
    with pytest.raises(ImportError, match=r"pip install 'scvi-tahoe\[vcc2026\]'"):
        evaluate(counts[0], truth, preset="vcc2026", baseline=None)


def test_log_values_and_shallow_counts_are_refused(counts, truth, predicted):
    with pytest.raises(RepresentationError, match="output='counts'"):
        evaluate(predicted, truth, preset="vcc2026", baseline=None)
    shallow = counts[0].copy()
    shallow.X = (shallow.X > 5).astype(np.float32)
    shallow = shallow[np.asarray(shallow.X.sum(axis=1)).ravel() > 0].copy()
    with pytest.raises(RepresentationError, match="predict counts at the library sizes"):
        evaluate(shallow, truth, preset="vcc2026", baseline=None)


def test_dense_counts_of_several_contexts_are_compared_one_by_one(counts, keys):
    prediction, held_out = (adata.copy() for adata in counts)
    held_out.X = held_out.layers.pop("counts")
    sides = []
    for side in (prediction, held_out):
        side.X = side.X.toarray() if hasattr(side.X, "toarray") else side.X
        other = side.copy()
        other.obs[keys["context_key"]] = "another"
        sides.append(anndata.concat([side, other], index_unique="-"))
    sides[0].X[: prediction.n_obs] = sides[0].X[: prediction.n_obs] > 5  # in one of them
    with pytest.raises(RepresentationError, match="in context '.*predict counts at the library sizes"):
        evaluate(*sides, preset="vcc2026", baseline=None, **keys)


@pytest.mark.slow
def test_scores_of_2026_are_those_of_a_direct_call(task, keys, counts):
    cell_eval2 = pytest.importorskip("cell_eval2")
    prediction, held_out = counts
    reference = EvaluationReference.from_adata(held_out, baseline_from=task.train, layer="counts", **keys)
    result = evaluate(prediction, reference, preset="vcc2026")

    key = task.perturbation_key
    truth, mine = (
        anndata.AnnData(matrix, obs=adata.obs[[key]].astype(str), var=adata.var[[]])
        for matrix, adata in ((held_out.layers["counts"], held_out), (prediction.X, prediction))
    )
    both = anndata.concat([truth[truth.obs[key] == task.control], mine], index_unique="-")
    config = cell_eval2.EvalConfig.from_preset("vcc2026")
    config = replace(config, pert_col=key, control=task.control, num_threads=usable_threads(2))
    theirs = cell_eval2.compute_metrics(both, truth, config=config)
    mean = cell_eval2.aggregate_metrics_wide(theirs)
    mean = mean.filter(mean["statistic"] == "mean").to_dicts()[0]
    for metric in VCC2026_METRICS:
        # cell-eval2 sums in the order its threads finish: two direct calls differ in the last bit of the double
        assert result.vcc[metric] == pytest.approx(mean[metric], rel=1e-14)
        assert result.summary.loc[metric, "value"] == result.vcc[metric]
    wide = theirs.pivot(on="metric", index="perturbation", values="value").to_dict(as_series=False)
    wide = pd.DataFrame(wide).set_index("perturbation")
    ours = result.per_perturbation.droplevel("context").loc[wide.index]
    for metric in ("pds_cosine", "de_wilcoxon_sig_jaccard", "de_wilcoxon_lfc_nmae"):
        np.testing.assert_array_equal(ours[metric], wide[metric].astype(float))
    assert result.vcc["year"] == 2026
    # a member that is the mean of its perturbations has an interval, one that is a ratio of sums has none
    table = result.summary.loc[list(VCC2026_METRICS)]
    assert ((table["low"] < table["value"]) & (table["value"] < table["high"])).sum() == 5
    assert np.isnan(table.loc["expr_mse_unbiased_capped_norm", "low"])
    assert "PDS (cosine, 2026)" in result._repr_html_()


@pytest.mark.slow
def test_a_replicate_scores_about_one_and_drugs_need_no_genes():
    pytest.importorskip("cell_eval2")
    screen = simulate_screen(1, 12, n_genes=400, n_cells=120, n_control_cells=240, seed=1)
    screen.X = screen.layers["counts"].copy()
    half = np.random.default_rng(0).random(screen.n_obs) < 0.5
    options = {"perturbation_key": "perturbation", "control": "control", "baseline": "control"}
    result = evaluate(screen[half].copy(), screen[~half].copy(), preset="vcc2026", **options)
    # half of the cells against the other half, as the replicate itself; the observed controls help a little
    assert 0.7 < result.vcc["overall"] < 2
    assert result.checks.loc["scale of 2026", "status"] == "ok"
    assert result.vcc["scaled"]["pds_cosine"] == pytest.approx(result.summary.loc["pds_cosine", "scaled"])
