"""Changes of genes between contexts that express them differently."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_tahoe.data import LabelParser
from scvi_tahoe.response._context_scale import ContextScale, choose_scale
from scvi_tahoe.response._members import Question
from scvi_tahoe.response._response_model import fit_responses, predicted_changes
from scvi_tahoe.response._responses import Responses
from scvi_tahoe.response._saved import fitted_from_plain, plain_of_fitted

N_GENES = 300
CONTEXTS = ("a", "b", "c", "d", "new")


def responses(kind: str, *, perturbations: int = 5, contexts: tuple[str, ...] = CONTEXTS, seed: int = 0) -> Responses:
    """Changes of mean log1p expression: the same fold changes in all contexts, or the same changes."""
    rng = np.random.default_rng(seed)
    usual = rng.lognormal(-1, 1, N_GENES)
    rates = {c: usual * rng.lognormal(0, 1.2, N_GENES) for c in contexts}
    effects = rng.normal(0, 1, (perturbations, N_GENES)) * (rng.random((perturbations, N_GENES)) < 0.2)
    means = {c: np.log1p(rate).astype(np.float32) for c, rate in rates.items()}
    pairs = [(f"p{i}", c) for i in range(perturbations) for c in contexts]

    def change(label: str, context: str) -> np.ndarray:
        effect = effects[int(label[1:])]
        return np.log1p(rates[context] * np.exp(effect)) - means[context] if kind == "folds" else 0.3 * effect

    changes = np.stack([change(*pair) for pair in pairs]) + rng.normal(0, 0.02, (len(pairs), N_GENES))
    labels, where = (np.array(side) for side in zip(*pairs, strict=True))
    genes = np.array([f"g{i}" for i in range(N_GENES)])
    return Responses(labels, where, changes, np.full(changes.shape, 4e-4), genes, means)


def without(found: Responses, context: str) -> Responses:
    keep = found.contexts != context
    means = {c: m for c, m in found.control_means.items() if c != context}
    return Responses(
        found.perturbations[keep], found.contexts[keep], found.changes[keep], found.noise[keep], found.genes, means
    )


def chosen(found: Responses) -> ContextScale | None:
    rng = np.random.default_rng(0)
    return choose_scale(found.changes, found.perturbations, found.contexts, found.control_means, rng)


def test_the_same_fold_changes_are_compared_by_what_contexts_express() -> None:
    scale = chosen(responses("folds"))
    assert scale is not None
    assert scale.power >= 0.5


def test_the_same_changes_are_compared_as_they_are() -> None:
    assert chosen(responses("changes")) is None


def test_a_context_without_controls_leaves_changes_as_they_are() -> None:
    found = responses("folds")
    del found.control_means["b"]
    assert chosen(found) is None


def test_where_nothing_can_tell_trained_contexts_keep_their_changes_and_a_new_one_goes_half_way() -> None:
    found = responses("folds", contexts=("a", "new"))
    scale = chosen(without(found, "new"))
    assert scale is not None
    assert scale.power == 0.5
    assert (scale.factor(found.control_means["a"]) == 1).all()
    off = scale.factor(np.zeros(N_GENES))
    assert off.max() < 1
    assert off.min() >= 0.03**0.5 - 1e-6
    assert (scale.factor(None) == 1).all()


@pytest.mark.parametrize("perturbations", [1, 5])
def test_a_new_cell_type_is_predicted_better_than_by_the_mean_of_the_others(perturbations: int) -> None:
    found = responses("folds", perturbations=perturbations)
    known = without(found, "new")
    parser = LabelParser(control="control")
    fitted = fit_responses(known, parser, {})
    labels = sorted(set(found.perturbations))
    questions = [Question(label, "new") for label in labels]
    got, _ = predicted_changes(fitted, questions, {"new": found.control_means["new"]})
    truth = np.stack([found.changes[(found.perturbations == p) & (found.contexts == "new")][0] for p in labels])
    mean = np.stack([known.changes[known.perturbations == p].mean(axis=0) for p in labels])
    assert np.abs(got - truth).mean() < 0.8 * np.abs(mean - truth).mean()


def test_a_saved_model_predicts_the_same_on_its_scale() -> None:
    found = without(responses("folds"), "new")
    fitted = fit_responses(found, LabelParser(control="control"), {})
    arrays, settings = plain_of_fitted(fitted)
    conditions = list(zip(fitted.conditions.contexts, fitted.conditions.perturbations, strict=True))
    read = fitted_from_plain(arrays, settings, conditions, found.control_means)
    assert read.scale is not None
    assert fitted.scale is not None
    assert read.scale.power == fitted.scale.power
    questions = [Question("p1", "a"), Question("p2", "other")]
    for mine, theirs in zip(
        predicted_changes(fitted, questions, {}), predicted_changes(read, questions, {}), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
