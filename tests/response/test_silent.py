"""A context in which perturbations show nothing must not mislead the others."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scvi_tahoe.data import LabelParser
from scvi_tahoe.response import ResponseModel
from scvi_tahoe.response._kernels import Conditions
from scvi_tahoe.response._silent import noise_of_regression, silent_contexts

CONTEXTS = ("a", "b", "c", "quiet")
NAMES = [f"p{i}" for i in range(16)]
ASKED = [("a", name) for name in NAMES[:5]]


def responses(*, quiet="nothing", seed=0):
    """Effects that contexts share, and a little of their own; in the context "quiet" there are none, or others."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(len(NAMES), 30))
    of_context = {c: common + 0.3 * rng.normal(size=common.shape) for c in CONTEXTS[:3]}
    of_context["quiet"] = {
        "nothing": 0.05 * rng.normal(size=common.shape) + 0.3 * rng.normal(size=30),  # with few controls
        "others": rng.normal(size=common.shape),
        "half": 0.5 * common + 0.3 * rng.normal(size=common.shape),
        "noise": 0.05 * common + 1.5 * rng.normal(size=common.shape),
    }[quiet]
    rows = np.concatenate([of_context[c] + 0.1 * rng.normal(size=common.shape) for c in CONTEXTS])
    obs = pd.DataFrame({"gene": NAMES * len(CONTEXTS), "line": np.repeat(CONTEXTS, len(NAMES))})
    obs.index = obs["line"] + obs["gene"]
    adata = ad.AnnData(rows.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(30)]))
    adata.layers["variance"] = np.full(adata.shape, 0.01, np.float32)
    return adata, of_context


def conditions(adata):
    return Conditions.of(adata.obs["gene"], adata.obs["line"], LabelParser(control="control"))


def fit(adata):
    known = ~np.array([pair in ASKED for pair in zip(adata.obs["line"], adata.obs["gene"], strict=True)])
    return ResponseModel.fit(
        adata[known].copy(), perturbation_key="gene", context_key="line", variance_layer="variance", progress=False
    )


def error(model, truth):
    predicted = model.predict(perturbations=NAMES[:5], contexts=["a"])
    return float(np.sqrt(np.square(predicted.X - truth["a"][:5]).mean()))


@pytest.mark.parametrize(
    ("quiet", "found"), [("nothing", {"quiet"}), ("others", set()), ("half", set()), ("noise", set())]
)
def test_only_contexts_without_effects_are_silent(quiet, found):
    adata, _ = responses(quiet=quiet)
    assert silent_contexts(adata.X, adata.layers["variance"], conditions(adata)) == found


def test_a_single_context_is_not_silent():
    adata, _ = responses()
    some = adata[adata.obs["line"] == "quiet"]
    assert silent_contexts(some.X, some.layers["variance"], conditions(some)) == set()


@pytest.mark.parametrize(
    ("share", "variance", "found"),
    [(0.0, 0.01, {"b"}), (0.2, 0.01, set()), (0.5, 0.01, set()), (0.0, 0.0, set())],
    ids=["no effects", "weak effects", "half the effects", "no effects, noise not known"],
)
def test_of_two_contexts_one_without_effects_beyond_its_noise_is_silent(share, variance, found):
    rng = np.random.default_rng(0)
    effects = rng.normal(size=(16, 30))
    changes = np.concatenate([effects, share * effects]) + 0.1 * rng.normal(size=(32, 30))
    of_two = Conditions.of(NAMES * 2, ["a"] * 16 + ["b"] * 16, LabelParser(control="control"))
    assert silent_contexts(changes, np.full(changes.shape, variance), of_two) == found


def test_conditions_of_a_silent_context_count_as_noise():
    adata, _ = responses()
    noise = noise_of_regression(adata.X, adata.layers["variance"], conditions(adata))
    quiet = (adata.obs["line"] == "quiet").to_numpy()
    np.testing.assert_array_equal(noise[~quiet], adata.layers["variance"][~quiet])
    assert noise[quiet].min() > 1


def test_a_silent_context_hardly_changes_the_error_of_the_others():
    adata, truth = responses()
    before = error(fit(adata[adata.obs["line"] != "quiet"].copy()), truth)
    assert error(fit(adata), truth) == pytest.approx(before, rel=0.02)


def test_in_a_silent_context_its_mean_is_predicted_and_a_saved_model_knows(tmp_path):
    adata, _ = responses()
    gone = (adata.obs["line"] == "quiet") & (adata.obs["gene"] == "p3")
    model = fit(adata[~gone.to_numpy()].copy())
    predicted = model.predict(perturbations=["p3"], contexts=["quiet"]).X
    rest = adata[((adata.obs["line"] == "quiet") & ~gone).to_numpy()].X
    np.testing.assert_allclose(predicted[0], rest.mean(0), atol=1e-4)
    assert "Perturbations show nothing in quiet" in model.report().attrs["text"]
    model.save(tmp_path / "model")
    again = ResponseModel.load(tmp_path / "model").predict(perturbations=["p3"], contexts=["quiet"])
    np.testing.assert_array_equal(again.X, predicted)
