"""Baselines see the training data and the controls, and reproduce published figures of the few-shot task."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scvi_tahoe.evaluate import BASELINES, EvaluationReference, baseline_prediction, evaluate, quantile_map
from scvi_tahoe.evaluate._arithmetic import ridge_fit
from scvi_tahoe.evaluate._exact_means import column_mean, scaled_to_mean

#: DES, PDS, MAE and Pearson delta of the few-shot task with all control cells scaled to the exact means, computed by an
#: independent script with cell-eval 0.8.2
EXACT = {
    "train_mean": (0.023, 0.549, 0.0331, 0.293),
    "context_transfer": (0.474, 0.847, 0.0275, 0.527),
    "deviation": (0.381, 0.847, 0.0266, 0.581),
}


@pytest.fixture(scope="module")
def as_given(task, keys):
    """Evaluate a baseline with all control cells, none of them drawn."""
    reference = EvaluationReference.from_adata(task.held_out, baseline_from=task.train, ceiling=False, **keys)

    def as_given(name):
        cells = baseline_prediction(name, task.held_out, task.train, n_cells="all", **keys)
        return cells, evaluate(cells, reference, match_cells=False, baselines=False)

    return as_given


@pytest.mark.parametrize("name", EXACT)
def test_exact_baselines_reproduce_the_figures_of_an_independent_script(as_given, task, name):
    cells, result = as_given(name)
    n_controls = (task.held_out.obs[task.perturbation_key] == task.control).sum()
    assert cells.n_obs == n_controls * len(task.targets)
    value = result.summary["value"]
    metrics = ("discrimination_score_l1", "mae", "pearson_delta")
    assert tuple(round(value[metric], digits) for metric, digits in zip(metrics, (3, 4, 3))) == EXACT[name][1:]
    if name != "deviation":
        assert round(value["overlap_at_N"], 3) == EXACT[name][0]
        return
    # the script tested with fold changes of the logarithms, which orders genes otherwise for one of the twelve targets
    assert round(value["overlap_at_N"], 3) == 0.464
    assert _des_of_the_script(cells, task) == EXACT[name][0]


def _des_of_the_script(cells, task):
    from cell_eval import initialize_de_comparison
    from pdex import pdex

    controls = task.held_out[task.held_out.obs[task.perturbation_key] == task.control]
    sides = {}
    for name, side in (("real", task.held_out), ("pred", anndata.concat([cells, controls]))):
        side = side.copy()
        side.obs_names_make_unique()
        side.obs[task.perturbation_key] = side.obs[task.perturbation_key].astype(str).astype("category")
        side.X = side.X.toarray() if sp.issparse(side.X) else np.asarray(side.X)
        options = {"groupby": task.perturbation_key, "reference": task.control, "is_log1p": False, "epsilon": 0.0}
        sides[name] = pdex(side, mode="ref", threads=1, **options)
    found = initialize_de_comparison(**sides).compute_overlap(k=None, fdr_threshold=0.05)
    return round(float(np.mean(list(found.values()))), 3)


def test_the_means_of_a_baseline_are_exact_for_any_number_of_cells(task, keys):
    few, every = (
        baseline_prediction("deviation", task.held_out, task.train, n_cells=n, **keys) for n in ("observed", "all")
    )
    for target in task.targets:
        one, other = (side[side.obs[task.perturbation_key] == target].X.mean(axis=0) for side in (few, every))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_chosen_controls_keep_their_zeros(task, keys):
    cells = baseline_prediction("train_mean", task.held_out, task.train, n_cells="all", **keys)
    controls = task.held_out[task.held_out.obs[task.perturbation_key] == task.control].X.toarray()
    zeros = (cells.X[: len(controls)] == 0).mean()
    assert zeros == pytest.approx((controls == 0).mean(), abs=0.01)


def test_scaling_gives_the_wanted_mean_even_to_a_gene_that_no_cell_expresses():
    rng = np.random.default_rng(0)
    cells = rng.poisson(1, (50, 4)).astype(np.float32)
    cells[:, 3] = 0
    wanted = np.array([0.5, 2.0, -1.0, 0.03])
    for form in (np.asarray, sp.csr_matrix):
        scaled = scaled_to_mean(form(cells), wanted, np.random.default_rng(1))
        np.testing.assert_allclose(column_mean(scaled), [0.5, 2, 0, 0.03], rtol=1e-5)
        assert scaled.max() < 15


def test_several_embedding_tables_have_baselines_of_their_own(task, keys, embedding):
    noise = {name: np.random.default_rng(i).normal(size=8) for i, name in enumerate(embedding)}
    tables = {"expression": embedding, "noise": noise}
    reference = EvaluationReference.from_adata(
        task.held_out, baseline_from=task.train, perturbation_embedding=tables, **keys
    )
    assert {"ridge:expression", "nearest:noise", "deviation"} <= set(reference.applicable_baselines)
    one, other = (reference.baseline_cells(f"ridge:{name}").expression for name in tables)
    assert abs(one - other).max() > 0
    with pytest.raises(ValueError, match="names an embedding table that was not given"):
        reference.baseline_cells("ridge:esm2")


def test_baselines_that_do_not_apply_are_left_out(task, keys):
    alone = task.train[task.train.obs[task.context_key] == task.context]
    known = [EvaluationReference.from_adata(task.held_out, baseline_from=train, **keys) for train in (None, alone)]
    assert known[0].applicable_baselines == ["control"]
    assert known[1].applicable_baselines == ["control", "train_mean"]


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
    options = {"perturbation_embedding": embedding, "combination_separator": "+", "seed": 3, **keys}
    first, second = (baseline_prediction(name, side, task.train, **options) for side in (task.held_out, other))
    np.testing.assert_array_equal(first.X, second.X)
    assert first.X.dtype == np.float32
    assert first.X.min() >= 0


def test_a_baseline_has_as_many_cells_of_each_condition_as_the_truth(task, keys, predicted):
    ours, truth = (adata.obs[task.perturbation_key].astype(str).value_counts() for adata in (predicted, task.held_out))
    assert ours.to_dict() == truth.drop(task.control).to_dict()


def test_conditions_seen_nowhere_get_the_mean_of_the_training_deltas(task, keys):
    unseen = task.train[~task.train.obs[task.perturbation_key].isin(task.targets)]
    for name in ("context_transfer", "deviation", "cells_shifted", "cells_quantile"):
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


@pytest.fixture(scope="module")
def pairs():
    """Combinations with known changes: A and B alone in both contexts, C in the first one alone."""
    changes = {"control": np.zeros(4), "A": np.array([1.0, 0, 0, 0]), "B": np.array([0, 1.0, 0, 0])}
    changes |= {"C": np.array([0, 0, 1.0, 0]), "A+B": np.full(4, 0.5), "A+C": np.full(4, 0.5), "A+D": np.full(4, 0.5)}
    contexts = {"x": 1.0, "y": 2.0}
    rows = [(p, c) for c in contexts for p in changes if (p, c) != ("C", "y") for _ in range(5)]
    cells = np.array([2 + contexts[c] * changes[p] for p, c in rows], dtype=np.float32)
    obs = pd.DataFrame(rows, columns=["gene", "line"], index=[f"{i}" for i in range(len(rows))])
    adata = anndata.AnnData(cells, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(4)]))
    together = adata.obs["gene"].str.contains("+", regex=False).to_numpy()
    held_out = adata[together | (adata.obs["gene"] == "control").to_numpy()].copy()
    return adata[~together].copy(), held_out, {"perturbation_key": "gene", "control": "control", "context_key": "line"}


def test_a_combination_is_the_sum_of_its_parts_here_or_else_elsewhere(pairs):
    train, held_out, keys = pairs
    found = baseline_prediction("additive", held_out, train, combination_separator="+", **keys)
    cells = pd.DataFrame(found.X, found.obs_names, found.var_names)
    x = cells.groupby([found.obs["gene"], found.obs["line"]]).mean() - 2
    np.testing.assert_allclose(x.loc[("A+B", "y")], [2, 2, 0, 0], atol=1e-6)
    np.testing.assert_allclose(x.loc[("A+C", "y")], [2, 0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(x.loc[("A+D", "y")], [1, 1, 0, 0], atol=1e-6)  # D is known nowhere: mean of the seen


def test_the_sum_of_the_parts_is_shown_where_combinations_are_scored(pairs):
    train, held_out, keys = pairs
    plain = EvaluationReference.from_adata(held_out, baseline_from=train, ceiling=False, **keys)
    composed = EvaluationReference.from_adata(
        held_out, baseline_from=train, ceiling=False, combination_separator="+", **keys
    )
    assert "additive" not in plain.applicable_baselines
    assert "additive" in composed.applicable_baselines
    with pytest.raises(ValueError, match="needs the text between the parts of a combination"):
        baseline_prediction("additive", held_out, train, **keys)
