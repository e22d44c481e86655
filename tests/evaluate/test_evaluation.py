"""What an evaluation promises: inputs untouched, truth computed once, contexts one by one."""

from __future__ import annotations

import re
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scvi_tahoe.evaluate
from scvi_tahoe.datasets import norman_k562
from scvi_tahoe.evaluate import (
    BASELINES,
    METRICS,
    PRESETS,
    EvaluationReference,
    EvaluationWarning,
    MetricInfo,
    Preset,
    baseline_prediction,
    evaluate,
    metric_info,
)
from scvi_tahoe.evaluate import _context_truth as context_truth
from scvi_tahoe.evaluate import _evaluate as evaluate_file
from scvi_tahoe.evaluate import _reference as reference_file
from scvi_tahoe.evaluate._differential_expression import usable_threads
from scvi_tahoe.evaluate._summary import bootstrap_means, interval


def content(adata):
    matrix = adata.X
    parts = (matrix,) if isinstance(matrix, np.ndarray) else (matrix.data, matrix.indices, matrix.indptr)
    return [*(np.ascontiguousarray(part).tobytes() for part in parts), adata.obs.to_csv(), adata.var.to_csv()]


def test_a_result_is_anndata_of_conditions_by_genes(result):
    adata = result.to_anndata()
    np.testing.assert_array_equal(adata.X, result.effects.predicted)
    np.testing.assert_array_equal(adata.layers["observed"], result.effects.observed)
    assert adata.obs["mae"].to_list() == result.per_perturbation.loc[list(result.effects.conditions), "mae"].to_list()
    assert adata.uns["scvi_tahoe_evaluation"]["preset"] == result.provenance["preset"]


def test_inputs_are_byte_identical_afterwards_and_nothing_is_written(task, keys, predicted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = [content(adata) for adata in (predicted, task.held_out, task.train)]
    evaluate(predicted, task.held_out, train=task.train, preset="minimal", baselines=False, **keys)
    assert [content(adata) for adata in (predicted, task.held_out, task.train)] == before
    assert not list(tmp_path.iterdir())


def test_two_evaluations_with_different_controls_do_not_mix(task, predicted, result, reference):
    key = task.perturbation_key
    other = task.held_out[task.held_out.obs[key] != task.control].copy()
    against = predicted[predicted.obs[key] != "CMTM6"].copy()
    evaluate(against, other, perturbation_key=key, control="CMTM6", baseline=None, baselines=False)
    again = evaluate(predicted, reference, preset="minimal", baselines=False)
    pd.testing.assert_frame_equal(again.per_perturbation, result.per_perturbation)


def test_threads_are_as_before_and_no_more_than_numba_has(predicted, reference, monkeypatch):
    import numba
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        evaluate(predicted, reference, baselines=False)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    numba.set_num_threads(1)
    evaluate(predicted, reference, baselines=False)
    assert numba.get_num_threads() == 1
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 1)
    assert usable_threads(None) == usable_threads(8) == 1


def test_sparse_data_and_files_score_like_dense_data_in_memory(predicted, reference, quick, tmp_path):
    sparse = predicted.copy()
    sparse.X = sp.csc_matrix(predicted.X)
    again = scvi_tahoe.evaluate(sparse, reference, preset="quick").per_perturbation  # the package is callable
    pd.testing.assert_frame_equal(again, quick.per_perturbation, rtol=1e-6)
    predicted.write_h5ad(tmp_path / "p.h5ad")
    backed = anndata.read_h5ad(tmp_path / "p.h5ad", backed="r")
    pd.testing.assert_frame_equal(evaluate(backed, reference, preset="quick").summary, quick.summary)


def test_contexts_are_scored_one_by_one_and_averaged(two_contexts, task, keys):
    prediction, truth = two_contexts
    both = evaluate(prediction, truth, baseline="control", baselines=False, n_draws=1, **keys)
    alone = {}
    for context in ("rep_2", "rep_3"):
        here = [adata[adata.obs[task.context_key] == context].copy() for adata in two_contexts]
        alone[context] = result = evaluate(*here, baseline="control", baselines=False, n_draws=1, **keys)
        pd.testing.assert_frame_equal(both.per_perturbation.loc[[context]], result.per_perturbation, check_exact=True)
        assert both.vcc["by_context"][context] == result.vcc["overall"]
    mean = np.mean([result.summary["value"] for result in alone.values()], axis=0)
    np.testing.assert_allclose(both.summary["value"], mean)
    assert both.vcc["overall"] == pytest.approx(np.mean([r.vcc["overall"] for r in alone.values()]))


def test_plain_data_need_labels_and_training_data(task, keys, predicted, reference):
    for truth, options, message in (
        (task.held_out, {}, "needs perturbation_key"),
        (task.held_out, keys | {"baseline": "train_mean"}, "pass train="),
        (reference, {"train": task.train}, "Give the training data to the reference"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(predicted, truth, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"control": "DMSO"}, "control='DMSO' contradicts the reference", id="another control"),
        pytest.param({"baseline": "ridge"}, "needs perturbation embeddings", id="no embeddings"),
        pytest.param({"control_cells": "both"}, "'real', 'predicted'", id="unknown controls"),
        pytest.param({"control_cells": "predicted"}, "needs control cells", id="no own controls"),
        pytest.param({"representation_check": "maybe"}, "'error', 'warn', 'off'", id="unknown policy"),
        pytest.param({"preset": "vcc2026", "control_cells": "predicted"}, "observed controls on both", id="2026"),
    ],
)
def test_options_that_cannot_be_met_are_refused(predicted, reference, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(predicted, reference, **options)


# baselines, ceiling, intervals, strata


def test_the_summary_has_value_baseline_ceiling_and_share(result):
    row = result.summary.loc["discrimination_score_l1"]
    assert row["baseline"] < row["value"] < row["ceiling"]
    assert row["scaled"] == pytest.approx((row["value"] - row["baseline"]) / (row["ceiling"] - row["baseline"]))
    error = result.summary.loc["mae"]
    assert error["ceiling"] < error["value"] < error["baseline"]
    assert 0 < error["scaled"] < 1


def test_diagnostics_have_no_share_and_tell_a_good_prediction(result):
    diagnostics = result.summary.loc[["effect_size_ratio", "variance_ratio", "zero_fraction_difference", "nsig_ratio"]]
    assert diagnostics["scaled"].isna().all()
    _, spread, zeros, n_de = diagnostics["value"]
    assert spread == pytest.approx(1, abs=0.1)
    assert zeros == pytest.approx(0, abs=0.05)
    assert 0.5 < n_de < 2


def test_a_prediction_or_a_result_can_be_the_baseline(task, keys, predicted, reference, quick, result):
    other = baseline_prediction("train_mean", task.held_out, task.train, **keys)
    by_name = quick.summary["baseline"]
    by_cells = evaluate(predicted, reference, preset="quick", baseline=other).summary["baseline"]
    pd.testing.assert_series_equal(by_cells, by_name)
    with pytest.warns(EvaluationWarning):
        made = evaluate(other, reference, preset="quick")
    by_result = evaluate(predicted, reference, preset="quick", baseline=made).summary["baseline"]
    pd.testing.assert_series_equal(by_result, by_name)
    with pytest.raises(ValueError, match=r"differs from this evaluation in \['preset'\]"):
        evaluate(predicted, reference, preset="quick", baseline=result)


def test_without_baseline_and_ceiling_only_values_are_given(task, keys, predicted):
    bare = EvaluationReference.from_adata(task.held_out, ceiling=False, **keys)
    result = evaluate(predicted, bare, preset="quick", baseline=None)
    assert result.summary[["baseline", "ceiling", "scaled"]].isna().all(axis=None)
    assert result.summary["value"].notna().all()
    assert result.vcc is None


def test_intervals_hold_the_value(result):
    table = result.summary
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    scored = table[table["scaled"].notna()]
    assert (scored["scaled_low"] <= scored["scaled"]).all()
    assert (scored["scaled"] <= scored["scaled_high"]).all()


def test_the_full_preset_has_whole_panel_scores_and_energy_distances(full):
    whole = ["de_spearman_sig", "pearson_edistance", "clustering_agreement"]
    assert full.summary.loc[whole, "value"].notna().all()
    assert full.summary.loc[whole, ["low", "high", "scaled_low", "scaled_high"]].isna().all(axis=None)
    assert not set(whole) & {metric for metric, _ in full.strata()}
    row = full.summary.loc["energy_distance"]
    assert row["ceiling"] < row["value"] < row["baseline"]


def test_the_bootstrap_agrees_with_the_standard_error():
    index = pd.MultiIndex.from_product([["one"], range(400)], names=["context", "perturbation"])
    scores = pd.DataFrame({"score": np.random.default_rng(0).normal(size=400)}, index=index)
    low, high = interval(bootstrap_means([scores])[0])
    assert high[0] - low[0] == pytest.approx(2 * 1.96 * scores["score"].std() / 20, rel=0.1)


# the truth's side, computed once


@pytest.fixture
def cached(task, keys, tmp_path):
    options = {"baseline_from": task.train, "cache_dir": tmp_path / "cache", **keys}
    return lambda: EvaluationReference.from_adata(task.held_out, **options)


def counting(monkeypatch):
    calls, real = [], context_truth.differential_expression
    monkeypatch.setattr(context_truth, "differential_expression", lambda *a, **k: calls.append(1) or real(*a, **k))
    return calls


def test_a_second_model_costs_one_test_of_its_own_cells(predicted, cached, monkeypatch):
    calls = counting(monkeypatch)
    reference = cached()
    options = {"baselines": False, "n_draws": 1}
    first = evaluate(predicted, reference, **options)
    assert len(calls) == 5  # observed, predicted, baseline, two halves
    for n_calls, again in ((6, reference), (7, cached())):
        other = evaluate(predicted, again, **options)
        assert len(calls) == n_calls
        pd.testing.assert_frame_equal(other.summary, first.summary)
        pd.testing.assert_frame_equal(other.per_perturbation, first.per_perturbation)


def test_progress_is_shown_with_the_time_left_if_asked_for(predicted, task, keys, capfd):
    for progress in (False, True):
        reference = EvaluationReference.from_adata(task.held_out, ceiling=False, progress=progress, **keys)
        evaluate(predicted, reference, preset="vcc2025", baseline=None, baselines=False)
        shown = capfd.readouterr().err
        assert ("Differential expression: 100%" in shown) is progress  # of the prediction
        assert ("differential expression (against reference): 100%" in shown) is progress  # of the truth, by pdex
        assert not progress or "perturbation/s" in shown
        assert "Iterating over perturbations" not in shown  # cell-eval's own


def test_progress_can_be_chosen_for_one_evaluation(predicted, task, keys, capfd):
    reference = EvaluationReference.from_adata(task.held_out, ceiling=False, progress=True, **keys)
    evaluate(predicted, reference, baseline=None, progress=False)
    assert not capfd.readouterr().err
    assert reference.progress
    evaluate(predicted, task.held_out, baseline=None, progress=False, preset="quick", **keys)


def test_baselines_that_take_long_are_announced_once(predicted, task, keys, caplog, monkeypatch):
    reference = EvaluationReference.from_adata(task.held_out, baseline_from=task.train, ceiling=False, **keys)
    monkeypatch.setattr(evaluate_file, "_LONG", 1e-4)
    with caplog.at_level("INFO", logger="scvi_tahoe"):
        evaluate(predicted, reference, preset="quick")
        assert re.search(r"[5-9] baselines take about 0 s more; baselines=False", caplog.text)
        caplog.clear()
        evaluate(predicted, reference, preset="quick")  # they are known
        evaluate(predicted, task.held_out, preset="quick", baseline=None, baselines=False, **keys)
    assert not caplog.text


def test_damaged_swapped_and_stale_tables_are_computed_again(predicted, cached, tmp_path, monkeypatch):
    first = evaluate(predicted, cached(), baselines=False, n_draws=1)
    tables = sorted((tmp_path / "cache").glob("*.parquet"))
    assert len(tables) == 3
    tables[0].write_bytes(tables[0].read_bytes()[:-7])  # cut
    content = bytearray(tables[1].read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    tables[1].write_bytes(bytes(content))
    tables[2].with_suffix(".json").write_text("no JSON")
    again = evaluate(predicted, cached(), baselines=False, n_draws=1)
    pd.testing.assert_frame_equal(again.summary, first.summary)
    # under each other's names
    paths = sorted((tmp_path / "cache").iterdir())
    content = [path.read_bytes() for path in paths]
    for path, other in zip(paths, [*content[2:], *content[:2]]):
        path.write_bytes(other)
    again = evaluate(predicted, cached(), baselines=False, n_draws=1)
    pd.testing.assert_frame_equal(again.summary, first.summary)
    # another release: none of the tables is used
    for module in (context_truth, reference_file):
        monkeypatch.setattr(module, "installed_versions", lambda: {"cell-eval": "0.0.0"})
    calls = counting(monkeypatch)
    evaluate(predicted, cached(), baselines=False, n_draws=1)
    assert len(calls) == 5


@pytest.mark.parametrize("side", ["held_out", "train"])
def test_data_that_changed_in_place_since_they_were_read_are_refused(task, keys, predicted, side):
    sides = {"held_out": task.held_out.copy(), "train": task.train.copy()}
    for adata in sides.values():
        adata.X.sort_indices()  # otherwise a sorted copy is kept, which nobody changes
    reference = EvaluationReference.from_adata(sides["held_out"], baseline_from=sides["train"], **keys)
    evaluate(predicted, reference, preset="quick")
    sides[side].X.data *= 2  # what scanpy's normalisation does
    with pytest.raises(ValueError, match="changed in place since it was made"):
        evaluate(predicted, reference, preset="quick")


def test_another_truth_is_another_entry(task, keys):
    one = EvaluationReference.from_adata(task.held_out, **keys)
    changed = task.held_out.copy()
    changed.X.data[0] += 0.25
    assert EvaluationReference.from_adata(changed, **keys).fingerprint != one.fingerprint
    assert EvaluationReference.from_adata(task.held_out.copy(), **keys).fingerprint == one.fingerprint


def test_provenance_names_what_decides_about_scores(result, quick):
    origin = result.provenance
    assert origin["versions"]["cell-eval"]
    assert len(origin["truth"]) > 64
    assert (origin["control_cells"], origin["contexts"]) == ("real", ["rep_3"])
    assert origin["de_backend"] in ("cpu", "gpu")
    assert quick.provenance["de_backend"] is None


def test_a_few_cells_have_no_ceiling(task, keys, predicted):
    tiny = task.held_out[task.held_out.obs.groupby(task.perturbation_key, observed=True).head(1).index].copy()
    with pytest.warns(EvaluationWarning), pytest.raises(ValueError, match="too few cells to split"):
        evaluate(predicted, tiny, baseline=None, preset="quick", **keys)


def test_combinations_of_genes_are_perturbations_like_others():
    screen = norman_k562()
    screen = screen[screen.obs["perturbation"].isin(["control", "KLF1+TGFBR2", "KLF1"])]
    labels = {"perturbation_key": "perturbation", "control": "control"}
    prediction = screen[screen.obs["perturbation"] != "control"].copy()
    result = evaluate(prediction, screen.copy(), baseline="control", preset="quick", **labels)
    assert result.summary.loc["mae", "value"] == 0


# what others add


@pytest.fixture
def examples():
    """Run the examples of the guide as files of the package would be run, and forget them afterwards."""
    known = [dict(registry) for registry in (METRICS, PRESETS, BASELINES)]
    page = (Path(__file__).parents[2] / "docs" / "how_to_add.md").read_text()
    section = page[page.index("## ... metric") : page.index("## ... split")]
    for example in re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL):
        exec(example, {"__name__": "example"})
    yield
    for registry, before in zip((METRICS, PRESETS, BASELINES), known):
        registry.clear()
        registry.update(before)


def test_what_the_guide_registers_is_scored(examples, task, keys, predicted, reference):
    result = evaluate(predicted, reference, preset="discrimination", baseline="half_mean")
    assert result.summary.loc["median_error", ["value", "baseline", "ceiling"]].gt(0).all()
    assert result.summary.loc["median_error", "direction"] == "lower"
    assert list(result.summary.index) == ["pds_cosine", "median_error"]  # those of the preset, in its order
    assert result.vcc["overall"] == pytest.approx(result.summary.loc["pds_cosine", "value"])
    assert f"overall {result.vcc['overall']:.2f}" in repr(result)
    assert "overall" in result._repr_html_()
    truth = evaluate(task.held_out, reference, preset="discrimination", representation_check="off")
    assert truth.summary.loc["median_error", "value"] == pytest.approx(0, abs=1e-6)
    assert baseline_prediction("half_mean", task.held_out, task.train, **keys).n_obs == predicted.n_obs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            {"metrics": ("overlap_at_N",)}, "'overlap_at_N', which needs its option cell_eval_profile", id="DE"
        ),
        pytest.param({"metrics": ("energy_distance",)}, "needs its option scores_cells", id="cells"),
        pytest.param({"metrics": ("pds_cosin",)}, "no metric 'pds_cosin'.*did you mean 'pds_cosine'", id="unknown"),
    ],
)
def test_a_preset_that_cannot_have_its_metrics_is_refused_at_once(options, message, predicted, reference):
    PRESETS.register("mine", Preset(**options))
    try:
        with pytest.raises(ValueError, match=message):
            evaluate(predicted, reference, preset="mine")
    finally:
        del PRESETS["mine"]


def test_an_unknown_name_is_answered_with_the_nearest_ones(predicted, reference, task, keys):
    with pytest.raises(ValueError, match="no preset 'vcc25'.*did you mean 'vcc2025'.*choose one of"):
        evaluate(predicted, reference, preset="vcc25")
    with pytest.raises(ValueError, match="no baseline 'train_means'.*did you mean 'train_mean'.*choose one of"):
        evaluate(predicted, reference, baseline="train_means")
    with pytest.raises(ValueError, match="no baseline 'mean'"):
        baseline_prediction("mean", task.held_out, task.train, **keys)


def test_a_name_is_registered_once_and_an_unknown_metric_a_diagnostic():
    assert metric_info("of_a_later_release").direction == "diagnostic"
    with pytest.raises(ValueError, match="metric 'mae' already"):
        METRICS.register("mae", MetricInfo(label="MAE", best=0))
