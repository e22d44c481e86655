"""Our numbers are those of a direct call of cell-eval, to the last bit."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from cell_eval import MetricsEvaluator, metrics_registry

from scvi_tahoe.datasets import norman_k562
from scvi_tahoe.evaluate import evaluate
from scvi_tahoe.evaluate._differential_expression import usable_threads


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
    result = evaluate(*sides, baseline=None, **options)
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
    alone = evaluate(predicted, reference).per_perturbation
    theirs = ["overlap_at_N", "discrimination_score_l1", "mae", "n_de_observed", "n_de_predicted"]
    pd.testing.assert_frame_equal(alone[theirs], result.per_perturbation[theirs], check_exact=True)
    assert {name: dict(info.kwargs or {}) for name, info in metrics_registry.metrics.items()} == before


def test_the_truth_against_itself_is_perfect(task, keys):
    result = evaluate(task.held_out, task.held_out, baseline="control", preset="vcc2025", **keys)
    value = result.summary["value"]
    assert value["mae"] == 0
    assert value["discrimination_score_l1"] == 1
    # cell-eval gives 0 to perturbations without any differentially expressed gene
    assert value["overlap_at_N"] == pytest.approx((result.per_perturbation["n_de_observed"] > 0).mean())
