"""Baselines see the training data and the controls, and reproduce published figures of the few-shot task."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scvi_tahoe.evaluate import BASELINES, EvaluationReference, baseline_prediction, baseline_results, quantile_map
from scvi_tahoe.evaluate._baseline_transfer import ridge_fit

#: PDS, MAE and Pearson delta of the few-shot task, computed by an independent script with cell-eval 0.8.2; the overall
#: score uses cell-eval's default, fold changes of log1p data
PUBLISHED = {
    "control": (0.569, 0.0393, -0.011, 0.0),
    "train_mean": (0.569, 0.0389, 0.188, 0.0),
    "context_transfer": (0.826, 0.0336, 0.413, 26.1),
    "cells_shifted": (0.854, 0.0329, 0.443, 28.9),
    "cells_quantile": (0.840, 0.0324, 0.470, 42.4),
}


@pytest.fixture(scope="module")
def results(reference):
    return baseline_results(reference, tuple(PUBLISHED), preset="vcc2025")


@pytest.mark.parametrize("name", PUBLISHED)
def test_baselines_reproduce_the_published_figures(results, name):
    pds, mae, pearson, overall = PUBLISHED[name]
    value = results[name].summary["value"]
    assert round(value["discrimination_score_l1"], 3) == pds
    assert round(value["mae"], 4) == mae
    assert round(value["pearson_delta"], 3) == pearson
    assert round(results[name].vcc["overall"], 1) == overall


def test_the_best_baseline_keeps_the_spread_of_real_cells(results):
    assert results["cells_quantile"].summary.loc["overlap_at_N", "value"] > 0.4
    assert results["cells_shifted"].summary.loc["overlap_at_N", "value"] < 0.1


def embedding(task):
    """A vector that says something: mean expression of the target's cells in the first replicate."""
    train = task.train[task.train.obs[task.context_key] == "rep_1"]
    labels = train.obs[task.perturbation_key].astype(str)
    return {p: np.asarray(train[labels == p].X.mean(axis=0)).ravel() for p in labels.unique()}


@pytest.mark.parametrize("name", BASELINES)
def test_no_baseline_looks_at_the_held_out_perturbed_cells(task, keys, name):
    other = task.held_out.copy()
    perturbed = (other.obs[task.perturbation_key] != task.control).to_numpy()
    changed = other.X.toarray()
    changed[perturbed, :5] = 3.0
    other.X = sp.csr_matrix(changed)
    table = embedding(task)
    first, second = (
        baseline_prediction(name, held_out, task.train, perturbation_embedding=table, seed=3, **keys)
        for held_out in (task.held_out, other)
    )
    np.testing.assert_array_equal(first.X, second.X)
    assert first.X.dtype == np.float32
    assert first.X.min() >= 0


def test_a_baseline_has_as_many_cells_of_each_condition_as_the_truth(task, keys, predicted):
    truth = task.held_out.obs[task.perturbation_key].value_counts().drop(task.control)
    pd.testing.assert_series_equal(
        predicted.obs[task.perturbation_key].value_counts().sort_index(),
        truth[truth > 0].sort_index(),
        check_names=False,
        check_index_type=False,
        check_categorical=False,
    )


def test_perturbations_seen_nowhere_get_the_mean_of_the_training_deltas(task, keys):
    unseen = task.train[~task.train.obs[task.perturbation_key].isin(task.targets)]
    for name in ("context_transfer", "cells_shifted", "cells_quantile"):
        cells = baseline_prediction(name, task.held_out, unseen, **keys)
        mean = baseline_prediction("train_mean", task.held_out, unseen, **keys)
        assert abs(np.asarray(cells.X).mean(axis=0) - np.asarray(mean.X).mean(axis=0)).max() < 0.1


def test_a_context_without_training_gets_the_mean_of_the_others(task, keys):
    train = task.train[task.train.obs[task.context_key] != task.context]
    mean = baseline_prediction("train_mean", task.held_out, train, **keys)
    nothing = baseline_prediction("control", task.held_out, **keys)
    assert abs(mean.X - nothing.X).max() > 0


def test_the_same_seed_gives_the_same_cells_and_another_gives_others(task, keys):
    first, again, other = (baseline_prediction("control", task.held_out, seed=s, **keys).X for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_baseline_from_training_data_needs_them(task, keys):
    with pytest.raises(ValueError, match="computed from training data"):
        baseline_prediction("train_mean", task.held_out, **keys)


def test_an_unknown_baseline_lists_the_known_ones(task, keys):
    with pytest.raises(ValueError, match="choose one of.*cells_quantile"):
        baseline_prediction("magic", task.held_out, **keys)


def test_embedding_baselines_need_an_embedding_of_every_perturbation(task, keys):
    with pytest.raises(ValueError, match="needs perturbation embeddings"):
        baseline_prediction("ridge", task.held_out, task.train, **keys)
    table = embedding(task)
    del table["MYC"]
    with pytest.raises(ValueError, match="have no embedding.*MYC"):
        baseline_prediction("nearest", task.held_out, task.train, perturbation_embedding=table, **keys)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"a": [1.0, 2], "b": [1.0]}, "different lengths"),
        ((["a", "a"], np.ones((2, 2))), "one row a label"),
        (pd.DataFrame([[np.nan]], index=["a"]), "must be finite"),
    ],
)
def test_a_bad_embedding_table_is_refused(task, keys, table, message):
    with pytest.raises(ValueError, match=message):
        EvaluationReference.from_adata(task.held_out, perturbation_embedding=table, **keys)


def test_ridge_finds_a_linear_rule_and_ignores_noise_dimensions():
    rng = np.random.default_rng(0)
    x, rule = rng.normal(size=(40, 6)), rng.normal(size=(6, 20))
    new = rng.normal(size=(5, 6))
    np.testing.assert_allclose(ridge_fit(x, x @ rule + 1, new), new @ rule + 1, atol=0.05)
    noise = rng.normal(size=(40, 20))
    assert np.abs(ridge_fit(x, noise, new) - noise.mean(axis=0)).mean() < 0.2


def test_ridge_on_constant_embeddings_gives_the_mean():
    y = np.arange(6.0).reshape(3, 2)
    np.testing.assert_allclose(ridge_fit(np.ones((3, 2)), y, np.ones((1, 2))), y.mean(axis=0)[None])


def test_quantile_mapping_between_equal_populations_changes_nothing():
    rng = np.random.default_rng(0)
    controls = np.sort(rng.gamma(2, 1, (500, 3)).astype(np.float32), axis=0)
    cells = controls[[5, 250, 400]]
    mapped = quantile_map(cells, controls, controls, rng.random(cells.shape))
    np.testing.assert_allclose(mapped, cells, rtol=0.02)


def test_quantile_mapping_scales_with_the_target_and_keeps_common_zeros():
    rng = np.random.default_rng(0)
    controls = rng.gamma(2, 1, (400, 2)).astype(np.float32) * (rng.random((400, 2)) < 0.5)
    cells = controls[:50]
    mapped = quantile_map(cells, controls, 2 * controls, rng.random(cells.shape))
    np.testing.assert_array_equal(mapped == 0, cells == 0)
    np.testing.assert_allclose(mapped, 2 * cells, atol=0.15)


def test_quantile_mapping_of_sparse_cells_is_that_of_dense_ones(task):
    controls = task.train[task.train.obs[task.perturbation_key] == task.control].X
    cells, source, target = controls[:20], controls[100:400], controls[600:1000]
    uniform = np.random.default_rng(0).random(cells.shape)
    dense = quantile_map(cells.toarray(), source.toarray(), target.toarray(), uniform)
    np.testing.assert_array_equal(quantile_map(cells, source, target, uniform), dense)
