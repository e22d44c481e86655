"""Evidence and the network that reads it: never the condition's own, used where it helps, silent where it does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from scvi_tahoe.data import LabelParser
from scvi_tahoe.response import _response_model
from scvi_tahoe.response._evidence_head import FEWEST, LeftOutQuestions, fit_head
from scvi_tahoe.response._judged import change_scores
from scvi_tahoe.response._kernels import TableKernel
from scvi_tahoe.response._members import Origin, Question
from scvi_tahoe.response._response_model import fit_responses, left_out_changes, predicted_changes
from scvi_tahoe.response._response_report import response_report
from scvi_tahoe.response._responses import Responses
from scvi_tahoe.response._saved import fitted_from_plain, plain_of_fitted, wrong_plain
from scvi_tahoe.response._uncertainty import predicted_sd, probability_of_direction, probability_of_effect

PARSER = LabelParser(control="control")
KIND = (Origin.OTHER_CONTEXTS, False)


def made_up(bends: bool, n_labels: int = 170, n_genes: int = 40, seed: int = 0) -> tuple[Responses, dict, np.ndarray]:
    """Responses of two contexts; changes below a threshold do not show if they bend. With the truth."""
    rng = np.random.default_rng(seed)
    activity, loadings = rng.normal(size=(n_labels, 4)), rng.normal(size=(4, n_genes))
    truth = np.concatenate([activity @ (loadings + 0.2 * rng.normal(size=loadings.shape)) for _ in range(2)])
    if bends:
        truth = np.where(truth > 1.5, truth, 0)
    labels = np.array([f"P{i}" for i in range(n_labels)] * 2)
    contexts = np.repeat(["a", "b"], n_labels)
    noise = np.full(truth.shape, 0.25)
    observed = truth + np.sqrt(noise) * rng.normal(size=truth.shape)
    genes = np.array([f"G{i}" for i in range(n_genes)])
    rows = activity + 0.3 * rng.normal(size=activity.shape)
    table = TableKernel.of(pd.DataFrame(rows, index=labels[:n_labels]), labels[:n_labels].tolist())
    return Responses(labels, contexts, observed, noise, genes, {}), {"table": table}, truth


def fitted_to(responses: Responses, tables: dict, rows: np.ndarray):
    """Fit to some of the conditions."""
    some = replace(
        responses, perturbations=responses.perturbations[rows], contexts=responses.contexts[rows],
        changes=responses.changes[rows], noise=responses.noise[rows],
    )  # fmt: skip
    return fit_responses(some, PARSER, tables)


@pytest.fixture(scope="module")
def bent():
    """Fit to responses that bend, without 20 of the conditions of each context, and what is true of these."""
    responses, tables, truth = made_up(bends=True)
    held = np.arange(len(truth)) % 10 == 3
    held[len(truth) // 2 :] = np.roll(held[len(truth) // 2 :], 1)  # other perturbations in the other context
    fitted = fitted_to(responses, tables, np.flatnonzero(~held))
    questions = [Question(p, c) for p, c in zip(responses.perturbations[held], responses.contexts[held], strict=True)]
    return fitted, questions, truth[held]


def test_evidence_of_a_condition_does_not_change_with_what_was_measured_of_it(bent):
    fitted, _, _ = bent
    label, context = str(fitted.conditions.perturbations[0]), str(fitted.conditions.contexts[0])
    rows = np.flatnonzero(fitted.conditions.perturbations == label)
    genes = np.arange(20)
    base = np.zeros((1, fitted.responses.changes.shape[1]), dtype=np.float32)

    def evidence(question: Question, changed: np.ndarray) -> np.ndarray:
        seen = fitted.members.seen
        changes = seen.changes.copy()
        changes[changed] += np.linspace(-0.5, 0.5, changes.shape[1])
        members = replace(fitted.members, seen=replace(seen, changes=changes))
        found = replace(fitted.evidence, members=members)
        found.__dict__["scale_G"] = fitted.evidence.scale_G  # a spread over all conditions
        return found.of([question], base, base, genes)

    own = [i for i in rows if fitted.conditions.contexts[i] == context]
    seen, unseen = Question(label, context), Question(label, context, frozenset({label}))
    np.testing.assert_allclose(evidence(seen, own), evidence(seen, []), atol=2e-3)
    np.testing.assert_allclose(evidence(unseen, rows), evidence(unseen, []), atol=2e-3)
    elsewhere = np.setdiff1d(rows, own)
    assert np.abs(evidence(seen, elsewhere) - evidence(seen, [])).max() > 0.1


def test_the_network_is_used_where_it_helps_and_predicts_new_conditions_better(bent):
    fitted, questions, truth = bent
    assert fitted.head is not None
    assert any(gain.is_used for gain in fitted.head.gains.values())
    on, _ = predicted_changes(fitted, questions, {})
    off, _ = predicted_changes(replace(fitted, head=None), questions, {})
    contexts = np.array([q.context for q in questions])
    assert change_scores(on, truth, contexts)["rmse"] < 0.97 * change_scores(off, truth, contexts)["rmse"]
    text = response_report(fitted).attrs["text"]
    assert "A network on the evidence of single genes takes away" in text
    assert "without the network" in text


def test_training_conditions_are_corrected_by_networks_that_do_not_know_them(bent):
    fitted, _, _ = bent
    starts = left_out_changes(fitted, "condition", {})
    folds = [
        left_out_changes(replace(fitted, fold_n=np.full_like(fitted.fold_n, k)), "condition", {}) for k in range(3)
    ]
    expected = np.stack(folds)[fitted.fold_n, np.arange(len(starts))]
    np.testing.assert_array_equal(starts, expected)
    assert not np.array_equal(folds[0], folds[1])


def test_probabilities_of_effects_hold_for_what_is_true(bent):
    fitted, questions, truth = bent
    changes, _ = predicted_changes(fitted, questions, {})
    deviation = predicted_sd(fitted, questions, {}, changes)
    probability = probability_of_effect(changes, deviation, 1.0)
    edges = np.quantile(probability, [0, 0.5, 0.75, 0.9, 1])
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        some = (probability >= low) & (probability <= high)
        assert np.mean(np.abs(truth[some]) > 1.0) == pytest.approx(probability[some].mean(), abs=0.12)
    sure = probability_of_direction(changes, deviation) > 0.95
    shows = sure & (truth != 0)
    assert np.mean(np.sign(truth[shows]) == np.sign(changes[shows])) > 0.93


def test_a_saved_network_predicts_the_same_and_one_that_is_damaged_is_found(bent):
    fitted, questions, _ = bent
    arrays, settings = plain_of_fitted(fitted)
    conditions = list(zip(fitted.conditions.contexts.tolist(), fitted.conditions.perturbations.tolist(), strict=True))
    again = fitted_from_plain(arrays, settings, conditions, {})
    np.testing.assert_array_equal(
        predicted_changes(again, questions, {})[0], predicted_changes(fitted, questions, {})[0]
    )
    damaged = arrays | {"head_layer2": arrays["head_layer2"][:, 1:]}
    assert "network" in wrong_plain(damaged, settings, conditions, {}, 40)
    older = {name: value for name, value in settings.items() if name != "head"}
    assert fitted_from_plain(arrays, older, conditions, {}).head is None


@pytest.mark.parametrize("seed", range(2))
def test_without_anything_to_learn_the_network_is_silent(seed):
    responses, _, _ = made_up(bends=False, n_labels=30, n_genes=30, seed=seed)
    fitted = fit_responses(responses, PARSER, {})
    asked = _response_model.left_out_questions(fitted, np.zeros(responses.changes.shape, dtype=bool), seed)
    rng = np.random.default_rng(seed)
    residual = rng.normal(size=asked.base_mG.shape).astype(np.float32)  # has nothing to do with the evidence
    head = fit_head(
        fitted.evidence, replace(asked, observed_mG=asked.base_mG + residual), device=torch.device("cpu"), seed=seed,
        tick=lambda: None,
    )  # fmt: skip
    assert head is None
    assert len(responses.changes) < FEWEST
    assert fitted.head is None


def test_in_one_context_the_spread_of_the_others_does_not_tell_a_conditions_own_change():
    """Relative to the spread of all conditions it would, so that noise would seem to be predicted."""
    responses, _, _ = made_up(bends=False, n_labels=160, n_genes=40)
    rng = np.random.default_rng(0)
    noise = rng.exponential(rng.gamma(2, size=40), responses.changes.shape) * (rng.random((320, 40)) < 0.3)
    fitted = fitted_to(replace(responses, changes=noise), {}, np.flatnonzero(responses.contexts == "a"))
    asked = _response_model.left_out_questions(fitted, np.zeros(fitted.responses.changes.shape, dtype=bool), 0)
    found = fitted.evidence.of(asked.questions, asked.kernels_mG, asked.base_mG, np.arange(40))
    np.testing.assert_allclose(found[:, :, 3], 1, atol=1e-5)
    head = fit_head(fitted.evidence, asked, device=torch.device("cpu"), seed=0, tick=lambda: None)
    assert head is None or max(gain.share for gain in head.gains.values()) < 0.05


def test_left_out_errors_are_those_of_new_conditions():
    responses, tables, truth = made_up(bends=False, n_labels=240, n_genes=200)
    responses = replace(responses, changes=responses.changes + 3 * np.random.default_rng(1).normal(size=truth.shape))
    here = responses.contexts == "a"
    train, new = np.flatnonzero(here)[:160], np.flatnonzero(here)[160:]
    fitted = fitted_to(responses, tables, train)
    questions = [Question(str(p), "a") for p in responses.perturbations[new]]
    found, _ = predicted_changes(fitted, questions, {})
    left_out = left_out_changes(fitted, "perturbation", {})
    fresh = np.square(found - truth[new]).mean()
    assert np.square(left_out - truth[train]).mean() == pytest.approx(fresh, rel=0.2)


def test_values_that_were_not_measured_are_no_examples():
    asked = LeftOutQuestions(
        [Question("P0", "a")], [KIND], *(np.zeros((1, 3), np.float32) for _ in range(2)),
        np.array([[1.0, np.nan, 2.0]], np.float32), np.ones(1), np.zeros(1, dtype=int),
    )  # fmt: skip
    from scvi_tahoe.response._evidence_head import _groups

    class Ones:
        scale_G = np.ones(3, np.float32)

        def of(self, questions, kernels, base, genes):
            return np.ones((len(questions), len(genes), 2), np.float32)

    (group,), _, _ = _groups(Ones(), asked, torch.device("cpu"), 0)
    some = torch.tensor([0])
    assert group.errors(group.base, some).item() == pytest.approx((1 + 4) / 3)


def test_probability_of_an_effect_grows_with_the_change_and_falls_with_the_size_that_counts():
    change, deviation = np.array([0.0, 1.0, -1.0, 3.0]), np.ones(4)
    found = probability_of_effect(change, deviation, 1.0)
    assert found[1] == found[2]
    assert found[0] < found[1] < found[3]
    assert (probability_of_effect(change, deviation, 2.0) < found).all()
    np.testing.assert_allclose(probability_of_effect(change, deviation, 0.0), 1)
    assert probability_of_direction(change, deviation)[0] == 0.5
