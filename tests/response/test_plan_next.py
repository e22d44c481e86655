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


def test_gains_are_those_of_the_definition_by_brute_force():
    """Variances of a posterior with one more measured condition, for every candidate, of a kernel written by hand."""
    rng = np.random.default_rng(1)
    names = [f"G{i}" for i in range(12)]
    table = pd.DataFrame(rng.normal(size=(12, 3)), index=names)
    changes = table.to_numpy()[:7] @ rng.normal(size=(3, 10)) + rng.normal(0, 0.1, (7, 10))
    adata = AnnData(changes, obs=pd.DataFrame({"target": names[:7]}))
    model = ResponseModel.fit(adata, perturbation_key="target", tables=table, progress=False)
    fitted = model._fitted
    everything = Conditions.of(names, ["all"] * 12, fitted.parser)
    gain = np.zeros(5)
    for group in fitted.regression.groups:
        kernels = fitted.kernels.matrices(everything, everything)
        k = sum(w * values.numpy() for w, (_, values) in zip(group.weights[:-1], kernels, strict=True))
        k = k + group.weights[-1] * np.eye(12)
        size = np.square(fitted.regression.size_Q[group.start : group.stop]).sum()

        def variances(measured, k=k, noise=group.noise):
            seen = k[np.ix_(measured, measured)] + np.eye(len(measured)) * (np.median(noise) + 1e-6)
            return np.diag(k - k[:, measured] @ np.linalg.solve(seen, k[measured]))[7:]

        falls = [variances(list(range(7))) - variances([*range(7), j]) for j in range(7, 12)]
        gain += size * (np.sum(falls, axis=1) - np.diag(falls))
    plan = model.plan_next(1)
    assert plan["target"].iloc[0] == names[7 + int(gain.argmax())]


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
