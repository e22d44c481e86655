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
    value = results[name].summary["value"]
    scores = [value[metric] for metric in ("discrimination_score_l1", "mae", "pearson_delta")]
    found = (
        *(round(score, digits) for score, digits in zip(scores, (3, 4, 3))),
        round(results[name].vcc["overall"], 1),
    )
    assert found == PUBLISHED[name]
    # the best baseline keeps the spread of real cells
    assert value["overlap_at_N"] > 0.4 if name == "cells_quantile" else value["overlap_at_N"] < 0.1


@pytest.fixture(scope="module")
def embedding(task):
    """A vector that says something: mean expression of the target's cells in the first replicate."""
    train = task.train[task.train.obs[task.context_key] == "rep_1"]
    labels = train.obs[task.perturbation_key].astype(str)
    return {p: np.asarray(train[labels == p].X.mean(axis=0)).ravel() for p in labels.unique()}


@pytest.mark.parametrize("name", BASELINES)
def test_no_baseline_looks_at_the_held_out_perturbed_cells(task, keys, embedding, name):
    other = task.held_out.copy()
    perturbed = (other.obs[task.perturbation_key] != task.control).to_numpy()
    changed = other.X.toarray()
    changed[perturbed, :5] = 3.0
    other.X = sp.csr_matrix(changed)
    options = {"perturbation_embedding": embedding, "seed": 3, **keys}
    first, second = (baseline_prediction(name, side, task.train, **options) for side in (task.held_out, other))
    np.testing.assert_array_equal(first.X, second.X)
    assert first.X.dtype == np.float32
    assert first.X.min() >= 0


def test_a_baseline_has_as_many_cells_of_each_condition_as_the_truth(task, keys, predicted):
    ours, truth = (adata.obs[task.perturbation_key].astype(str).value_counts() for adata in (predicted, task.held_out))
    assert ours.to_dict() == truth.drop(task.control).to_dict()


def test_conditions_seen_nowhere_get_the_mean_of_the_training_deltas(task, keys):
    unseen = task.train[~task.train.obs[task.perturbation_key].isin(task.targets)]
    for name in ("context_transfer", "cells_shifted", "cells_quantile"):
        cells = baseline_prediction(name, task.held_out, unseen, **keys)
        mean = baseline_prediction("train_mean", task.held_out, unseen, **keys)
        assert abs(np.asarray(cells.X).mean(axis=0) - np.asarray(mean.X).mean(axis=0)).max() < 0.1
    # and a context without training the mean of the others
    train = task.train[task.train.obs[task.context_key] != task.context]
    mean = baseline_prediction("train_mean", task.held_out, train, **keys)
    nothing = baseline_prediction("control", task.held_out, **keys)
    assert abs(mean.X - nothing.X).max() > 0


def test_the_same_seed_gives_the_same_cells_and_another_gives_others(task, keys):
    first, again, other = (baseline_prediction("control", task.held_out, seed=s, **keys).X for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_baseline_needs_what_it_is_computed_from(task, keys, embedding):
    lacking = {name: vector for name, vector in embedding.items() if name != "MYC"}
    for name, train, table, message in (
        ("magic", None, None, "choose one of.*cells_quantile"),
        ("train_mean", None, None, "computed from training data"),
        ("ridge", task.train, None, "needs perturbation embeddings"),
        ("nearest", task.train, lacking, "have no embedding.*MYC"),
    ):
        with pytest.raises(ValueError, match=message):
            baseline_prediction(name, task.held_out, train, perturbation_embedding=table, **keys)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        pytest.param({"a": [1.0, 2], "b": [1.0]}, "different lengths", id="lengths"),
        pytest.param((["a", "a"], np.ones((2, 2))), "one row a label", id="repeated label"),
        pytest.param(pd.DataFrame([[np.nan]], index=["a"]), "must be finite", id="NaN"),
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
    y = np.arange(6.0).reshape(3, 2)  # of constant embeddings
    np.testing.assert_allclose(ridge_fit(np.ones((3, 2)), y, np.ones((1, 2))), y.mean(axis=0)[None])


def test_quantile_mapping_scales_with_the_target_and_keeps_zeros():
    rng = np.random.default_rng(0)
    controls = np.sort(rng.gamma(2, 1, (500, 3)).astype(np.float32), axis=0)
    cells = controls[[5, 250, 400]]
    mapped = quantile_map(cells, controls, controls, rng.random(cells.shape))
    np.testing.assert_allclose(mapped, cells, rtol=0.02)  # equal populations
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
