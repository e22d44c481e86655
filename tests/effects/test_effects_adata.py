"""Effects of a model as AnnData, and cells that a change needs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvi_tahoe.effects import cells_needed, effects_adata, interactions, power


@pytest.fixture(scope="module")
def tidy(screen_model):
    return screen_model.predict_effects()


def test_all_asks_for_every_row_of_the_table_as_predictions_of_cells_do(screen_model, tidy):
    found = screen_model.predict_effects(perturbations="all")
    assert set(found["perturbation"]) > set(tidy["perturbation"])


def test_effects_of_a_model_are_the_same_as_a_table_and_as_anndata(screen_model, tidy):
    effects = screen_model.predict_effects(as_adata=True)
    assert effects.shape == (len(tidy) // tidy["gene"].nunique(), tidy["gene"].nunique())
    np.testing.assert_array_equal(effects.X.ravel(), tidy["change"].to_numpy())
    np.testing.assert_array_equal(effects.layers["sd"].ravel(), tidy["sd"].to_numpy())
    assert {"perturbation", "context", "support"} <= set(effects.obs)
    assert effects.obs_names.is_unique
    assert effects.uns["scvi_tahoe_effects"]["perturbation_key"] == "perturbation"


def test_conditions_with_doses_are_named_as_they_are_asked_for():
    rows = [("A", 0.3, "x"), ("A", 10.0, "y")]
    table = pd.DataFrame(rows, columns=["drug", "dose", "line"]).assign(gene="g", change=1.0)
    keys = {"perturbation_key": "drug", "dose_key": "dose", "context_key": "line"}
    assert effects_adata(table, **keys).obs_names.tolist() == ["A@0.3 in x", "A@10 in y"]


def test_a_table_that_was_cut_is_refused(tidy):
    with pytest.raises(ValueError, match="same genes in the same order"):
        effects_adata(tidy.iloc[:-1])


def test_other_objects_and_values_are_refused(table_of):
    with pytest.raises(TypeError, match="effects is .*; allowed is AnnData"):
        interactions({"a": 1})
    with pytest.raises(ValueError, match="finite"):
        interactions(table_of(np.array([[np.nan]]), perturbation=["A"]), perturbation_key="perturbation")


def test_so_many_cells_find_a_change_with_the_power_asked_for():
    n = cells_needed(np.array([0.5, 1.0]), 0.25)
    assert n.tolist() == [32, 126]
    rng = np.random.default_rng(0)
    z = rng.normal(0.25, 0.5 / np.sqrt(32), 4000) / (0.5 / np.sqrt(32))
    assert (np.abs(z) > 1.96).mean() == pytest.approx(0.8, abs=0.03)


def test_cells_for_an_error_give_that_error_and_power_says_what_they_detect():
    sd = np.array([0.5, 1.0])
    assert cells_needed(sd, error=0.1).tolist() == [25, 100]
    table = power(sd[:1], [25, 32, 1000], change=0.25)
    assert table.loc[25, "error"] == pytest.approx(0.1)
    assert table.loc[32, "detected"] == pytest.approx(0.8, abs=0.01)
    assert table.loc[32, "smallest"] == pytest.approx(0.25, abs=0.01)
    assert table["detected"].is_monotonic_increasing
    assert power(sd, 100, change=0.25, n_controls=100)["error"].iloc[0] > power(sd, 100, change=0.25)["error"].iloc[0]


def test_genes_that_do_not_change_do_not_count():
    sd, change = np.array([0.5, 0.5, 1.0]), np.array([0.25, 0.0, 0.0])
    assert power(sd, 32, change=change)["detected"].iloc[0] == pytest.approx(0.8, abs=0.01)
    assert cells_needed(sd, change).tolist() == [32, np.inf, np.inf]


def test_few_controls_cost_cells_or_make_it_impossible():
    assert cells_needed(np.array([0.5, 1.0]), 0.25, n_controls=100).tolist() == [46, np.inf]


@pytest.mark.parametrize("bad", [{"power": 1}, {"level": 0}, {"change": 0}, {"sd": [-1]}, {"n_controls": 0}], ids=str)
def test_impossible_questions_are_refused(bad):
    with pytest.raises(ValueError, match="has to"):
        cells_needed(**({"sd": [1.0], "change": 0.1} | bad))


def test_a_change_or_an_error_is_given_and_cells_are_some():
    with pytest.raises(ValueError, match="one of change and error"):
        cells_needed([1.0])
    with pytest.raises(ValueError, match="one of change and error"):
        cells_needed([1.0], 0.1, error=0.1)
    with pytest.raises(ValueError, match="sd has 3 genes and change has 2"):
        power([1.0, 1.0, 1.0], 10, change=np.ones(2))
    with pytest.raises(ValueError, match="n_cells=0"):
        power([1.0], 0, change=0.1)
