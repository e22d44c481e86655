"""Which tables help to predict conditions that are left out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData

from scvi_tahoe.data import LabelParser
from scvi_tahoe.evaluate import SeenChanges
from scvi_tahoe.response import ResponseModel
from scvi_tahoe.response._kernels import ConditionKernels, Conditions, TableKernel
from scvi_tahoe.response._members import Members
from scvi_tahoe.response._useful_tables import useful_kernels

N, PARSER = 20, LabelParser(control="control")
LABELS, CONTEXTS = [f"P{i}" for i in range(N)] * 2, ["a"] * N + ["b"] * N


def changes_of(table: pd.DataFrame) -> np.ndarray:
    rng = np.random.default_rng(1)
    truth = np.tile(table.to_numpy() @ rng.normal(size=(3, 30)), (2, 1))
    return truth + 0.3 * rng.normal(size=truth.shape)


def made(seed: int) -> pd.DataFrame:
    return pd.DataFrame(np.random.default_rng(seed).normal(size=(N, 3)), index=LABELS[:N])


def used_by(tables: dict[str, pd.DataFrame]) -> set[str]:
    conditions = Conditions.of(LABELS, CONTEXTS, PARSER)
    of_tables = {name: TableKernel.of(table, conditions.components) for name, table in tables.items()}
    kernels = ConditionKernels.of(conditions, PARSER, of_tables, {})
    changes = changes_of(made(0))
    noise = np.full(changes.shape, 0.09)
    members = Members(SeenChanges(np.array(LABELS), np.array(CONTEXTS), changes), noise, PARSER, of_tables)
    options = {"n_components": 5, "device": torch.device("cpu"), "seed": 0}
    used = useful_kernels(kernels, conditions, changes, noise, members, **options)
    return set(tables) if used is None else {t for t in tables if (used & kernels.of_table(t)).any()}


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"good": made(0)}, {"good"}),
        ({"other": made(5)}, set()),
        ({"good": made(0), "other": made(5)}, {"good"}),
        ({}, set()),
    ],
    ids=["a table that tells the effects", "one that says nothing", "both", "no table"],
)
def test_only_tables_that_help_are_used(tables, expected):
    assert used_by(tables) == expected


def test_a_table_that_says_nothing_leaves_predictions_of_measured_perturbations_alone():
    obs = pd.DataFrame({"gene": LABELS, "line": CONTEXTS}).rename(str)
    adata = AnnData(changes_of(made(0)), obs=obs)
    adata.layers["variance"] = np.full(adata.shape, 0.09)
    hidden = (adata.obs["gene"].isin(["P0", "P1", "P2"]) & (adata.obs["line"] == "b")).to_numpy()
    keys = {"perturbation_key": "gene", "context_key": "line", "variance_layer": "variance", "progress": False}
    errors = []
    for tables in ({}, {"other": made(5)}):
        predicted = ResponseModel.fit(adata[~hidden].copy(), **keys, tables=tables).predict(["P0", "P1", "P2"], ["b"])
        errors.append(float(np.square(predicted.X - adata.X[hidden]).mean()))
    assert errors[1] <= 1.05 * errors[0]
