"""Perturbations of another screen as embedding rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scvi_tahoe.datasets import simulate_screen
from scvi_tahoe.response import effects_table


@pytest.fixture(scope="module")
def cells():
    return simulate_screen(n_contexts=2, n_perturbations=24, n_genes=60, seed=0)


def made(adata, **options):
    keys = {"perturbation_key": "perturbation", "context_key": "context", "control": "control", "progress": False}
    return effects_table(adata, **{**keys, **options})


def distances(values):
    values = np.asarray(values, dtype=float)
    apart = np.linalg.norm(values[:, None] - values[None], axis=-1)
    return apart[np.triu_indices(len(values), 1)]


def test_effects_of_cells_are_those_that_are_true(cells):
    table = made(cells)
    true = sum(cells.uns["true_delta"].values())
    assert table.index.tolist() == sorted(true.index)
    assert table.columns[0] == "effect_1"
    assert (np.diff(table.var().to_numpy()) <= 1e-9).all()
    assert np.corrcoef(distances(table), distances(true.loc[table.index]))[0, 1] > 0.95


def test_shrinking_noise_brings_effects_nearer_to_the_truth(cells):
    labels = sorted(set(cells.obs["perturbation"]) - {"control"})
    rare = cells.obs["perturbation"].isin(labels[::2]).to_numpy()
    few = cells[~rare | (np.random.default_rng(0).random(cells.n_obs) < 0.1)].copy()
    true = sum(cells.uns["true_delta"].values()).sort_index()
    mean = few.to_df().groupby([few.obs["context"], few.obs["perturbation"]], observed=True).mean()
    changes = mean - mean.xs("control", level="perturbation").reindex(mean.index.get_level_values(0)).to_numpy()
    changes = changes.drop("control", level="perturbation").reset_index()
    raw = AnnData(changes.iloc[:, 2:].to_numpy(), obs=changes[["context", "perturbation"]].astype(str).rename(str))
    fits = [np.corrcoef(distances(t), distances(true))[0, 1] for t in (made(few), made(raw, control=None))]
    assert fits[0] > fits[1]


def test_the_table_says_where_it_comes_from(cells):
    assert made(cells, licence="CC BY 4.0").attrs == {
        "kind": "effects in another screen", "source": "24 perturbations x 60 genes", "licence": "CC BY 4.0",
        "detail": "contexts: context_1, context_2",
    }  # fmt: skip
    assert made(cells).attrs["licence"] == "not stated; that of the screen applies"


def test_components_are_as_many_as_asked_for_or_as_there_are(cells):
    assert made(cells, n_components=3).shape == (24, 3)
    assert made(cells).shape[1] == 6  # one for every four perturbations


def test_a_table_of_changes_with_controls_of_zeros_is_taken_as_it_is():
    rng = np.random.default_rng(0)
    changes = np.vstack([np.zeros(8), rng.normal(size=(5, 2)) @ rng.normal(size=(2, 8))])
    obs = pd.DataFrame({"gene": ["control", "A", "B", "C", "D", "E"]}).rename(str)
    table = effects_table(AnnData(changes, obs=obs), perturbation_key="gene", control="control", progress=False)
    np.testing.assert_allclose(distances(table), distances(changes[1:]))


def test_means_of_expression_are_compared_with_their_controls():
    rng = np.random.default_rng(0)
    changes, base = rng.normal(size=(4, 2)) @ rng.normal(size=(2, 8)), {"x": 3.0, "y": 10.0}
    rows = [(label, c) for c in base for label in ["control", "A", "B", "C", "D"]]
    values = np.vstack([np.vstack([np.zeros(8), changes]) + v for v in base.values()])
    obs = pd.DataFrame(rows, columns=["perturbation", "context"]).rename(str)
    table = made(AnnData(values, obs=obs))
    np.testing.assert_allclose(distances(table), distances(changes), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        (lambda a: a[a.obs["perturbation"].isin(["control", "perturbation_01"])], {}, "1 perturbations; 3 or more"),
        (lambda a: a[(a.obs["perturbation"] != "control") | (a.obs["context"] == "context_1")], {}, "without controls"),
        (lambda a: a, {"n_components": 0}, "1 or more"),
        (lambda a: a, {"context_key": "line"}, "no column 'line'"),
    ],
)
def test_bad_input_is_one_line(cells, change, options, says):
    with pytest.raises((ValueError, KeyError), match=says):
        made(change(cells).copy(), **options)
