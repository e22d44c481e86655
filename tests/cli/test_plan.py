"""What to measure next, from a file of cells."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from scvi_tahoe.datasets import simulate_screen

KEYS = ("--perturbation-key", "perturbation", "--control", "control", "--context-key", "context")


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    adata = simulate_screen(2, 8, n_genes=30, n_cells=12, n_control_cells=30, seed=1)
    here = adata.obs["context"] == "context_1"
    missing = sorted(set(adata.obs["perturbation"]) - {"control"})[:3]
    path = tmp_path_factory.mktemp("plan") / "screen.h5ad"
    adata[~(here & adata.obs["perturbation"].isin(missing))].write_h5ad(path)
    return path, missing


def test_the_plan_names_conditions_that_are_not_measured(run, screen, tmp_path):
    path, missing = screen
    text = run("plan", path, *KEYS, "-n", 2, "-o", tmp_path / "plan.csv").output
    plan = pd.read_csv(tmp_path / "plan.csv")
    assert len(plan) == 2
    assert set(plan["perturbation"]) <= set(missing)
    assert plan["context"].eq("context_1").all()
    assert f"Written: {tmp_path / 'plan.csv'}" in text
    printed = json.loads(run("plan", path, *KEYS, "-n", 1, "--json").stdout)
    assert printed[0]["perturbation"] == plan["perturbation"][0]


def test_a_plan_of_more_conditions_than_there_are_is_refused(refusal, screen, tmp_path):
    path, _ = screen
    assert "3" in refusal("plan", path, *KEYS, "-n", 50)
    (tmp_path / "plan.csv").touch()
    assert "exists; give the name of a new file" in refusal("plan", path, *KEYS, "-o", tmp_path / "plan.csv")
