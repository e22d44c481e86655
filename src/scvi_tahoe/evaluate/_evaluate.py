"""Scoring a prediction of any model against held-out cells."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scvi_tahoe.evaluate._baselines import verify_baseline
from scvi_tahoe.evaluate._cells import align_genes, cells_from_adata
from scvi_tahoe.evaluate._checks import check_if, checks_table, most_severe, raise_or_warn
from scvi_tahoe.evaluate._context_truth import installed_versions
from scvi_tahoe.evaluate._differential_expression import DE_COLUMNS
from scvi_tahoe.evaluate._input_checks import (
    check_space,
    clipped,
    count_checks,
    log1p_expression,
    profiles_of_contexts,
    value_checks,
)
from scvi_tahoe.evaluate._prediction_checks import check_de_counts, check_statistics
from scvi_tahoe.evaluate._presets import ScoringSettings
from scvi_tahoe.evaluate._reference import EvaluationReference, score_context
from scvi_tahoe.evaluate._result import Effects, EvaluationResult
from scvi_tahoe.evaluate._summary import summarize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable
    from scvi_tahoe.evaluate._checks import Check
    from scvi_tahoe.evaluate._input_checks import CellProfile
    from scvi_tahoe.evaluate._reference import ContextScores


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
        Training data, from which baselines are computed and which are searched for leaked conditions.
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
        Random seed for the baseline's cells and the split halves.

    Returns
    -------
    Scores, the baselines they are scaled from, and what checks found.

    Raises
    ------
    RepresentationError
        If a check finds an error; its message says which and what to do.
    KeyError, ValueError
        If a column or genes are missing, no condition is shared, an option is unknown, or a baseline needs training
        data and there are none.

    Examples
    --------
    >>> result = evaluate(predicted, held_out, perturbation_key="target", control="non-targeting", train=train)
    >>> result.summary
    >>> result.vcc["overall"]
    """
    settings = ScoringSettings(preset=preset, control_cells=control_cells)
    record = settings.record
    if representation_check not in ("error", "warn", "off"):
        raise ValueError(f'representation_check must be "error", "warn" or "off", got {representation_check!r}.')
    reference = _as_reference(reference, perturbation_key, control, context_key, train)
    reference.verify_unchanged()
    if isinstance(baseline, str):  # before anything else is computed
        verify_baseline(baseline, reference.train, reference.embeddings)
    context_checks = reference.context_checks
    predicted, reference, checks = matched(prediction, reference, own_controls=control_cells == "predicted")
    checks += [*context_checks, check_space(prediction, counts=record.from_counts)]
    checks += [] if allow_train else reference.leakage_checks
    as_given = (predicted, reference)
    if record.from_counts:
        checks += [*count_checks(predicted, reference.cells), *reference.train_count_checks]
        raise_or_warn(checks, representation_check)
        predicted, reference = log1p_expression(predicted, total=reference.total), reference.log1p
    profiles = profiles_of_contexts(predicted, without=reference.control)
    if not record.from_counts:
        checks += [
            *value_checks(predicted, profiles, reference.profiles, reference.range_check),
            *reference.train_checks,
        ]
        raise_or_warn(checks, representation_check)
    if any(check.name == "values of the prediction" and check.status != "ok" for check in checks):
        predicted = clipped(predicted)

    scores = {c: score_context(truth, predicted.of_context(c), settings) for c, truth in reference.contexts.items()}
    found = _statistics_checks(scores, reference, settings)
    raise_or_warn(found, representation_check)
    per_perturbation = pd.concat({c: s.per_perturbation for c, s in scores.items()}, names=["context", "perturbation"])
    baseline_scores = _baseline_scores(baseline, reference, settings, seed=seed)
    halves = reference.ceiling_scores(settings, seed=seed) if reference.ceiling else None
    observed_de = {c: truth.differential_expression for c, truth in reference.contexts.items() if record.needs_de}
    kind = "a result" if isinstance(baseline, EvaluationResult) else "a prediction"
    result = EvaluationResult(
        summary=summarize(per_perturbation, baseline=baseline_scores, halves=halves, seed=seed),
        per_perturbation=per_perturbation,
        vcc=record.aggregate(per_perturbation, baseline_scores),
        checks=checks_table([*checks, *found]),
        provenance={
            **asdict(settings),
            "baseline": baseline if baseline is None or isinstance(baseline, str) else kind,
            "de_backend": reference.de_backend if record.needs_de else None,
            "seed": seed,
            "contexts": list(reference.contexts),
            "truth": reference.fingerprint,
            "train": reference.train_fingerprint,
            "versions": installed_versions(),
        },
        effects=_effects(scores, reference),
        cells=_cells(observed=reference.profiles, predicted=profiles),
        baseline_per_perturbation=baseline_scores,
        halves_per_perturbation=halves,
        de_observed=_tests(observed_de),
        de_predicted=_tests({c: s.de_predicted for c, s in scores.items() if s.de_predicted is not None}),
    )
    return result if record.extend is None else record.extend(result, *as_given)


def baseline_results(
    reference: EvaluationReference,
    names: Sequence[str] = ("control", "train_mean", "context_transfer", "cells_shifted", "cells_quantile"),
    *,
    preset: str = "vcc2025",
    seed: int = 0,
) -> dict[str, EvaluationResult]:
    """Evaluate :data:`~scvi_tahoe.evaluate.BASELINES` as if each were a prediction, to compare a model's result with.

    The reference needs training data; ``preset`` and ``seed`` are those of :func:`~scvi_tahoe.evaluate.evaluate`.
    """
    perturbation_key, context_key = reference.perturbation_key, reference.context_key
    results = {}
    for name in names:
        cells = reference.baseline_cells(name, seed=seed)
        prediction = cells.to_adata(perturbation_key=perturbation_key, context_key=context_key)
        # a baseline is allowed to be as bad as it is: its warnings are expected and kept in the result's checks
        results[name] = evaluate(prediction, reference, preset=preset, seed=seed, representation_check="off")
    return results


def matched(
    prediction: AnnData, reference: EvaluationReference, *, own_controls: bool
) -> tuple[CellTable, EvaluationReference, list[Check]]:
    """Read a prediction, bring its genes into the reference's order, and keep the conditions that both sides have."""
    # counts of a reference are kept in a layer as a rule, and predicted ones in X
    layer, control, observed = reference.layer, reference.control, reference.cells
    has_layer = layer is None or layer in prediction.layers
    cells = cells_from_adata(
        prediction,
        perturbation_key=reference.perturbation_key,
        context_key=reference.context_key,
        layer=layer if has_layer else None,
        role="prediction",
    )
    predicted = align_genes(cells, observed.genes, role="prediction")
    there = {c: tuple(p for p in wanted if (c, p) in predicted.rows) for c, wanted in reference.conditions.items()}
    shared = {c: perturbations for c, perturbations in there.items() if perturbations}
    if not shared:
        raise ValueError(
            "The prediction and the reference share no condition. The prediction has contexts "
            f"{_some(predicted.contexts)} and perturbations {_some(np.unique(predicted.perturbation))}; the reference "
            f"has {_some(observed.contexts)} and {_some(np.unique(observed.perturbation))}."
        )
    absent = [context for context in shared if (context, control) not in predicted.rows]
    if own_controls and absent:
        raise ValueError(
            f'control_cells="predicted" needs control cells ({control!r}) in the prediction of context {absent[0]!r}, '
            'and there are none; predict them, or use control_cells="real".'
        )
    # controls that are not used stay where they are: to drop them would copy the matrix
    kept = {(c, p) for c, perturbations in shared.items() for p in (*perturbations, control)} & set(predicted.rows)
    rows = np.sort(np.concatenate([predicted.rows[condition] for condition in kept]))
    conditions = [(c, p) for c, perturbations in reference.conditions.items() for p in perturbations]
    lost = [condition for condition in conditions if condition not in kept]
    extra = [(c, p) for c, p in predicted.rows if p != control and (c, p) not in kept]
    surplus = len(cells.genes) - len(observed.genes)
    genes_message = "the genes of the prediction were brought into the reference's order."
    if surplus:
        genes_message = f"{surplus} genes of the prediction are not in the reference and are not scored."
    lost_message = (
        f"{len(lost)} of {len(conditions)} conditions of the reference were not predicted (first: {_first(lost)}) and "
        "are not scored; PDS ranks among the rest, so compare with results on the same ones only."
    )
    extra_message = f"{len(extra)} predicted conditions are not in the reference (first: {_first(extra)})."
    layer_message = f"the prediction has no layer {layer!r}; its X was scored."
    checks = [
        check_if(predicted is not cells, "genes", surplus, "any order", genes_message, "note"),
        check_if(lost != [], "conditions without a prediction", len(lost), "0", lost_message),
        check_if(extra != [], "predictions without a truth", len(extra), "0", extra_message, "note"),
        check_if(not has_layer, "layer", float("nan"), "", layer_message, "note"),
    ]
    return predicted.take(rows), reference.restricted_to(shared), checks


def _some(names: NDArray[np.str_] | tuple[str, ...]) -> str:
    return f"[{', '.join(map(str, names[:5]))}{', ...' if len(names) > 5 else ''}]"


def _first(conditions: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{perturbation!r} in {context!r}" for context, perturbation in conditions[:1])


def _statistics_checks(
    scores: Mapping[str, ContextScores], reference: EvaluationReference, settings: ScoringSettings
) -> list[Check]:
    """Check effects and spread of each context, and keep the most severe outcome of each check."""
    own_controls = settings.control_cells == "predicted"
    found = {}
    for c, truth in reference.contexts.items():
        predicted, genes = scores[c].statistics, truth.cells.genes
        found[c] = check_statistics(predicted, truth.statistics, genes, own_controls=own_controls)
        if settings.record.needs_de:
            found[c].append(check_de_counts(scores[c].per_perturbation))
    return most_severe(found)


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
                made = getattr(reference, name)
                raise ValueError(f"{name}={value!r} contradicts the reference, which was made with {made!r}.")
        if train is not None:
            raise ValueError(
                "Give the training data to the reference: EvaluationReference.from_adata(..., baseline_from=train)."
            )
        return reference
    if perturbation_key is None or control is None:
        raise ValueError(
            "Scoring against AnnData needs perturbation_key= (column of obs) and control= (label of control cells)."
        )
    return EvaluationReference.from_adata(
        reference, perturbation_key=perturbation_key, control=control, context_key=context_key, baseline_from=train
    )


def _baseline_scores(
    baseline: str | AnnData | EvaluationResult | None,
    reference: EvaluationReference,
    settings: ScoringSettings,
    *,
    seed: int,
) -> pd.DataFrame | None:
    """Return the baseline's scores on the conditions of the reference, one row for each."""
    if baseline is None:
        return None
    if isinstance(baseline, str):
        return reference.baseline_scores(baseline, settings, seed=seed)
    if isinstance(baseline, EvaluationResult):
        expected = {**asdict(settings), "truth": reference.fingerprint}
        different = [key for key, value in expected.items() if baseline.provenance.get(key) != value]
        if different:
            raise ValueError(
                f"The baseline's result differs from this evaluation in {different}; score it with the same settings."
            )
        return baseline.per_perturbation
    predicted, shared, checks = matched(baseline, reference, own_controls=settings.control_cells == "predicted")
    if shared is not reference:
        raise ValueError("The baseline's prediction lacks conditions that the prediction has; predict the same ones.")
    profiles = profiles_of_contexts(predicted, without=reference.control)
    raise_or_warn([*checks, *value_checks(predicted, profiles, reference.profiles, reference.range_check)], "error")
    return reference.score(clipped(predicted), settings)


def _effects(scores: Mapping[str, ContextScores], reference: EvaluationReference) -> Effects:
    conditions = tuple((c, p) for c, perturbations in reference.conditions.items() for p in perturbations)
    observed = np.concatenate([truth.statistics.delta for truth in reference.contexts.values()])
    predicted = np.concatenate([scores[c].statistics.delta for c in reference.contexts])
    return Effects(conditions, reference.cells.genes, observed.astype(np.float32), predicted.astype(np.float32))


def _cells(**sides: Mapping[str, CellProfile]) -> pd.DataFrame:
    """Totals and zeros of the sampled cells of both sides."""
    profiles = {(side, c): profile for side, found in sides.items() for c, profile in found.items()}
    parts = [pd.DataFrame({"total": p.totals, "zero_fraction": p.zero_fraction}) for p in profiles.values()]
    return pd.concat(parts, keys=list(profiles), names=["side", "context"]).droplevel(2).reset_index()


def _tests(tables: Mapping[str, pl.DataFrame]) -> pd.DataFrame | None:
    """Differential expression of all contexts as one pandas table."""
    if not tables:
        return None
    # column by column, so that no part of the table exists twice
    labels = np.array(list(tables), dtype=object)
    titles = {"target": "perturbation", "feature": "gene"}
    columns: dict[str, NDArray[Any]] = {"context": np.repeat(labels, [*map(len, tables.values())])}
    for column in DE_COLUMNS:
        columns[titles.get(column, column)] = np.concatenate([_values(table[column]) for table in tables.values()])
    return pd.DataFrame(columns, copy=False)


def _values(column: pl.Series) -> NDArray[Any]:
    """Values of a column; equal texts are one object, instead of the million that polars would make."""
    import polars as pl

    if column.dtype != pl.String:
        return column.to_numpy()
    labels = column.unique(maintain_order=True)
    places = column.cast(pl.Enum(labels)).to_physical().to_numpy()
    return labels.to_numpy().astype(object)[places]
