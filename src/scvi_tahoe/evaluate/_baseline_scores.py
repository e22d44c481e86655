"""Scores of whatever stands for the baseline: a name, another prediction, or a result already at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvi_tahoe.evaluate._baseline_prediction import BASELINES, EMBEDDING_BASELINES
from scvi_tahoe.evaluate._cell_profile import profiles_of_contexts
from scvi_tahoe.evaluate._check import act_on
from scvi_tahoe.evaluate._matching import matched, value_checks
from scvi_tahoe.evaluate._value_checks import clipped

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scvi_tahoe.evaluate._reference import EvaluationReference
    from scvi_tahoe.evaluate._result import EvaluationResult
    from scvi_tahoe.evaluate._scoring import ScoringSettings

__all__ = ["baseline_name", "scores_of_baseline", "verify_baseline"]


def baseline_name(baseline: str | AnnData | EvaluationResult | None) -> str | None:
    """Name for the provenance."""
    if baseline is None or isinstance(baseline, str):
        return baseline
    return "a result" if hasattr(baseline, "per_perturbation") else "a prediction"


def verify_baseline(baseline: str | AnnData | EvaluationResult | None, reference: EvaluationReference) -> None:
    """Refuse a baseline that cannot be computed, before anything else is.

    Raises
    ------
    ValueError
        If the name is unknown, or the baseline needs training data and the reference has none.
    """
    if not isinstance(baseline, str):
        return
    if baseline not in BASELINES:
        msg = f"There is no baseline {baseline!r}; choose one of {list(BASELINES)}, a prediction, a result, or None."
        raise ValueError(msg)
    if baseline in EMBEDDING_BASELINES and reference.embeddings is None:
        msg = (
            f"The baseline {baseline!r} needs perturbation embeddings: "
            "EvaluationReference.from_adata(..., perturbation_embedding=...)."
        )
        raise ValueError(msg)
    if baseline != "control" and reference.train is None:
        msg = (
            f"The baseline {baseline!r} is computed from training data: pass train=<AnnData the model was trained on>, "
            "or "
            'choose baseline="control" or baseline=None.'
        )
        raise ValueError(msg)


def scores_of_baseline(
    baseline: str | AnnData | EvaluationResult | None,
    reference: EvaluationReference,
    settings: ScoringSettings,
    *,
    seed: int,
) -> pd.DataFrame | None:
    """Return the baseline's scores on the conditions of the reference, one row a (context, perturbation).

    Parameters
    ----------
    baseline
        Name, predicted cells, result, or ``None``.
    reference
        Truth, restricted to the conditions that are scored.
    settings
        How to score.
    seed
        Seed of the cells that a named baseline draws.

    Raises
    ------
    ValueError
        If a result was made under other settings or against another truth, or predicted cells lack a condition.
    """
    if baseline is None:
        return None
    if isinstance(baseline, str):
        return reference.baseline_scores(baseline, settings, seed=seed)
    if hasattr(baseline, "per_perturbation"):
        _verify_same(baseline, reference, settings)
        return baseline.per_perturbation
    predicted, shared, checks = matched(baseline, reference, own_controls=settings.control_cells == "predicted")
    if shared is not reference:
        msg = "The baseline's prediction lacks conditions that the prediction has; predict the same ones."
        raise ValueError(msg)
    profiles = profiles_of_contexts(predicted, without=reference.control)
    act_on([*checks, *value_checks(predicted, profiles, reference)], "error")
    return reference.score(clipped(predicted), settings)


def _verify_same(result: EvaluationResult, reference: EvaluationReference, settings: ScoringSettings) -> None:
    expected = {**settings.to_kwargs(), "truth": reference.fingerprint}
    different = [key for key, value in expected.items() if result.provenance.get(key) != value]
    if different:
        msg = f"The baseline's result differs from this evaluation in {different}; score it with the same settings."
        raise ValueError(msg)
