"""What an evaluation promises: inputs untouched, truth computed once, contexts one by one."""

from __future__ import annotations

import hashlib

import anndata
import numpy as np
import pandas as pd
import pytest

import scvi_tahoe.evaluate
from scvi_tahoe.datasets import norman_k562
from scvi_tahoe.evaluate import (
    EvaluationReference,
    EvaluationWarning,
    baseline_prediction,
    evaluate,
)


def digest(adata):
    matrix = adata.X
    parts = (matrix,) if isinstance(matrix, np.ndarray) else (matrix.data, matrix.indices, matrix.indptr)
    content = b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
    return hashlib.sha256(content + adata.obs.to_csv().encode() + adata.var.to_csv().encode()).hexdigest()


def test_inputs_are_byte_identical_afterwards_and_nothing_is_written(task, keys, predicted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = [digest(adata) for adata in (predicted, task.held_out, task.train)]
    evaluate(predicted, task.held_out, train=task.train, preset="minimal", **keys)
    assert [digest(adata) for adata in (predicted, task.held_out, task.train)] == before
    assert not list(tmp_path.iterdir())


def test_the_package_can_be_called_like_its_function(predicted, reference, quick):
    again = scvi_tahoe.evaluate(predicted, reference, preset="quick")
    pd.testing.assert_frame_equal(again.summary, quick.summary)


def test_two_evaluations_with_different_controls_do_not_disturb_each_other(task, predicted, result, reference):
    key = task.perturbation_key
    other = task.held_out[task.held_out.obs[key] != task.control].copy()
    against = predicted[predicted.obs[key] != "CMTM6"].copy()
    evaluate(against, other, perturbation_key=key, control="CMTM6", baseline=None, preset="vcc2025")
    again = evaluate(predicted, reference, preset="minimal")
    pd.testing.assert_frame_equal(again.per_perturbation, result.per_perturbation)


def test_threads_are_as_before(predicted, reference):
    import numba
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        evaluate(predicted, reference, preset="quick")
        evaluate(predicted, reference, preset="vcc2025")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    numba.set_num_threads(1)
    evaluate(predicted, reference, preset="vcc2025")
    assert numba.get_num_threads() == 1


def test_no_more_threads_are_asked_for_than_numba_was_started_with(monkeypatch):
    import numba

    from scvi_tahoe.evaluate._differential_expression import usable_threads

    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 1)
    assert usable_threads(None) == usable_threads(8) == 1


def test_dense_and_sparse_predictions_score_alike(predicted, reference, quick):
    import scipy.sparse as sp

    sparse = predicted.copy()
    sparse.X = sp.csc_matrix(predicted.X)
    again = evaluate(sparse, reference, preset="quick").per_perturbation
    pd.testing.assert_frame_equal(again, quick.per_perturbation, rtol=1e-6)


def test_a_file_on_disk_scores_like_memory(predicted, reference, quick, tmp_path):
    predicted.write_h5ad(tmp_path / "p.h5ad")
    backed = anndata.read_h5ad(tmp_path / "p.h5ad", backed="r")
    pd.testing.assert_frame_equal(evaluate(backed, reference, preset="quick").summary, quick.summary)


def test_contexts_are_scored_one_by_one_and_averaged(two_contexts, task, keys):
    prediction, truth = two_contexts
    both = evaluate(prediction, truth, baseline="control", preset="vcc2025", **keys)
    alone = {}
    for context in ("rep_2", "rep_3"):
        here = [adata[adata.obs[task.context_key] == context].copy() for adata in two_contexts]
        alone[context] = evaluate(*here, baseline="control", preset="vcc2025", **keys)
    for context, result in alone.items():
        pd.testing.assert_frame_equal(both.per_perturbation.loc[[context]], result.per_perturbation, check_exact=True)
        assert both.vcc["by_context"][context] == result.vcc["overall"]
    mean = np.mean([result.summary["value"] for result in alone.values()], axis=0)
    np.testing.assert_allclose(both.summary["value"], mean)
    assert both.vcc["overall"] == pytest.approx(np.mean([r.vcc["overall"] for r in alone.values()]))


def test_labels_are_needed_with_plain_data_and_must_agree_with_a_reference(task, predicted, reference):
    with pytest.raises(ValueError, match="needs perturbation_key"):
        evaluate(predicted, task.held_out)
    with pytest.raises(ValueError, match="control='DMSO' contradicts the reference"):
        evaluate(predicted, reference, control="DMSO")
    with pytest.raises(ValueError, match="Give the training data to the reference"):
        evaluate(predicted, reference, train=task.train)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "best"}, "no preset 'best'.*choose one of"),
        ({"baseline": "best"}, "no baseline 'best'.*choose one of"),
        ({"baseline": "ridge"}, "needs perturbation embeddings"),
        ({"control_cells": "both"}, '"real" or "predicted"'),
        ({"preset": "vcc2026", "control_cells": "predicted"}, "observed controls on both sides"),
    ],
)
def test_unknown_options_are_refused(predicted, reference, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(predicted, reference, **options)


def test_the_default_baseline_needs_training_data(task, keys, predicted):
    with pytest.raises(ValueError, match="pass train="):
        evaluate(predicted, task.held_out, **keys)


# baselines, ceiling, intervals, strata


def test_the_summary_puts_value_baseline_ceiling_and_share_side_by_side(result):
    row = result.summary.loc["discrimination_score_l1"]
    assert row["baseline"] < row["value"] < row["ceiling"]
    assert row["scaled"] == pytest.approx((row["value"] - row["baseline"]) / (row["ceiling"] - row["baseline"]))
    error = result.summary.loc["mae"]
    assert error["ceiling"] < error["value"] < error["baseline"]
    assert 0 < error["scaled"] < 1


def test_diagnostics_have_no_share(result):
    diagnostics = ["effect_size_ratio", "variance_ratio", "zero_fraction_difference", "nsig_ratio"]
    assert result.summary.loc[diagnostics, "scaled"].isna().all()


def test_ratios_tell_what_a_good_prediction_looks_like(result):
    value = result.summary["value"]
    assert value["variance_ratio"] == pytest.approx(1, abs=0.1)
    assert value["zero_fraction_difference"] == pytest.approx(0, abs=0.05)
    assert 0.5 < value["nsig_ratio"] < 2


def test_a_prediction_or_a_result_can_be_the_baseline(task, keys, predicted, reference, quick):
    other = baseline_prediction("train_mean", task.held_out, task.train, **keys)
    by_name = quick.summary["baseline"]
    by_cells = evaluate(predicted, reference, preset="quick", baseline=other).summary["baseline"]
    pd.testing.assert_series_equal(by_cells, by_name)
    with pytest.warns(EvaluationWarning):
        made = evaluate(other, reference, preset="quick")
    by_result = evaluate(predicted, reference, preset="quick", baseline=made).summary["baseline"]
    pd.testing.assert_series_equal(by_result, by_name)


def test_a_result_of_other_settings_cannot_be_the_baseline(predicted, reference, result):
    with pytest.raises(ValueError, match=r"differs from this evaluation in \['preset'\]"):
        evaluate(predicted, reference, preset="quick", baseline=result)


def test_without_baseline_and_ceiling_only_values_are_given(task, keys, predicted):
    bare = EvaluationReference.from_adata(task.held_out, ceiling=False, **keys)
    result = evaluate(predicted, bare, preset="quick", baseline=None)
    assert result.summary[["baseline", "ceiling", "scaled"]].isna().all(axis=None)
    assert result.summary["value"].notna().all()
    assert result.vcc is None


def test_intervals_hold_the_value_and_narrow_with_more_perturbations(result):
    table = result.summary
    table = table[~table.index.isin(["de_spearman_sig"])]
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    scored = table["scaled"].notna()
    assert (table.loc[scored, "scaled_low"] <= table.loc[scored, "scaled"]).all()
    assert (table.loc[scored, "scaled"] <= table.loc[scored, "scaled_high"]).all()


def test_a_score_of_the_whole_panel_has_no_interval_and_no_strata(predicted, reference):
    result = evaluate(predicted, reference, preset="full")
    whole = ["de_spearman_sig", "pearson_edistance", "clustering_agreement"]
    assert result.summary.loc[whole, "value"].notna().all()
    assert result.summary.loc[whole, ["low", "high", "scaled_low", "scaled_high"]].isna().all(axis=None)
    assert not set(whole) & {metric for metric, _ in result.strata()}


def test_the_bootstrap_agrees_with_the_standard_error():
    from scvi_tahoe.evaluate._summary import bootstrap_means, interval

    index = pd.MultiIndex.from_product([["one"], range(400)], names=["context", "perturbation"])
    scores = pd.DataFrame({"score": np.random.default_rng(0).normal(size=400)}, index=index)
    low, high = interval(bootstrap_means([scores])[0])
    assert high[0] - low[0] == pytest.approx(2 * 1.96 * scores["score"].std() / 20, rel=0.1)


def test_the_energy_distance_lies_between_baseline_and_replicates(predicted, reference):
    row = evaluate(predicted, reference, preset="full").summary.loc["energy_distance"]
    assert row["ceiling"] < row["value"] < row["baseline"]


# the truth's side, computed once


@pytest.fixture
def cached(task, keys, tmp_path):
    return lambda: EvaluationReference.from_adata(
        task.held_out, baseline_from=task.train, cache_dir=tmp_path / "cache", **keys
    )


def counting(monkeypatch):
    from scvi_tahoe.evaluate import _context_truth

    calls = []
    real = _context_truth.differential_expression
    monkeypatch.setattr(_context_truth, "differential_expression", lambda *a, **k: calls.append(1) or real(*a, **k))
    return calls


def test_a_second_model_costs_one_test_of_its_own_cells(predicted, cached, monkeypatch):
    calls = counting(monkeypatch)
    reference = cached()
    first = evaluate(predicted, reference, preset="vcc2025")
    assert len(calls) == 5  # observed, predicted, baseline, two halves
    calls.clear()
    second = evaluate(predicted, reference, preset="vcc2025")
    assert len(calls) == 1
    from_disk = evaluate(predicted, cached(), preset="vcc2025")
    assert len(calls) == 2
    for other in (second, from_disk):
        pd.testing.assert_frame_equal(other.summary, first.summary)
        pd.testing.assert_frame_equal(other.per_perturbation, first.per_perturbation)


def test_progress_is_shown_with_the_time_left_when_it_is_asked_for(predicted, task, keys, capfd):
    for progress in (False, True):
        reference = EvaluationReference.from_adata(task.held_out, ceiling=False, progress=progress, **keys)
        evaluate(predicted, reference, preset="vcc2025", baseline=None)
        shown = capfd.readouterr().err
        assert ("Differential expression: 100%" in shown) is progress  # of the prediction
        assert ("differential expression (against reference): 100%" in shown) is progress  # of the truth, by pdex
        assert not progress or "perturbation/s" in shown
        assert "Iterating over perturbations" not in shown  # cell-eval's own


def test_damaged_and_stale_tables_are_computed_again(predicted, cached, tmp_path, monkeypatch):
    first = evaluate(predicted, cached(), preset="vcc2025")
    tables = sorted((tmp_path / "cache").glob("*.parquet"))
    assert len(tables) == 3
    tables[0].write_bytes(tables[0].read_bytes()[:-7])  # cut
    content = bytearray(tables[1].read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    tables[1].write_bytes(bytes(content))
    tables[2].with_suffix(".json").write_text("no JSON")
    again = evaluate(predicted, cached(), preset="vcc2025")
    pd.testing.assert_frame_equal(again.summary, first.summary)
    # another release: none of the tables is used
    from scvi_tahoe.evaluate import _context_truth, _reference

    for module in (_context_truth, _reference):
        monkeypatch.setattr(module, "installed_versions", lambda: {"cell-eval": "0.0.0"})
    calls = counting(monkeypatch)
    evaluate(predicted, cached(), preset="vcc2025")
    assert len(calls) == 5


@pytest.mark.parametrize("side", ["held_out", "train"])
def test_data_that_changed_in_place_since_they_were_read_are_refused(task, keys, predicted, side):
    sides = {"held_out": task.held_out.copy(), "train": task.train.copy()}
    reference = EvaluationReference.from_adata(sides["held_out"], baseline_from=sides["train"], **keys)
    evaluate(predicted, reference, preset="quick")
    sides[side].X.data *= 2  # what scanpy's normalisation does
    with pytest.raises(ValueError, match="changed in place since it was made"):
        evaluate(predicted, reference, preset="quick")


def test_a_table_under_the_name_of_another_is_not_trusted(predicted, cached, tmp_path):
    first = evaluate(predicted, cached(), preset="vcc2025")
    one, two, three = sorted((tmp_path / "cache").glob("*.parquet"))
    for source, target in ((one, two), (two, three), (three, one)):
        for suffix in (".parquet", ".json"):
            target.with_suffix(suffix + "~").write_bytes(source.with_suffix(suffix).read_bytes())
    for path in (one, two, three):
        for suffix in (".parquet", ".json"):
            path.with_suffix(suffix + "~").replace(path.with_suffix(suffix))
    again = evaluate(predicted, cached(), preset="vcc2025")
    pd.testing.assert_frame_equal(again.summary, first.summary)


def test_another_truth_is_another_entry(task, keys):
    one = EvaluationReference.from_adata(task.held_out, **keys)
    changed = task.held_out.copy()
    changed.X = changed.X.copy()
    changed.X.data[0] += 0.25
    assert EvaluationReference.from_adata(changed, **keys).fingerprint != one.fingerprint
    assert EvaluationReference.from_adata(task.held_out.copy(), **keys).fingerprint == one.fingerprint


def test_provenance_names_what_decides_about_scores(result):
    origin = result.provenance
    assert origin["versions"]["cell-eval"]
    assert origin["control_cells"] == "real"
    assert len(origin["truth"]) > 64
    assert origin["contexts"] == ["rep_3"]


def test_a_few_cells_have_no_ceiling(task, keys, predicted):
    one_each = task.held_out.obs.groupby(task.perturbation_key, observed=True).head(1).index
    tiny = task.held_out[one_each].copy()
    with pytest.warns(EvaluationWarning), pytest.raises(ValueError, match="too few cells to split"):
        evaluate(predicted, tiny, baseline=None, preset="quick", **keys)


def test_combinations_of_genes_are_perturbations_like_others():
    screen = norman_k562()
    screen = screen[screen.obs["perturbation"].isin(["control", "KLF1+TGFBR2", "KLF1"])]
    result = evaluate(
        screen[screen.obs["perturbation"] != "control"].copy(),
        screen.copy(),
        perturbation_key="perturbation",
        control="control",
        baseline="control",
        preset="quick",
    )
    assert result.summary.loc["mae", "value"] == 0
