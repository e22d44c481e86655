"""Every formula on a constructed case whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest

from scvi_tahoe.datasets import simulate_screen
from scvi_tahoe.evaluate import (
    GroupStatistics,
    centroid_accuracy,
    discrimination_score_l1,
    effect_size_ratio,
    energy_distance,
    evaluate,
    gene_weights,
    pds_cosine,
    pearson,
    r2_weighted,
    wmse,
)
from scvi_tahoe.evaluate._metrics import Comparison, computed_metrics

NO_TARGET = np.array([-1, -1, -1])
EFFECTS = np.array([[3.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 1.0, 0]])


def statistics(mean, variance=None, n_cells=50):
    mean = np.asarray(mean, float)
    variance = np.full(mean.shape, 0.1) if variance is None else variance
    zeros = np.zeros(mean.shape)
    control = np.zeros(mean.shape[1])
    n = np.full(len(mean), n_cells)
    return GroupStatistics(tuple("abc"[: len(mean)]), mean, variance, zeros, n, control, control + 0.1, control, 50)


def effect_metrics(observed, predicted, genes, weights):
    return computed_metrics(
        Comparison(observed, predicted, genes, weights), lambda m: not (m.needs_de or m.needs_cells)
    )


def test_the_truth_itself_has_the_best_discrimination():
    for score in (discrimination_score_l1, pds_cosine):
        np.testing.assert_array_equal(score(EFFECTS, EFFECTS, NO_TARGET), [1, 1, 1])
    np.testing.assert_array_equal(centroid_accuracy(EFFECTS, EFFECTS), [1, 1, 1])


def test_a_prediction_of_its_neighbours_effect_is_ranked_behind_it():
    swapped = EFFECTS[[1, 0, 2]]
    np.testing.assert_allclose(discrimination_score_l1(swapped, EFFECTS, NO_TARGET), [1 / 3, 1 / 3, 1])
    np.testing.assert_allclose(pds_cosine(swapped, EFFECTS, NO_TARGET), [0.25, 0.25, 1])
    np.testing.assert_allclose(centroid_accuracy(swapped, EFFECTS), [0, 0, 1])


def test_no_predicted_change_is_at_chance_in_cosine_discrimination():
    np.testing.assert_array_equal(pds_cosine(np.zeros((3, 4)), EFFECTS, NO_TARGET), [0.5, 0.5, 0.5])


def test_cosine_discrimination_ignores_the_size_of_effects_and_l1_does_not():
    noisy = EFFECTS + np.random.default_rng(0).normal(0, 0.5, EFFECTS.shape)
    np.testing.assert_array_equal(pds_cosine(noisy, EFFECTS, NO_TARGET), pds_cosine(9 * noisy, EFFECTS, NO_TARGET))
    small, large = (discrimination_score_l1(k * noisy, EFFECTS, NO_TARGET).mean() for k in (0.01, 1))
    assert small < large


def test_l1_leaves_out_the_own_target_and_cosine_the_targets_of_all():
    # perturbation 0 is given away by its own target gene 0 alone
    observed = np.array([[5.0, 0, 1], [0, 0, 1.2]])
    prediction = np.array([[5.0, 0, 1.2], [0, 0, 1.2]])
    with_target, without = (discrimination_score_l1(prediction, observed, np.array(t))[0] for t in ([-1, -1], [0, -1]))
    assert with_target == 1
    assert without == 0.5
    np.testing.assert_array_equal(pds_cosine(prediction, observed, np.array([0, -1])), [0.5, 0.5])


def test_one_perturbation_has_nothing_to_be_told_apart_from():
    assert np.isnan(pds_cosine(EFFECTS[:1], EFFECTS[:1], NO_TARGET[:1])).all()
    assert np.isnan(centroid_accuracy(EFFECTS[:1], EFFECTS[:1])).all()


def test_pearson_is_missing_where_a_side_is_constant():
    constant = np.full((3, 4), 0.1)
    assert np.isnan(pearson(constant, EFFECTS)).all()
    np.testing.assert_allclose(pearson(2 * EFFECTS + 1, EFFECTS), 1)
    np.testing.assert_allclose(pearson(-EFFECTS, EFFECTS), -1)


def test_weights_sum_to_one_and_stand_on_the_genes_that_differ():
    weights = gene_weights(statistics(EFFECTS))
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_array_equal(weights.argmax(axis=1), [0, 1, 2])
    # t scores are proportional to differences from the mean of the others here, then scaled to 0-1 and squared
    np.testing.assert_allclose(gene_weights(statistics([[1.0, 0.5, 0], [0, 0, 0]]))[0, 2], 0)


def test_weights_are_the_squared_scores_of_scanpys_test_against_the_rest():
    import anndata
    import pandas as pd
    import scanpy as sc

    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], [40, 60, 25])
    rate = 1 + 2 * (labels == "b")[:, None] * (np.arange(30) < 5)
    cells = np.log1p(rng.poisson(rate)).astype(np.float32)
    groups = [cells[labels == name].astype(float) for name in "abc"]
    mean, variance = (
        np.stack([f(group) for group in groups]) for f in (lambda x: x.mean(0), lambda x: x.var(0, ddof=1))
    )
    weights = gene_weights(statistics(mean, variance, n_cells=[40, 60, 25]))

    genes = [f"gene_{i}" for i in range(30)]
    adata = anndata.AnnData(cells, obs=pd.DataFrame({"label": pd.Categorical(labels)}), var=pd.DataFrame(index=genes))
    adata.obs_names = [str(i) for i in range(125)]
    sc.tl.rank_genes_groups(adata, "label", method="t-test_overestim_var", reference="rest")
    for row, name in enumerate("abc"):
        table = sc.get.rank_genes_groups_df(adata, name).set_index("names").loc[genes]
        score = np.abs(table["scores"].to_numpy())
        theirs = ((score - score.min()) / (score.max() - score.min())) ** 2
        np.testing.assert_allclose(weights[row], theirs / theirs.sum(), rtol=1e-4, atol=1e-7)


def test_weights_are_equal_where_no_gene_stands_out():
    np.testing.assert_allclose(gene_weights(statistics(np.ones((2, 4)))), 0.25)


def test_weights_of_a_single_perturbation_come_from_the_controls():
    assert gene_weights(statistics(EFFECTS[:1])).argmax() == 0


def test_weighted_error_counts_where_the_weight_is():
    weights = np.array([[1.0, 0], [0.5, 0.5]])
    error = wmse(np.array([[1.0, 9], [1, 3]]), np.zeros((2, 2)), weights)
    np.testing.assert_allclose(error, [1, 5])


def test_weighted_r2_is_one_for_the_truth_and_zero_for_its_weighted_mean():
    weights = np.full((3, 4), 0.25)
    np.testing.assert_allclose(r2_weighted(EFFECTS, EFFECTS, weights), 1)
    mean = np.repeat((weights * EFFECTS).sum(axis=1, keepdims=True), 4, axis=1)
    np.testing.assert_allclose(r2_weighted(mean, EFFECTS, weights), 0)
    assert np.isnan(r2_weighted(EFFECTS, np.ones((3, 4)), weights)).all()


def test_effect_size_ratio_tells_inflation():
    np.testing.assert_allclose(effect_size_ratio(3 * EFFECTS, EFFECTS), 3)
    assert np.isnan(effect_size_ratio(EFFECTS, np.zeros((3, 4)))).all()


def test_energy_distance_of_two_points_is_twice_their_distance():
    x, y = np.zeros((5, 2)), np.tile([3.0, 4.0], (7, 1))
    assert energy_distance(x, y) == pytest.approx(10)
    assert energy_distance(x, x) == 0


def test_energy_distance_sees_a_change_of_spread_that_means_do_not():
    rng = np.random.default_rng(0)
    narrow, wide = rng.normal(0, 1, (400, 3)), rng.normal(0, 3, (400, 3))
    assert energy_distance(narrow, wide) > 20 * energy_distance(narrow, rng.normal(0, 1, (400, 3)))


def test_systema_gives_nothing_for_a_shift_that_all_perturbations_share():
    shared = np.array([4.0, 4.0, 0, 0, 0, 0])
    own = np.array([[0, 0, 1.0, -1.0, 0, 0], [0, 0, -1.0, 1.0, 0, 0]])
    observed = statistics(shared + own)

    def systema(mean):
        scores = effect_metrics(observed, statistics(mean), np.array(list("uvwxyz")), np.full((2, 6), 1 / 6))
        return scores[["pearson_delta", "pearson_systema"]].to_numpy()

    np.testing.assert_allclose(systema(shared + own), 1)
    np.testing.assert_allclose(systema(shared - own)[:, 1], -1)
    for_all = systema(np.stack([shared, shared]))
    assert (for_all[:, 0] > 0.9).all()  # against controls the shared shift looks like a good prediction
    assert np.isnan(for_all[:, 1]).all()
    # a wrong own effect on top of the right shared one: still good against controls, no agreement beyond the mean
    other = np.array([[0, 0, 0, 0, 1.0, -1.0], [0, 0, 0, 0, -1.0, 1.0]])
    assert (systema(shared + other)[:, 0] > 0.9).all()
    np.testing.assert_allclose(systema(shared + other)[:, 1], 0, atol=1e-12)


def test_diagnostics_of_spread_and_zeros_are_ratio_and_difference():
    observed = statistics(EFFECTS)
    predicted = replace(
        statistics(EFFECTS, variance=np.array([[0.4], [0.1], [0.0]]) * np.ones((1, 4))),
        zero_fraction=np.array([[0.3], [0.0], [0.1]]) * np.ones((1, 4)),
    )
    scores = effect_metrics(observed, predicted, np.array(list("wxyz")), np.full((3, 4), 0.25))
    np.testing.assert_allclose(scores["variance_ratio"], [2, 1, 0])  # of standard deviations
    np.testing.assert_allclose(scores["zero_fraction_difference"], [0.3, 0, 0.1])
    np.testing.assert_allclose(scores["effect_size_ratio"], 1)


def cells_with_changes(changed, seed):
    """Forty cells a perturbation over ten genes; genes of ``changed`` are far above the controls."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(["control", *changed], 40)
    matrix = rng.uniform(1, 2, (len(labels), 10)).astype(np.float32)
    for label, genes in changed.items():
        matrix[np.ix_(labels == label, genes)] += 3
    obs = pd.DataFrame({"target": labels}, index=[f"cell_{i}" for i in range(len(labels))])
    return anndata.AnnData(matrix, obs=obs)


def test_the_ratio_of_de_counts_counts_genes_on_both_sides():
    truth = cells_with_changes({"a": [0, 1, 2, 3], "b": [4, 5], "c": []}, seed=0)
    prediction = cells_with_changes({"a": [0, 9], "b": [4, 5, 6, 7], "c": [1]}, seed=0)
    result = evaluate(
        prediction,
        truth,
        perturbation_key="target",
        control="control",
        baseline=None,
        preset="vcc2025",
        representation_check="off",
    )
    scores = result.per_perturbation.droplevel("context")
    assert scores["n_de_observed"].tolist() == [4, 2, 0]
    assert scores["n_de_predicted"].tolist() == [2, 4, 1]
    np.testing.assert_array_equal(scores["nsig_ratio"], [0.5, 2, np.nan])


def test_the_floor_of_the_energy_distance_is_that_of_a_replicate():
    screen = simulate_screen(1, 5, n_genes=60, n_cells=200, n_control_cells=100, seed=4)
    odd = np.arange(screen.n_obs) % 2 == 1
    control = (screen.obs["perturbation"] == "control").to_numpy()
    result = evaluate(
        screen[odd & ~control].copy(),
        screen[~odd | control].copy(),
        perturbation_key="perturbation",
        control="control",
        baseline="control",
        preset="full",
    )
    row = result.summary.loc["energy_distance"]
    assert row["value"] == pytest.approx(row["ceiling"], rel=0.2)
    assert row["baseline"] > 3 * row["ceiling"]
