"""Conditions as points, and gene sets that they move."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_tahoe import TahoeST
from scvi_tahoe.effects import condition_embedding, gene_set_scores


def test_a_model_embeds_its_conditions_with_their_support(screen_model):
    found = screen_model.get_condition_embedding(n_components=5)
    assert found.shape == (20, 5)
    assert {"perturbation", "context", "condition", "support", "effect_size"} <= set(found.obs)
    np.testing.assert_array_equal(found.X, found.obsm["X_pca"])
    # a perturbation lies nearer to itself in the other context than to others
    apart = np.linalg.norm(found.X[:, None] - found.X[None], axis=-1)
    same = found.obs["perturbation"].to_numpy()[:, None] == found.obs["perturbation"].to_numpy()[None]
    other_context = found.obs["context"].to_numpy()[:, None] != found.obs["context"].to_numpy()[None]
    assert np.median(apart[same & other_context]) < np.median(apart[~same & other_context]) / 2


def test_a_model_that_is_not_trained_learns_once_and_refuses_before_it_learns(screen_model, monkeypatch):
    screen_model.predict_effects()

    def learn(*args, **kwargs):
        raise AssertionError("learned anew")

    monkeypatch.setattr("scvi_tahoe.model._predict.learn_prior", learn)
    screen_model.get_condition_embedding()
    again = TahoeST(screen_model.adata, size="mini")
    with pytest.raises(ValueError, match="no perturbation 'unknown'"):
        again.predict_effects(perturbations=["unknown"])


def test_distances_are_those_of_the_changes_relative_to_their_context(table_of):
    changes = np.random.default_rng(0).normal(size=(6, 10))
    effects = table_of(changes, line=["x"] * 3 + ["y"] * 3)
    plain = condition_embedding(effects, center_contexts=False)
    assert np.linalg.norm(plain.X[0] - plain.X[4]) == pytest.approx(np.linalg.norm(changes[0] - changes[4]), rel=1e-5)
    shifted = table_of(changes + np.repeat([[0.0], [5.0]], 3, axis=0), line=["x"] * 3 + ["y"] * 3)
    found, moved = (condition_embedding(one, context_key="line").X for one in (effects, shifted))
    np.testing.assert_allclose(np.abs(moved), np.abs(found), atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [(np.eye(2, 4), "three or more"), (np.ones((4, 3)), "nothing to tell them apart")],
    ids=["two conditions", "all alike"],
)
def test_what_cannot_be_laid_out_is_refused(table_of, changes, message):
    with pytest.raises(ValueError, match=message):
        condition_embedding(table_of(changes, gene=list(range(len(changes)))))


def test_the_set_that_moves_has_the_score_of_its_mean_and_a_small_p_value(table_of):
    changes = np.random.default_rng(0).normal(0, 0.1, (2, 60))
    changes[0, :10] += 0.5
    effects = table_of(changes, sd=0.1, gene=["A", "B"])
    sets = {"moves": [f"gene_{i}" for i in range(10)] + ["unknown"], "rests": [f"gene_{i}" for i in range(20, 30)]}
    found = gene_set_scores(effects, {**sets, "tiny": ["gene_0"]})
    assert found.var["n_genes"].to_dict() == {"moves": 10, "rests": 10}
    assert found.X[0, 0] == pytest.approx(effects.X[0, :10].mean() - effects.X[0].mean(), abs=1e-6)
    assert found.layers["sd"][0, 0] == pytest.approx(0.1 / np.sqrt(10), rel=1e-4)
    assert found.layers["fdr"][0, 0] < 1e-4 < found.layers["fdr"][1, 0]
    with pytest.raises(ValueError, match="the most is 10"):
        gene_set_scores(effects, sets, min_genes=11)
