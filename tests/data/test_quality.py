"""What the quality report of a screen says."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scvi_tahoe import screen_quality

KEYS = {"perturbation_key": "guide", "control": "NT", "progress": False}


@pytest.fixture(scope="module")
def screen():
    """Return cells of a working knock-down, of one that failed, of one that changes nothing else, and of few cells."""
    rng = np.random.default_rng(0)
    genes = ["A", "B", "C", "D", *(f"gene_{i}" for i in range(40))]
    sizes = {"NT": 200, "A": 80, "B": 80, "C": 80, "D": 10, "unknown": 80, "A+B": 60}
    labels = np.repeat(list(sizes), list(sizes.values()))
    mean = np.full((len(labels), len(genes)), 2.0)
    mean[np.ix_(labels == "A", [0])] = 0.2
    mean[np.ix_(labels == "A", range(10, 30))] += 1.5
    mean[np.ix_(labels == "A+B", [0])] = 0.2
    adata = AnnData(np.log1p(rng.poisson(mean)).astype(np.float32), obs=pd.DataFrame({"guide": labels}))
    adata.var_names, adata.obs_names = genes, adata.obs_names.astype(str)
    return adata


def test_conditions_are_marked_for_few_cells_an_unchanged_target_and_no_effect(screen):
    marks = screen_quality(screen, **KEYS).set_index("guide")["marks"]
    assert marks["A"] == ""
    assert marks["B"] == "target unchanged; no effect found"
    assert marks["unknown"] == "no effect found"
    assert "few cells" in marks["D"]


def test_the_targets_own_change_is_that_of_mean_expression(screen):
    row = screen_quality(screen, **KEYS, n_permutations=0).set_index("guide").loc["A"]
    mean = {name: screen[screen.obs["guide"] == name, "A"].X.mean() for name in ("A", "NT")}
    assert row["target_change"] == pytest.approx(mean["A"] - mean["NT"], rel=1e-5)
    assert row["target_p"] < 1e-6
    assert "energy_p" not in row


def test_the_part_of_a_combination_that_changed_least_is_reported(screen):
    report = screen_quality(screen, **KEYS, combination_separator="+", n_permutations=0).set_index("guide")
    assert report.loc["A+B", "target"] == "B"
    assert report.loc["A+B", "marks"] == "target unchanged"


def test_energy_p_values_of_conditions_without_effect_are_uniform(screen):
    rng = np.random.default_rng(1)
    nothing = screen[screen.obs["guide"].isin(["NT"])].copy()
    nothing.obs["guide"] = rng.choice(["NT", *(f"P{i}" for i in range(12))], len(nothing), p=[0.4, *[0.05] * 12])
    p_values = screen_quality(nothing, **KEYS, n_permutations=199)["energy_p"]
    assert 0.25 < p_values.mean() < 0.75


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        pytest.param({"perturbation_key": "guides"}, KeyError, "guide", id="unknown column"),
        pytest.param({"control": "ctrl"}, ValueError, "control='ctrl'", id="unknown control"),
        pytest.param({"layer": "counts"}, KeyError, "counts", id="unknown layer"),
        pytest.param({"min_cells": -1}, ValueError, "min_cells", id="negative"),
    ],
)
def test_bad_input_is_refused(screen, options, error, says):
    with pytest.raises(error, match=says):
        screen_quality(screen, **(KEYS | options))


def test_a_context_without_controls_is_refused(screen):
    adata = screen.copy()
    adata.obs["line"] = np.where(adata.obs["guide"] == "A", "x", "y")
    with pytest.raises(ValueError, match="context 'x'"):
        screen_quality(adata, **KEYS, context_key="line")


def test_cells_with_more_guides_than_most_of_their_condition_are_doublets(screen):
    cells = screen.copy()
    rng = np.random.default_rng(0)
    guides = np.zeros((cells.n_obs, 4), dtype=int)
    guides[:, 0] = rng.integers(20, 60, cells.n_obs)
    guides[:, 1] = 1  # ambient
    pairs = (cells.obs["guide"] == "A+B").to_numpy()
    guides[pairs, 2] = 30  # every cell of a pair has two
    doublets = np.flatnonzero((cells.obs["guide"] == "C").to_numpy())[:30]
    guides[doublets, 3] = 25
    cells.obsm["guides"] = guides
    report = screen_quality(cells, **KEYS, guide_counts_key="guides", n_permutations=0)
    shares = report.set_index("guide")["doublets"]
    assert shares["C"] == pytest.approx(30 / 80)
    assert shares.drop("C").eq(0).all()
    assert report.attrs["doublets"] == cells.obs_names[doublets].tolist()
    assert report.set_index("guide")["marks"]["C"].startswith("many doublets")
    with pytest.raises(KeyError, match="guide_counts_key"):
        screen_quality(cells, **KEYS, guide_counts_key="guide")
