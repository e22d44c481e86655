"""Which conditions to measure next."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scvi_tahoe import TahoeST
from scvi_tahoe.datasets import simulate_screen
from scvi_tahoe.response import ResponseModel
from scvi_tahoe.response._kernels import Conditions


@pytest.fixture(scope="module")
def fitted():
    """Two groups of perturbations, one of which is measured and one hardly; the group is in the table."""
    rng = np.random.default_rng(0)
    names = [f"G{i}" for i in range(60)]
    group = np.repeat([0, 1], 30)
    table = pd.DataFrame(rng.normal(0, 0.3, (60, 6)) + 2 * np.eye(6)[group], index=names)
    changes = (table.to_numpy() + rng.normal(0, 0.05, table.shape)) @ rng.normal(size=(6, 40))
    measured = [*range(24), 30, 31]
    adata = AnnData(changes[measured], obs=pd.DataFrame({"target": np.array(names)[measured]}))
    adata.layers["variance"] = np.full(adata.shape, 0.01)
    return ResponseModel.fit(
        adata, perturbation_key="target", tables=table, variance_layer="variance", progress=False
    ), group


def test_what_little_is_known_of_is_measured_first_and_never_what_was_measured(fitted):
    model, group = fitted
    plan = model.plan_next(8)
    rows = plan["target"].str[1:].astype(int).to_numpy()
    assert (group[rows[:4]] == 1).all()
    assert not set(plan["target"]) & set(model.perturbations)
    assert plan["target"].is_unique


def test_each_choice_leaves_less(fitted):
    plan = fitted[0].plan_next(10)
    assert (plan["gain"] > 0).all()
    assert (np.diff(plan["left"]) < 0).all()


@pytest.fixture(scope="module")
def weak_and_strong():
    """Two groups that have nothing in common, as much of both is measured, and one has ten times stronger responses."""
    rng = np.random.default_rng(3)
    names, group = [f"G{i}" for i in range(60)], np.repeat([0, 1], 30)
    table = pd.DataFrame(rng.normal(1, 1, (60, 8)) * (np.arange(8) // 4 == group[:, None]), index=names)
    changes = table.to_numpy() @ rng.normal(size=(8, 40)) * np.where(group == 1, 10.0, 1.0)[:, None]
    measured = [*range(12), *range(30, 42)]
    adata = AnnData(changes[measured], obs=pd.DataFrame({"target": np.array(names)[measured]}))
    return ResponseModel.fit(adata, perturbation_key="target", tables=table, progress=False), group


def test_neighbours_of_strong_responses_come_before_those_of_weak_ones(weak_and_strong):
    model, group = weak_and_strong
    assert (group[model.plan_next(8)["target"].str[1:].astype(int)] == 1).sum() >= 7


def test_neighbours_of_what_is_to_be_predicted_come_first(weak_and_strong):
    model, group = weak_and_strong
    plan = model.plan_next(4, perturbations=[f"G{i}" for i in range(60) if i % 3], to_predict=["G12", "G15", "G18"])
    rows = plan["target"].str[1:].astype(int).to_numpy()
    assert (group[rows] == 0).all()
    assert (rows % 3 != 0).all()  # the others cannot be measured
    assert (np.diff(plan["left"]) < 0).all()


@pytest.mark.parametrize("to_predict", [None, ["G8", "G11"]], ids=["all that can be measured", "two of them"])
def test_gains_are_those_of_the_definition_with_a_posterior_by_hand(to_predict):
    rng = np.random.default_rng(1)
    names = [f"G{i}" for i in range(12)]
    table = pd.DataFrame(rng.normal(size=(12, 3)), index=names)
    changes = table.to_numpy()[:7] @ rng.normal(size=(3, 10)) + rng.normal(0, 0.1, (7, 10))
    adata = AnnData(changes, obs=pd.DataFrame({"target": names[:7]}))
    model = ResponseModel.fit(adata, perturbation_key="target", tables=table, progress=False)
    fitted, posteriors = model._fitted, []
    everything = Conditions.of(names, ["all"] * 12, fitted.parser)
    expected = np.square(fitted.regression.predict(fitted.kernels, everything, fitted.conditions, "cpu"))[7:].sum(1)
    for group in fitted.regression.groups:
        kernels = fitted.kernels.matrices(everything, everything)
        k = sum(w * values.numpy() for w, (_, values) in zip(group.weights[:-1], kernels, strict=True))
        seen = k[:7, :7] + np.diag(group.weights[-1] + group.noise + 1e-6)
        posterior = k[7:, 7:] + group.weights[-1] * np.eye(5) - k[7:, :7] @ np.linalg.solve(seen, k[:7, 7:])
        size = np.square(fitted.regression.size_Q[group.start : group.stop]).sum()
        posteriors.append((size * posterior, size * np.median(group.noise)))
        expected += size * np.diag(posterior)
    counts = np.ones(5, bool) if to_predict is None else np.isin(names[7:], to_predict)
    scale, gain, total = np.sqrt(expected / expected.mean()), np.zeros(5), 0.0
    for posterior, noise in posteriors:
        c = scale[:, None] * posterior * scale
        gain += (np.square(c[counts]).sum(0) - counts * np.square(np.diag(c))) / (np.diag(c) + noise)
        total += np.diag(c)[counts].sum()
    plan = model.plan_next(1, to_predict=to_predict)
    assert plan["target"].iloc[0] == names[7 + int(gain.argmax())]
    assert plan["gain"].iloc[0] == pytest.approx(gain.max() / total, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param({"n": 1000}, "can be chosen", id="too many"),
        pytest.param({"perturbations": ["nobody"]}, "was not measured", id="unknown"),
        pytest.param({"n": 0}, "can be chosen", id="none"),
        pytest.param({"contexts": ["K562"]}, "unknown", id="unknown context"),
        pytest.param({"to_predict": ["nobody"]}, "was not measured", id="unknown to predict"),
        pytest.param({"to_predict": ["G0", "G1"]}, "measured conditions only", id="nothing to predict"),
        pytest.param({"to_predict": []}, "to_predict is empty", id="to_predict empty"),
    ],
)
def test_impossible_plans_are_refused(fitted, options, says):
    with pytest.raises(ValueError, match=says):
        fitted[0].plan_next(**options)


def test_a_model_of_cells_plans_for_what_is_to_be_predicted_alone():
    screen = simulate_screen(1, 14, n_genes=30, n_cells=12, n_control_cells=60, seed=4)
    labels = sorted(set(screen.obs["perturbation"]) - {"control"})
    new = labels[9:]
    train = screen[~screen.obs["perturbation"].isin(new)].copy()
    train.uns["table"] = screen.uns["perturbation_embedding"]
    TahoeST.setup_anndata(train, "perturbation", "control", context_key="context", perturbation_embedding_key="table")
    model = TahoeST(train, prior="response")
    plan = model.plan_next(2, perturbations=new[:4], to_predict=new[4:])
    assert set(plan["perturbation"]) <= set(new[:4])
    assert plan["left"].is_monotonic_decreasing
    with pytest.raises(ValueError, match="measured conditions only"):
        model.plan_next(2, to_predict=labels[:2])
