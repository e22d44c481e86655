"""Populations are drawn on one map, each in its own panel."""

from __future__ import annotations

import anndata as ad
import pytest

from scvi_tahoe import datasets, pl
from scvi_tahoe.pl._umap import _drawn


@pytest.fixture(scope="module")
def cells():
    adata = datasets.simulate_screen(1, 3, n_genes=30, n_cells=20, n_control_cells=20, seed=0)
    odd = adata.obs["perturbation"].groupby(adata.obs["perturbation"], observed=True).cumcount() % 2 == 1
    return {"observed": adata[~odd.to_numpy()], "predicted": adata[odd.to_numpy()]}


def test_each_population_has_a_panel_with_the_same_axes_and_one_legend(cells):
    # only the drawing: making the map compiles for half a minute, and the tutorials do it
    labels = sorted(set(cells["observed"].obs["perturbation"]) - {"control"})[:2]
    both = ad.concat(cells, label="population")
    both = both[both.obs["perturbation"].isin(labels)]
    observed, predicted = _drawn(both.X.toarray()[:, :2], both.obs, "perturbation", labels).axes
    assert [ax.get_title() for ax in (observed, predicted)] == ["observed (20 cells)", "predicted (20 cells)"]
    assert observed.get_xlim() == predicted.get_xlim()
    assert observed.get_legend() is None
    assert [t.get_text() for t in predicted.get_legend().get_texts()] == labels


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        pytest.param({"color": "target"}, KeyError, "observed: obs has no column 'target'", id="column"),
        pytest.param({"labels": []}, ValueError, "0 labels to draw", id="no labels"),
        pytest.param({"labels": ["Z"]}, ValueError, "observed has no cell with one of the labels", id="unknown label"),
    ],
)
def test_a_map_needs_labels_that_exist(cells, options, error, message):
    with pytest.raises(error, match=message):
        pl.umap(cells, **{"color": "perturbation", **options})
