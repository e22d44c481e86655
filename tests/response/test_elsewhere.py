"""Changes in a context from what perturbations do in other contexts."""

from __future__ import annotations

import numpy as np

from scvi_tahoe.data import LabelParser
from scvi_tahoe.evaluate import SeenChanges
from scvi_tahoe.response._elsewhere import Translation
from scvi_tahoe.response._members import Members, Question
from scvi_tahoe.response._response_model import fit_responses, predicted_changes
from scvi_tahoe.response._responses import Responses

N_GENES = 60


def screen(n: int = 40, *, noise: float = 0.05, seed: int = 0) -> dict[tuple[str, str], np.ndarray]:
    """Four programmes that each context translates to genes in its own way."""
    rng = np.random.default_rng(seed)
    activity = rng.normal(size=(n, 4))
    loadings = {context: rng.normal(size=(4, N_GENES)) for context in ("a", "b", "c")}
    return {
        (f"p{i:02}", context): activity[i] @ loading + rng.normal(0, noise, N_GENES)
        for context, loading in loadings.items()
        for i in range(n)
    }


def seen_of(conditions: dict[tuple[str, str], np.ndarray]) -> SeenChanges:
    labels, contexts = (np.array(side) for side in zip(*conditions, strict=True))
    return SeenChanges(labels, contexts, np.stack(list(conditions.values())))


def without(conditions: dict[tuple[str, str], np.ndarray], context: str, kept: int) -> dict:
    """Conditions with only the first perturbations of a context."""
    return {(p, c): y for (p, c), y in conditions.items() if c != context or int(p[1:]) < kept}


def test_a_context_of_its_own_is_translated_from_the_others() -> None:
    conditions = screen()
    seen = seen_of(without(conditions, "c", 20))
    translation = Translation.of(seen, "c")
    assert translation is not None
    for label in ("p25", "p39"):
        found = translation.change(seen, label, "c", without_itself=True)
        truth = conditions[label, "c"]
        assert np.square(found - truth).mean() < 0.1 * np.square(truth).mean()
        transfer = seen.transfer(label, "c")
        assert transfer is not None
        assert np.square(transfer - truth).mean() > 0.5 * np.square(truth).mean()


def test_few_perturbations_are_not_enough() -> None:
    assert Translation.of(seen_of(without(screen(), "c", 11)), "c") is None


def test_a_trained_condition_is_predicted_without_itself() -> None:
    conditions = without(screen(), "c", 20)
    seen = seen_of(conditions)
    translation = Translation.of(seen, "c")
    assert translation is not None
    conditions["p03", "c"] = conditions["p03", "c"] + 0.5  # a little, which leaves the penalty as it is
    changed = seen_of(conditions)
    other = Translation.of(changed, "c")
    assert other is not None
    before, after = (
        [t.change(s, "p03", "c", without_itself=hides) for hides in (True, False)]
        for t, s in ((translation, seen), (other, changed))
    )
    np.testing.assert_allclose(before[0], after[0], atol=1e-8)
    assert np.abs(before[1] - after[1]).min() > 1e-3


def test_the_response_model_uses_the_translation() -> None:
    conditions = screen(noise=0.2)
    known = without(conditions, "c", 20)
    labels, contexts = (np.array(side) for side in zip(*known, strict=True))
    changes = np.stack(list(known.values()))
    genes = np.array([f"g{i}" for i in range(N_GENES)])
    responses = Responses(labels, contexts, changes, np.full(changes.shape, 0.04), genes, {})
    fitted = fit_responses(responses, LabelParser(control="control"), {})
    asked = [Question(f"p{i}", "c") for i in range(20, 40)]
    found, _ = predicted_changes(fitted, asked, {})
    truth = np.stack([conditions[q.perturbation, "c"] for q in asked])
    assert np.square(found - truth).mean() < 0.3 * np.square(truth).mean()


def test_a_context_of_few_perturbations_is_said_to_lack_a_translation() -> None:
    seen = seen_of(without(screen(), "c", 5))
    members = Members(seen, np.zeros(seen.changes.shape), LabelParser(control="control"), {})
    assert members.lacks_translation("c")
    assert not members.lacks_translation("a")
