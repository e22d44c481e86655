"""Every formula on a constructed case whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_tahoe.evaluate import (
    GroupStatistics,
    centroid_accuracy,
    discrimination_score_l1,
    effect_size_ratio,
    energy_distance,
    gene_weights,
    pds_cosine,
    pearson,
    r2_weighted,
    wmse,
)

NO_TARGET = np.array([-1, -1, -1])
EFFECTS = np.array([[3.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 1.0, 0]])


def statistics(mean, variance=None, n_cells=50):
    mean = np.asarray(mean, float)
    variance = np.full(mean.shape, 0.1) if variance is None else variance
    zeros = np.zeros(mean.shape)
    control = np.zeros(mean.shape[1])
    n = np.full(len(mean), n_cells)
    return GroupStatistics(tuple("abc"[: len(mean)]), mean, variance, zeros, n, control, control + 0.1, control, 50)


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


def test_cosine_discrimination_ignores_the_size_of_predictions_and_l1_does_not():
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


def test_weights_sum_to_one_and_stand_on_the_genes_that_make_the_difference():
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


def test_weights_of_a_single_perturbation_come_from_its_difference_to_controls():
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
