"""Several screens become one, with a weight for each."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from scipy import sparse

from scvi_tahoe import TahoeST, concat_screens
from scvi_tahoe.data import LabelParser
from scvi_tahoe.data._sampler import RandomSampler, SetPlan
from scvi_tahoe.datasets import simulate_screen
from scvi_tahoe.model._fitted import keys_of_registry
from scvi_tahoe.response._harm_control import judge_sources
from scvi_tahoe.response._responses import Responses

LABELS = {"perturbation_key": "perturbation", "control": "control", "context_key": "context", "progress": False}
PARSER = LabelParser(control="", combination_separator=None, has_dose=False)


@pytest.fixture(scope="module")
def screens():
    """Three screens of one simulation, a cell line each."""
    whole = simulate_screen(3, 8, n_genes=60, n_cells=12, n_control_cells=60, seed=3)
    return {name: whole[whole.obs["context"] == f"context_{k + 1}"].copy() for k, name in enumerate(("a", "b", "c"))}


@pytest.fixture(scope="module")
def together(screens):
    return concat_screens(screens, **LABELS, harm_control=False, weights={"b": 0.5, "c": 0.0})


def registered(cells):
    cells = cells.copy()
    TahoeST.setup_anndata(
        cells, "perturbation", "control", context_key="context", batch_key="batch", source_key="source",
        weight_key="source_weight",
    )  # fmt: skip
    return cells


def test_contexts_and_batches_are_named_by_their_screen_and_genes_are_shared(screens):
    genes = screens["a"].var_names
    parts = {**screens, "b": screens["b"][:, genes[::-1][:55]].copy()}
    parts["c"] = parts["c"].copy()
    parts["c"].obs = parts["c"].obs.rename(columns={"perturbation": "target"})
    found = concat_screens(
        parts, perturbation_key={"a": "perturbation", "b": "perturbation", "c": "target"}, control="control",
        context_key={"a": "context", "b": "context", "c": None}, batch_key="batch", harm_control=False, progress=False,
    )  # fmt: skip
    assert sorted(found.obs["context"].unique()) == ["a: context_1", "b: context_2", "c"]
    assert set(found.obs["batch"].unique()) == {f"{s}: batch_{k}" for s in "abc" for k in (1, 2)}
    assert found.var_names.tolist() == genes[5:].tolist()
    row = found[found.obs["source"] == "b"][0]
    original = parts["b"][row.obs_names.str.removesuffix("-b")]
    np.testing.assert_array_equal(row.X.toarray(), original[:, found.var_names].X.toarray())


def test_controls_of_other_names_get_the_name_of_the_first(screens):
    parts = dict(screens)
    parts["b"] = parts["b"].copy()
    parts["b"].obs["perturbation"] = parts["b"].obs["perturbation"].astype(str).replace("control", "DMSO")
    found = concat_screens(
        parts, **{**LABELS, "control": {"a": "control", "b": "DMSO", "c": "control"}}, harm_control=False
    )
    assert "DMSO" not in set(found.obs["perturbation"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weights": {"d": 1.0}}, KeyError, "names 'd', which is not a screen"),
        ({"weights": {"a": -1.0}}, ValueError, "0 or more"),
        ({"target": "z"}, KeyError, "not a screen"),
        ({"target": "a", "weights": {"a": 0}}, ValueError, "nothing would be learned"),
        ({"perturbation_key": "perturbatio"}, KeyError, "did you mean 'perturbation'"),
        ({"control": "ctrl"}, ValueError, "no cell with control='ctrl'"),
        ({"weights": {"a": 0, "b": 0, "c": 0}}, ValueError, "every screen has the weight 0"),
    ],
    ids=["weight of no screen", "negative weight", "no target", "target of weight 0", "column", "control", "all 0"],
)
def test_a_wrong_argument_is_named(screens, change, error, message):
    with pytest.raises(error, match=message):
        concat_screens(screens, **{**LABELS, **change}, harm_control=False)


def _damaged(cells):
    cells._X = sparse.csr_matrix(cells.X)
    cells._X.indices[0] = 10**6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(_damaged, r"'a'\.X is damaged", id="index outside"),
        pytest.param(lambda c: setattr(c, "X", None), "'a' has no X", id="no X"),
        pytest.param(lambda c: setattr(c, "_X", c.X[:-3]), r"'a'\.X has shape", id="short"),
        pytest.param(
            lambda c: setattr(c, "obs", c.obs.assign(perturbation="control")),
            "'a' has control cells only",
            id="controls",
        ),
    ],
)
def test_a_screen_that_is_none_is_named_before_its_cells_are_copied(screens, change, message):
    cells = screens["a"].copy()
    cells.obs["perturbation"] = cells.obs["perturbation"].astype(str)
    change(cells)
    if "shape" in message and cells.X.shape == cells.shape:
        pytest.skip("this anndata cannot be given an X of another shape")
    with pytest.raises(ValueError, match=message):
        concat_screens({"a": cells, "b": screens["b"]}, **LABELS, harm_control=False)


@pytest.mark.parametrize("form", [sparse.coo_matrix, sparse.lil_matrix, lambda x: x.toarray().astype(">f4"), None])
def test_a_screen_in_an_unusual_format_or_a_view_of_one_is_the_same(screens, together, form):
    cells = screens["a"].copy() if form else screens["a"][:]
    if form:
        cells._X = form(sparse.csr_matrix(cells.X))
    found = concat_screens({**screens, "a": cells}, **LABELS, harm_control=False, weights={"b": 0.5, "c": 0.0})
    np.testing.assert_allclose(found.X.sum(1), together.X.sum(1), rtol=1e-5)


def test_screens_without_common_genes_are_refused(screens):
    other = screens["b"].copy()
    other.var_names = "ENSG" + other.var_names
    with pytest.raises(ValueError, match="share 0 genes"):
        concat_screens({"a": screens["a"], "b": other}, **LABELS)


def test_a_source_of_shuffled_labels_does_harm_and_those_that_agree_help():
    rng = np.random.default_rng(0)
    effects = rng.normal(size=(8, 2)) @ rng.normal(size=(2, 20))
    changes = np.concatenate([effects, effects, np.roll(effects, 3, axis=0)]) + rng.normal(0, 0.2, (24, 20))
    labels, sources = np.tile([f"p{i}" for i in range(8)], 3), np.repeat(["mine", "second", "third"], 8)
    genes = np.array([f"g{i}" for i in range(20)])
    responses = Responses(labels, sources, changes, np.full(changes.shape, 0.04), genes, {})
    report = judge_sources(responses, PARSER, target="mine")
    assert report["harms"].to_dict() == {"mine": False, "second": False, "third": True}
    assert report.loc["third", "error_change"] > 0.1
    assert report.loc["second", "error_change"] < -0.1
    assert report.loc["third", "agreement"] < report.loc["second", "agreement"]


def test_a_harmful_screen_gets_the_weight_0_and_this_is_said(screens, caplog, monkeypatch):
    def judged(responses, parser, **options):
        report = judge_sources(responses, parser, **{**options, "judges": False})
        report.loc["c", ["error_change", "harms"]] = 0.7, True
        return report

    monkeypatch.setattr("scvi_tahoe.response._concat_screens.judge_sources", judged)
    with caplog.at_level(logging.WARNING, logger="scvi_tahoe"):
        found = concat_screens(screens, **LABELS)
    assert found.uns["scvi_tahoe_sources"]["weight"].to_dict() == {"a": 1.0, "b": 1.0, "c": 0.0}
    assert "c gets the weight 0: with it, conditions of the others are predicted 70 % worse" in caplog.text


def test_a_context_of_weight_0_changes_no_prediction(together):
    with_it = TahoeST(registered(together)).predict_effects(contexts=["a: context_1"], as_adata=True)
    without = together[together.obs["source"] != "c"].copy()
    alone = TahoeST(registered(without)).predict_effects(contexts=["a: context_1"], as_adata=True)
    # the usual expression of genes is that of all cells, and moves nothing but the last digits
    np.testing.assert_allclose(with_it.X, alone.X, atol=1e-4)


def test_training_draws_conditions_in_proportion_to_their_weight(together):
    manager = TahoeST(registered(together)).adata_manager
    index = manager.screen(keys_of_registry(manager.registry)).index
    plan = SetPlan(
        index=index, pools=index.control_pools(), row_of_label=np.arange(len(index.perturbation.names)),
        rows=index.weighted(np.flatnonzero(~index.is_control)), set_size=2, sets_per_step=10,
    )  # fmt: skip
    requests = list(RandomSampler(plan, n_steps=60, seed=0))
    drawn = [index.conditions[c].context[0] for request in requests for c in request.condition_S]
    assert drawn.count("c") == 0
    assert 0.4 < drawn.count("b") / drawn.count("a") < 0.6


def test_cells_of_weight_0_neither_train_nor_validate(together):
    model = TahoeST(registered(together), set_size=8, network={"hidden": 8, "n_layers": 1, "n_heads": 2})
    model.train(max_steps=2, batch_size=4, validate_every=2, progress=False)
    contexts = together.obs["context"].to_numpy()
    rows = np.concatenate([model.train_indices, model.validation_indices])
    assert set(contexts[rows]) == {"a: context_1", "b: context_2"}


def test_a_context_in_two_sources_is_refused(together):
    cells = together.copy()
    cells.obs["context"] = "one"
    with pytest.raises(ValueError, match="several values in the context 'one'"):
        TahoeST.setup_anndata(cells, "perturbation", "control", context_key="context", source_key="source")


def test_sources_are_kept_in_a_saved_model_and_new_data_may_lack_them(together, tmp_path):
    six = together.copy()
    six.obs["context"] = six.obs["context"].astype(str) + np.where(np.arange(six.n_obs) % 2, " x", " y")
    model = TahoeST(registered(six))
    before = model.predict_effects(as_adata=True)
    assert "data set" in model.response_report().attrs["text"]
    model.save(tmp_path / "model", save_anndata=False)
    new = six.copy()
    del new.obs["source"], new.obs["source_weight"], new.obs["batch"]
    loaded = TahoeST.load(tmp_path / "model", adata=six)
    np.testing.assert_array_equal(loaded.predict_effects(as_adata=True).X, before.X)
