"""Which conditions to measure next."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

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


def test_neighbours_of_strong_responses_come_before_those_of_weak_ones():
    """Two groups that have nothing in common, as much of both is measured, and one has ten times stronger responses."""
    rng = np.random.default_rng(3)
    names, group = [f"G{i}" for i in range(60)], np.repeat([0, 1], 30)
    table = pd.DataFrame(rng.normal(1, 1, (60, 8)) * (np.arange(8) // 4 == group[:, None]), index=names)
    changes = table.to_numpy() @ rng.normal(size=(8, 40)) * np.where(group == 1, 10.0, 1.0)[:, None]
    measured = [*range(12), *range(30, 42)]
    adata = AnnData(changes[measured], obs=pd.DataFrame({"target": np.array(names)[measured]}))
    plan = ResponseModel.fit(adata, perturbation_key="target", tables=table, progress=False).plan_next(8)
    assert (group[plan["target"].str[1:].astype(int)] == 1).sum() >= 7


def test_gains_are_those_of_the_definition_with_a_posterior_by_hand():
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
    scale, gain, total = np.sqrt(expected / expected.mean()), np.zeros(5), 0.0
    for posterior, noise in posteriors:
        c = scale[:, None] * posterior * scale
        gain += (np.square(c).sum(0) - np.square(np.diag(c))) / (np.diag(c) + noise)
        total += np.trace(c)
    plan = model.plan_next(1)
    assert plan["target"].iloc[0] == names[7 + int(gain.argmax())]
    assert plan["gain"].iloc[0] == pytest.approx(gain.max() / total, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param({"n": 1000}, "can be chosen", id="too many"),
        pytest.param({"perturbations": ["nobody"]}, "was not measured", id="unknown"),
        pytest.param({"n": 0}, "can be chosen", id="none"),
        pytest.param({"contexts": ["K562"]}, "unknown", id="unknown context"),
    ],
)
def test_impossible_plans_are_refused(fitted, options, says):
    with pytest.raises(ValueError, match=says):
        fitted[0].plan_next(**options)
