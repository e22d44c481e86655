"""What `prior="response"`, the default, starts predictions from: other conditions only, each on its own."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from scvi_tahoe import TahoeST
from scvi_tahoe.data import Condition
from scvi_tahoe.datasets import simulate_screen
from scvi_tahoe.evaluate import EvaluationWarning
from scvi_tahoe.response import ResponseStart

QUICK = {"preset": "quick", "baseline": None, "train": None, "progress": False}
TABLE = {"perturbation_embedding_key": "perturbation_embedding"}


def without(adata, *conditions):
    """Leave out conditions (context, perturbation)."""
    labels = list(zip(adata.obs["context"].astype(str), adata.obs["perturbation"].astype(str), strict=True))
    kept = adata[[label not in conditions for label in labels]].copy()
    for key in ("context", "perturbation"):
        kept.obs[key] = kept.obs[key].astype(str).astype("category")
    return kept


def effects(model, perturbation, context):
    found = model.predict_effects(perturbations=[perturbation], contexts=[context], use_measured=False)
    return found["change"].to_numpy()


def test_a_default_prediction_of_a_normalised_screen_is_accepted_as_it_is(make_model, train):
    screen = simulate_screen(2, 6, n_genes=60, n_cells=32, n_control_cells=40)
    held = [("context_2", "perturbation_3"), ("context_2", "perturbation_5")]
    kept = without(screen, *held)
    wanted = (screen.obs["context"] == "context_2") & screen.obs["perturbation"].isin(
        ["perturbation_3", "perturbation_5", "control"]
    )
    model = train(make_model(kept, prior="auto"))
    assert model.prior == "response"
    with warnings.catch_warnings():
        warnings.simplefilter("error", EvaluationWarning)
        result = model.evaluate(screen[wanted.to_numpy()].copy(), **QUICK)
    assert set(result.checks["status"]) <= {"ok", "note"}


def test_start_cells_of_a_prediction_have_the_predicted_mean_and_the_total(screen, make_model):
    model = make_model(without(screen, ("context_2", "perturbation_3")), prior="auto")
    controls = screen[(screen.obs["context"] == "context_2") & (screen.obs["perturbation"] == "control")].X
    wanted = np.maximum(effects(model, "perturbation_3", "context_2") + np.asarray(controls.mean(0)).ravel(), 0)
    for n in (9, 40):
        found = model.predict(
            perturbations=["perturbation_3"], contexts=["context_2"], n_cells=n, output="prior", progress=False
        ).X
        np.testing.assert_allclose(found.mean(0), wanted, atol=1e-3)
        np.testing.assert_allclose(np.expm1(found).sum(1), np.expm1(controls.toarray()).sum(1).mean(), rtol=1e-4)


@pytest.mark.parametrize("output", ["prior", "expression"])
def test_a_condition_is_predicted_to_the_same_bit_whatever_else_is_asked(screen, make_model, train, output):
    model = train(make_model(without(screen, ("context_2", "perturbation_3")), prior="auto"))
    # one set per forward pass: sums of a matrix product depend on its rows
    options = {"n_cells": 8, "output": output, "batch_size": 1, "progress": False}
    alone = model.predict(perturbations=["perturbation_3"], contexts=["context_2"], **options)
    among = model.predict(**options)
    mine = (among.obs["perturbation"] == "perturbation_3") & (among.obs["context"] == "context_2")
    np.testing.assert_array_equal(among.X[mine.to_numpy()], alone.X)
    for key in ("support", "expected_error"):
        np.testing.assert_array_equal(among.obs.loc[mine, key], alone.obs[key])


def test_a_training_condition_starts_from_others_only(screen, make_model):
    asked = ("perturbation_4", "context_1")
    before = make_model(screen.copy(), prior="auto")
    changed = screen.copy()
    own = ((screen.obs["perturbation"] == asked[0]) & (screen.obs["context"] == asked[1])).to_numpy()
    X = changed.X.toarray()
    X[np.ix_(own, np.arange(20))] += 2.0
    changed.X = X
    after = make_model(changed, prior="auto")
    # weights of the rules, which all conditions share, and what its context has in common may move a little
    moved = np.abs(effects(after, *asked) - effects(before, *asked))[:20]
    elsewhere = np.abs(effects(after, asked[0], "context_2") - effects(before, asked[0], "context_2"))[:20]
    assert moved.mean() < 0.1
    assert elsewhere.mean() > 0.3


@pytest.mark.parametrize("n", [2, 3])
def test_few_conditions_are_predicted_from_one_another(screen, make_model, train, n):
    kept = screen[screen.obs["perturbation"].isin(["control", *sorted(set(screen.obs["perturbation"]))[1 : n + 1]])]
    one = kept[(kept.obs["context"] == "context_1").to_numpy()].copy()
    model = train(make_model(one, setup=TABLE, prior="response"))
    predicted = model.predict(n_cells=3, progress=False)
    assert np.isfinite(predicted.X).all()
    assert model.response_report().attrs["text"]


def test_two_conditions_have_no_prior_by_default(screen, make_model):
    two = screen[screen.obs["perturbation"].isin(["control", "perturbation_1"]).to_numpy()].copy()
    assert make_model(two, prior="auto").prior == "none"


def test_a_context_with_one_perturbation_is_predicted(screen, make_model):
    gone = [("context_2", f"perturbation_{i}") for i in range(2, 7)]
    model = make_model(without(screen, *gone), prior="auto")
    report = model.prior_report(contexts=["context_2"])
    assert set(report["starts_from"]) == {"the same perturbation in other contexts"}
    assert report["support"].between(0, 1).all()
    assert np.isfinite(report["expected_error"]).all()


def test_a_screen_of_one_context_with_a_table_starts_from_it():
    screen = simulate_screen(1, 30, n_genes=60, n_cells=30, n_control_cells=120)
    table, truth = screen.uns["perturbation_embedding"], screen.uns["true_delta"]["context_1"]
    held = list(table.index[:5])
    kept = without(screen, *[("context_1", label) for label in held])
    kept.uns = dict(screen.uns)
    TahoeST.setup_anndata(kept, perturbation_key="perturbation", control="control", context_key="context", **TABLE)
    model = TahoeST(kept)
    assert model.prior == "response"
    report = model.prior_report(perturbations=held)
    assert set(report["starts_from"]) == {"the nearest perturbations by embedding"}
    found = model.predict_effects(perturbations=held).pivot(index="perturbation", columns="gene", values="change")
    found = found.loc[held, list(screen.var_names)].to_numpy()
    assert np.mean([np.corrcoef(a, truth.loc[b])[0, 1] for a, b in zip(found, held, strict=True)]) > 0.8


@pytest.fixture(scope="module")
def of_one_context():
    """A screen of two contexts, of which one has controls only."""
    screen = simulate_screen(2, 12, n_genes=60, n_cells=40)
    kept = (screen.obs["context"] == "context_1") | (screen.obs["perturbation"] == "control")
    return screen[kept.to_numpy()].copy(), screen.uns["true_delta"]


def test_one_context_predicts_another_by_the_changes_of_each_perturbation(of_one_context, make_model):
    screen, truth = of_one_context
    model = make_model(screen, prior="auto")
    assert model.prior == "response"
    found = model.predict_effects(contexts=["context_2"], perturbations=list(truth["context_2"].index))
    predicted = found.pivot(index="perturbation", columns="gene", values="change")[truth["context_2"].columns]
    wanted = truth["context_2"].loc[predicted.index]
    by_mean = np.square(truth["context_1"].mean() - wanted).to_numpy().mean()
    assert np.square(predicted - wanted).to_numpy().mean() < 0.7 * by_mean


def test_what_a_network_learned_of_one_context_is_not_added_to_changes_that_have_it(of_one_context, make_model, train):
    screen, _ = of_one_context
    model = train(make_model(screen, prior="auto"))
    learned, spec = ResponseStart.from_dict(model.prior_), model._spec()
    asked = [Condition(context=c, perturbation="perturbation_01") for c in ("context_1", "context_2")]
    assert not learned.is_corrected(asked, spec.table)[1]


@pytest.mark.parametrize("use_measured", [True, False], ids=["with their measurement", "from others"])
def test_intervals_of_trained_conditions_hold_the_true_changes(make_model, use_measured):
    screen = simulate_screen(2, 24, n_genes=60, seed=3)
    effects = make_model(screen, prior="auto").predict_effects(use_measured=use_measured)
    conditions = effects[["context", "perturbation"]].drop_duplicates().itertuples(index=False)
    true = np.concatenate([screen.uns["true_delta"][c].loc[p].to_numpy() for c, p in conditions])
    held = np.abs(effects["change"] - true) <= 1.645 * effects["sd"]
    assert 0.86 < held.mean() < 0.95  # nominal .9, of one small screen


def test_the_criterion_reaches_the_response_model_and_is_saved(screen, make_model, tmp_path):
    model = make_model(screen.copy(), prior="response", criterion="discrimination")
    assert "what is specific to a perturbation" in model.response_report().attrs["text"]
    model.save(tmp_path / "model", save_anndata=False)
    assert TahoeST.load(tmp_path / "model", screen.copy()).criterion == "discrimination"
    assert make_model(screen.copy()).criterion == "error"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "pds"}, "criterion='pds' is unknown; allowed are 'error'"),
        ({"criterion": "discrimination", "prior": "none"}, "criterion='discrimination' is of prior='response'"),
    ],
    ids=["unknown", "without a response model"],
)
def test_a_criterion_without_effect_is_refused(screen, make_model, options, message):
    with pytest.raises(ValueError, match=message):
        make_model(screen.copy(), **options)


@pytest.mark.parametrize("judged", [False, True], ids=["by default", "where conditions of new contexts validated"])
def test_a_context_of_which_only_controls_were_seen_is_corrected_only_if_that_was_judged(
    judged, screen, make_model, train, caplog
):
    gone = [("context_2", f"perturbation_{i}") for i in range(1, 7)]
    model = make_model(without(screen, *gone), prior="response")
    train(model, shrink_correction=False, lr=0.1)
    with torch.no_grad():  # as if it had learned something
        model.module.network.head.project.layers[-1].bias.fill_(0.5)
    elsewhere = "the same perturbation in other contexts"
    kinds = ["the mean of other perturbations", f"{elsewhere}, in a context with controls only"]
    model.prior_ = {**model.prior_, "judged": kinds if judged else None}
    options = {"perturbations": ["perturbation_1"], "n_cells": 4, "progress": False}

    def changed(context):
        cells = [model.predict(contexts=[context], output=o, **options).X for o in ("prior", "expression")]
        return not np.allclose(*cells, atol=1e-3)

    assert changed("context_1")
    with caplog.at_level(logging.INFO, logger="scvi_tahoe"):
        assert changed("context_2") == judged
    assert (f"predicted as the prior has them, from {kinds[1]}" in caplog.text) != judged
    assert set(model.prior_report(contexts=["context_2"])["corrected"]) == {judged}


def test_a_context_with_few_perturbations_is_a_question_of_its_own_that_others_do_not_judge(make_model):
    screen = simulate_screen(3, 10, n_genes=40, n_cells=12, n_control_cells=20)
    model = make_model(
        without(screen, *[("context_3", f"perturbation_{i:02d}") for i in range(3, 11)]), prior="response"
    )
    elsewhere = "the same perturbation in other contexts"
    asked, table = [Condition(f"context_{k}", "perturbation_05") for k in (1, 3)], model._spec().table
    start = ResponseStart.from_dict(model._learned_prior())
    assert start.kinds(asked, table) == [elsewhere, f"{elsewhere}, in a context with few perturbations"]
    assert start.is_corrected(asked, table).tolist() == [True, True]  # nothing was judged
    assert replace(start, judged=frozenset([elsewhere])).is_corrected(asked, table).tolist() == [True, False]
