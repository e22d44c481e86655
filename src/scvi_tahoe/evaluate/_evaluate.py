"""Scoring a prediction of any model against held-out cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from scvi_tahoe.evaluate._assembly import assemble_result
from scvi_tahoe.evaluate._baseline_prediction import baseline_cells
from scvi_tahoe.evaluate._baseline_scores import baseline_name, scores_of_baseline, verify_baseline
from scvi_tahoe.evaluate._cache import installed_versions
from scvi_tahoe.evaluate._cell_profile import profiles_of_contexts
from scvi_tahoe.evaluate._challenge_2026 import with_scores_of_2026
from scvi_tahoe.evaluate._check import act_on, gravest
from scvi_tahoe.evaluate._counts import log1p_expression
from scvi_tahoe.evaluate._matching import count_checks, matched, value_checks
from scvi_tahoe.evaluate._prediction_checks import check_de_counts, check_statistics
from scvi_tahoe.evaluate._reference import EvaluationReference
from scvi_tahoe.evaluate._scoring import ScoringSettings, score_context
from scvi_tahoe.evaluate._space_check import check_space
from scvi_tahoe.evaluate._value_checks import clipped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from scvi_tahoe.evaluate._check import Check
    from scvi_tahoe.evaluate._result import EvaluationResult
    from scvi_tahoe.evaluate._scoring import ContextScores

__all__ = ["evaluate"]


def evaluate(
    prediction: AnnData,
    reference: AnnData | EvaluationReference,
    *,
    perturbation_key: str | None = None,
    control: str | None = None,
    context_key: str | None = None,
    train: AnnData | None = None,
    preset: str = "vcc2025",
    baseline: str | AnnData | EvaluationResult | None = "train_mean",
    control_cells: Literal["real", "predicted"] = "real",
    representation_check: Literal["error", "warn", "off"] = "error",
    allow_train: bool = False,
    seed: int = 0,
) -> EvaluationResult:
    """Score predicted cells against observed ones; neither object is changed and no file is written.

    The prediction may come from any model. Genes and labels are matched by name; contexts are scored one by one and
    averaged, never pooled; the scale, the space and the origin of both sides are checked before anything costly.

    Parameters
    ----------
    prediction
        Predicted cells, log1p expression, labelled in ``obs`` as the reference is. Its control cells, if any, are used
        under ``control_cells="predicted"`` only.
    reference
        Observed cells with the controls of every context, or an :class:`EvaluationReference` made of them, which keeps
        what does not depend on the prediction. With AnnData the three label arguments are needed.
    perturbation_key, context_key
        Columns of ``obs`` on both sides.
    control
        Label of control cells.
    train
        Training data, from which baselines are computed and in which leaked conditions are looked for.
    preset
        * ``"quick"`` - means, discrimination and diagnostics; no differential expression, no cell-eval; about a second
        * ``"vcc2025"`` - and the three scores of the Virtual Cell Challenge 2025 with their overall score (default)
        * ``"vcc2026"`` - and the six scores of the challenge of 2026 (cell-eval2, the extra ``vcc2026``): prediction
          and reference hold raw counts, in ``X`` or in the reference's layer; other scores are of their log1p
          expression
        * ``"minimal"``, ``"full"`` - and the metrics of cell-eval's profile of that name; ``"full"`` adds the energy
          distance of cells in 50 principal components
    baseline
        What the scores are scaled from: a name of :data:`BASELINES`, the AnnData of any other prediction, its result,
        or ``None``. The challenge's overall score is defined for ``"train_mean"`` (default).
    control_cells
        Cells that predicted effects are measured against: the ``"real"`` controls of the reference (default), or those
        ``"predicted"`` by the model, as in the challenge of 2025, where editing them moves the score.
    representation_check
        What to do when the prediction is not on the scale or in the space of the reference: raise an ``"error"``
        (default), ``"warn"``, or nothing (``"off"``).
    allow_train
        Accept held-out conditions that are in the training data.
    seed
        Seed of the baseline's cells and of the split halves.

    Returns
    -------
    EvaluationResult

    Raises
    ------
    RepresentationError
        If a check finds an error; its message says which and what to do.
    KeyError
        If a column is missing.
    ValueError
        If genes are missing, no condition is shared, an option is unknown, or a baseline needs training data and there
        are none.

    Examples
    --------
    >>> result = evaluate(predicted, held_out, perturbation_key="target", control="non-targeting", train=train)
    >>> result.summary
    >>> result.vcc["overall"]
    """
    settings = ScoringSettings(preset=preset, control_cells=control_cells)
    _verify_policy(representation_check)
    reference = _as_reference(reference, perturbation_key, control, context_key, train)
    reference.verify_unchanged()
    verify_baseline(baseline, reference)
    context_checks = reference.context_checks
    predicted, reference, checks = matched(prediction, reference, own_controls=control_cells == "predicted")
    checks += context_checks
    checks += [check_space(prediction, counts=settings.from_counts), *([] if allow_train else reference.leakage_checks)]
    counts = (predicted, reference)
    if settings.from_counts:
        checks += [*count_checks(predicted, reference), *reference.train_count_checks]
        act_on(checks, representation_check)
        predicted, reference = log1p_expression([predicted], total=reference.total)[0], reference.log1p
        profiles = profiles_of_contexts(predicted, without=reference.control)
    else:
        profiles = profiles_of_contexts(predicted, without=reference.control)
        checks += [*value_checks(predicted, profiles, reference), *reference.train_checks]
        act_on(checks, representation_check)

    if any(check.name == "values of the prediction" and check.status != "ok" for check in checks):
        predicted = clipped(predicted)
    scores = {c: score_context(truth, predicted.of_context(c), settings) for c, truth in reference.contexts.items()}
    found = _statistics_checks(scores, reference, settings)
    act_on(found, representation_check)
    baseline_scores = scores_of_baseline(baseline, reference, settings, seed=seed)
    halves = reference.ceiling_scores(settings, seed=seed) if reference.ceiling else None
    provenance = {
        **settings.to_kwargs(),
        "baseline": baseline_name(baseline),
        "de_backend": reference.de_backend if settings.needs_de else None,
        "seed": seed,
        "contexts": list(reference.contexts),
        "truth": reference.fingerprint,
        "train": reference.train_fingerprint,
        "versions": installed_versions(),
    }
    result = assemble_result(
        profiles,
        reference,
        scores,
        baseline=baseline_scores,
        halves=halves,
        checks=[*checks, *found],
        provenance=provenance,
    )
    return with_scores_of_2026(result, *counts) if settings.from_counts else result


def _verify_policy(policy: str) -> None:
    if policy not in ("error", "warn", "off"):
        msg = f'representation_check must be "error", "warn" or "off", got {policy!r}.'
        raise ValueError(msg)


def _statistics_checks(
    scores: Mapping[str, ContextScores], reference: EvaluationReference, settings: ScoringSettings
) -> list[Check]:
    """Checks on effects and spread, of each context; the gravest of each kind is kept."""
    found = {}
    for context, truth in reference.contexts.items():
        found[context] = check_statistics(
            scores[context].statistics,
            truth.statistics,
            truth.cells.genes,
            own_controls=settings.control_cells == "predicted",
        )
        if settings.needs_de:
            found[context].append(check_de_counts(scores[context].per_perturbation))
    return gravest(found)


def _as_reference(
    reference: AnnData | EvaluationReference,
    perturbation_key: str | None,
    control: str | None,
    context_key: str | None,
    train: AnnData | None,
) -> EvaluationReference:
    if isinstance(reference, EvaluationReference):
        given = {"perturbation_key": perturbation_key, "control": control, "context_key": context_key}
        for name, value in given.items():
            if value is not None and value != getattr(reference, name):
                msg = f"{name}={value!r} contradicts the reference, which was made with {getattr(reference, name)!r}."
                raise ValueError(msg)
        if train is not None:
            msg = "Give the training data to the reference: EvaluationReference.from_adata(..., baseline_from=train)."
            raise ValueError(msg)
        return reference
    if perturbation_key is None or control is None:
        msg = "Scoring against AnnData needs perturbation_key= (column of obs) and control= (label of control cells)."
        raise ValueError(msg)
    return EvaluationReference.from_adata(
        reference, perturbation_key=perturbation_key, control=control, context_key=context_key, baseline_from=train
    )


def baseline_results(
    reference: EvaluationReference,
    names: Sequence[str] = ("control", "train_mean", "context_transfer", "cells_shifted", "cells_quantile"),
    *,
    preset: str = "vcc2025",
    seed: int = 0,
) -> dict[str, EvaluationResult]:
    """Evaluate baselines as if each were a prediction, for comparison with the result of a model.

    Parameters
    ----------
    reference
        Truth with training data.
    names
        Baselines, see :data:`~scvi_tahoe.evaluate.BASELINES`.
    preset
        Preset of :func:`~scvi_tahoe.evaluate.evaluate`.
    seed
        Random seed of the cells that baselines draw.
    """

    def predict(name: str) -> AnnData:
        cells = baseline_cells(name, reference.task, seed=seed)
        return cells.to_adata(perturbation_key=reference.perturbation_key, context_key=reference.context_key)

    # a baseline is allowed to be as bad as it is: its warnings are expected and kept in the result's checks
    return {
        name: evaluate(predict(name), reference, preset=preset, seed=seed, representation_check="off") for name in names
    }
