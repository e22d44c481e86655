from __future__ import annotations

import numpy as np
import pytest
from anndata import read_h5ad

from scvi_tahoe.datasets import simulate_screen


def observed_delta(adata, context, perturbation):
    inside, label = (adata.obs["context"] == context).to_numpy(), adata.obs["perturbation"].to_numpy()
    perturbed, control = (adata.X[inside & (label == name)].mean(0) for name in (perturbation, "control"))
    return np.asarray(perturbed - control).ravel()


def test_every_context_has_all_perturbations_controls_and_batches():
    adata = simulate_screen(3, 5, n_genes=30, n_cells=7, n_control_cells=11, n_batches=2)
    groups = adata.obs.groupby(["context", "perturbation"], observed=False)
    assert adata.shape == (3 * (11 + 5 * 7), 30)
    assert set(groups.size().xs("control", level=1)) == {11}
    assert set(groups.size().drop("control", level=1)) == {7}
    assert (groups["batch"].nunique() == 2).all()


def test_x_is_log1p_of_the_counts_layer_normalised_to_1000():
    adata = simulate_screen(1, 2, n_genes=50)
    counts = adata.layers["counts"].toarray()
    expected = np.log1p(counts / counts.sum(1, keepdims=True) * 1000)
    np.testing.assert_allclose(adata.X.toarray(), expected, rtol=1e-5, atol=1e-6)


def test_observed_deltas_approach_the_true_ones():
    adata = simulate_screen(2, 3, n_cells=3000, n_control_cells=3000, seed=3)
    for context, truth in adata.uns["true_delta"].items():
        for perturbation in truth.index:
            observed = observed_delta(adata, context, perturbation)
            assert np.corrcoef(observed, truth.loc[perturbation])[0, 1] > 0.995
            assert np.abs(observed - truth.loc[perturbation]).max() < 0.12


def test_the_embedding_explains_true_effects_of_unseen_perturbations():
    adata = simulate_screen(1, 60, n_cells=1, n_control_cells=1, effect_size=0.3)
    table, truth = adata.uns["perturbation_embedding"], adata.uns["true_log_fold_change"]["context_1"]
    assert list(table.index) == list(truth.index)
    weights = np.linalg.lstsq(table[:40], truth[:40], rcond=None)[0]
    predicted = table[40:].to_numpy() @ weights
    assert np.corrcoef(predicted.ravel(), truth[40:].to_numpy().ravel())[0, 1] > 0.9


def test_the_seed_decides_the_screen():
    first, again, other = (simulate_screen(1, 2, n_genes=20, seed=s) for s in (1, 1, 2))
    assert (first.X != again.X).nnz == 0
    assert (first.X != other.X).nnz > 0
    np.testing.assert_array_equal(first.obsm["X_embedding"], again.obsm["X_embedding"])


def test_without_effects_the_true_deltas_are_zero():
    adata = simulate_screen(1, 3, n_genes=20, effect_size=0.0)
    assert np.abs(adata.uns["true_delta"]["context_1"]).to_numpy().max() < 1e-6


def additive_share(adata):
    """Share of the variance of log fold changes that is left when each perturbation has one effect in all contexts."""
    fold = np.stack([table.to_numpy() for table in adata.uns["true_log_fold_change"].values()])
    return 1 - np.square(fold - fold.mean(0)).mean() / fold.var()


@pytest.mark.parametrize("option", ["interaction", "nonlinearity"])
def test_contexts_differ_by_so_much_of_the_variance_and_nothing_else_of_the_screen_does(option):
    options = {"n_contexts": 8, "n_perturbations": 20, "n_cells": 2, "n_control_cells": 2, "effect_size": 0.3}
    plain, other = simulate_screen(**options), simulate_screen(**options, **{option: 0.4})
    assert additive_share(plain) > 0.85
    lost = additive_share(plain) - additive_share(other)
    # all of an interaction differs between contexts; what genes pass on depends on levels that contexts share in part
    assert 0.25 < lost < 0.42 if option == "interaction" else 0.03 < lost < 0.25
    np.testing.assert_array_equal(plain.uns["perturbation_embedding"], other.uns["perturbation_embedding"])
    folds = (np.stack(list(x.uns["true_log_fold_change"].values())).var() for x in (plain, other))
    assert next(folds) == pytest.approx(next(folds), rel=0.25)


def test_what_genes_pass_on_is_not_linear_in_the_activities():
    table, folds = None, {}
    for share in (0.0, 0.5):
        adata = simulate_screen(1, 60, n_cells=1, n_control_cells=1, effect_size=0.3, nonlinearity=share)
        table, truth = adata.uns["perturbation_embedding"], adata.uns["true_log_fold_change"]["context_1"]
        weights = np.linalg.lstsq(table[:40], truth[:40], rcond=None)[0]
        folds[share] = np.corrcoef((table[40:].to_numpy() @ weights).ravel(), truth[40:].to_numpy().ravel())[0, 1]
    assert folds[0.5] < folds[0.0] - 0.02


def test_a_screen_survives_h5ad(tmp_path):
    adata = simulate_screen(2, 3, n_genes=20)
    adata.write_h5ad(tmp_path / "screen.h5ad")
    again = read_h5ad(tmp_path / "screen.h5ad")
    np.testing.assert_array_equal(again.uns["true_delta"]["context_2"], adata.uns["true_delta"]["context_2"])
    assert list(again.uns["perturbation_embedding"].index) == list(adata.uns["perturbation_embedding"].index)


@pytest.mark.parametrize("name", ["n_contexts", "n_perturbations", "n_genes", "n_cells", "n_control_cells"])
def test_a_number_that_is_too_small_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name}=0 must be"):
        simulate_screen(**{name: 0})
    with pytest.raises(ValueError, match="n_embedding is 3; it must be 4 or more"):
        simulate_screen(n_embedding=3)
    with pytest.raises(ValueError, match="interaction=0.7 and nonlinearity=0.3 must be shares"):
        simulate_screen(interaction=0.7, nonlinearity=0.3)


@pytest.mark.parametrize("size", [{"n_genes": 10**12}, {"n_cells": 10**9}, {"n_embedding": 10**9}])
def test_a_screen_that_is_larger_than_memory_is_refused_before_anything_is_drawn(size):
    with pytest.raises(ValueError, match=r"of memory are left: at most [\d,]+ fit"):
        simulate_screen(**size)
