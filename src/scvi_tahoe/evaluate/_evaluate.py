"""Scoring a prediction of any model against held-out cells."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scvi_tahoe._arguments import checked
from scvi_tahoe._messages import duration, progress_bar
from scvi_tahoe.evaluate._checks import checks_table, raise_or_warn
from scvi_tahoe.evaluate._context_truth import installed_versions
from scvi_tahoe.evaluate._differential_expression import DE_COLUMNS
from scvi_tahoe.evaluate._exact_means import with_n_cells
from scvi_tahoe.evaluate._group_statistics import group_statistics
from scvi_tahoe.evaluate._input_checks import (
    check_counts,
    check_space,
    clipped,
    count_checks,
    log1p_expression,
    profiles_of_contexts,
    value_checks,
)
from scvi_tahoe.evaluate._matching import matched
from scvi_tahoe.evaluate._prediction_checks import checks_of_contexts
from scvi_tahoe.evaluate._presets import PRESETS, ScoringSettings
from scvi_tahoe.evaluate._reference import EvaluationReference, score_context
from scvi_tahoe.evaluate._result import Effects, EvaluationResult
from scvi_tahoe.evaluate._summary import mean_over_draws, summarize

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import polars as pl
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable
    from scvi_tahoe.evaluate._group_statistics import GroupStatistics
    from scvi_tahoe.evaluate._input_checks import CellProfile
    from scvi_tahoe.evaluate._presets import Preset
    from scvi_tahoe.evaluate._reference import ContextScores


logger = logging.getLogger(__name__)

_LONG = 20.0  # seconds that are worth a line


@checked(n_draws=(1, None), seed=(0, None))
def evaluate(  # noqa: PLR0913
    prediction: AnnData,
    reference: AnnData | EvaluationReference,
    *,
    perturbation_key: str | None = None,
    control: str | None = None,
    context_key: str | None = None,
    combination_separator: str | None = None,
    train: AnnData | None = None,
    preset: str = "vcc2025",
    baseline: str | AnnData | EvaluationResult | None = "auto",
    control_cells: Literal["real", "predicted"] = "real",
    representation_check: Literal["error", "warn", "off"] = "error",
    allow_train: bool = False,
    baselines: bool = True,
    match_cells: bool = True,
    n_draws: int = 3,
    seed: int = 0,
    progress: bool | None = None,
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
    combination_separator
        Text between the perturbations of a combination, ``"+"`` in ``"KLF1+MAP2K6"``, for the baseline ``"additive"``.
    train
        Training data, from which baselines are computed and which are searched for leaked conditions.
    preset
        * ``"quick"`` - means, discrimination and diagnostics; no differential expression, no cell-eval; about a second
        * ``"vcc2025"`` - and the three scores of the Virtual Cell Challenge 2025 with their overall score (default)
        * ``"vcc2026"`` - and the six scores of the challenge of 2026 (cell-eval2, the extra ``vcc2026``): prediction
          and reference hold raw counts, in ``X`` or in the reference's layer; other scores are of their log1p
          expression
        * ``"cell"`` - and how genes vary together over cells (cell-eval2's profile of that name), from raw counts
        * ``"perturbench"`` - and the four scores of PerturBench
        * ``"minimal"``, ``"full"`` - and the metrics of cell-eval's profile of that name; ``"full"`` adds the energy
          distance of cells in 50 principal components
    baseline
        What the scores are scaled from: a name of :data:`BASELINES`, the AnnData of any other prediction, its result,
        or None. With ``"auto"`` (default), the mean of the training changes with exact means, ``"train_mean"``, or the
        controls if there are no training data; the overall score relative to the baseline that the challenge
        prescribes is in ``vcc["challenge"]``.
    control_cells
        Cells that predicted effects are measured against: the ``"real"`` controls of the reference (default), or those
        ``"predicted"`` by the model, as in the challenge of 2025, where editing them moves the score.
    representation_check
        What to do when the prediction is not on the scale or in the space of the reference: raise an ``"error"``
        (default), ``"warn"``, or nothing (``"off"``).
    allow_train
        Accept held-out conditions that are in the training data.
    baselines
        Compare the prediction with every baseline that applies: controls, mean, own change elsewhere, deviation,
        quantiles, sum of the parts, and ridge and nearest of each embedding table. Each costs as much as scoring the
        prediction, once for a reference; with differential expression `n_draws` tests of the number of cells observed.
    match_cells
        Score as many cells of each condition as were observed. The predicted cells are drawn without replacement (or
        repeated, if they are fewer) and each gene is scaled to the mean of all of them, so that DES and other scores
        of cells do not depend on how many were predicted. Counts (`"vcc2026"`) are scored as they are.
    n_draws
        Number of choices of cells whose scores are averaged, for a prediction with another number of cells than
        observed and for baselines. ``summary["sd_draws"]`` has their standard deviation.
    seed
        Random seed for the choice of cells, the split halves and the bootstrap.
    progress
        Whether to show progress bars. If None, as the reference does.

    Returns
    -------
    Scores, the baselines they are compared with, a verdict, and what checks found.

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
    >>> print(result.verdict)
    """
    settings = ScoringSettings(preset=preset, control_cells=control_cells, match_cells=match_cells, n_draws=n_draws)
    if representation_check not in ("error", "warn", "off"):
        raise ValueError(f'representation_check must be "error", "warn" or "off", got {representation_check!r}.')
    reference = _as_reference(reference, perturbation_key, control, context_key, combination_separator, train)
    with _showing(reference, progress):
        return _evaluated(
            prediction, reference, settings, baseline=baseline, policy=representation_check, allow_train=allow_train,
            baselines=baselines, seed=seed,
        )  # fmt: skip


def verify_reference(
    reference: EvaluationReference,
    *,
    preset: str = "vcc2025",
    allow_train: bool = False,
    representation_check: Literal["error", "warn", "off"] = "error",
    baseline: str | AnnData | EvaluationResult | None = None,
) -> None:
    """Check what does not depend on a prediction, before one is made.

    Arguments and errors are those of :func:`evaluate`: held-out conditions among the training data, values and scale
    of both, and a baseline that lacks what it is computed from.
    """
    reference.verify_unchanged()
    reference.chosen_baseline(baseline)
    checks = [] if allow_train else list(reference.leakage_checks)
    if PRESETS.find(preset).from_counts:
        checks += [check_counts(reference.cells, role="reference"), *reference.train_count_checks]
    else:
        checks += [reference.range_check, *reference.train_checks, *reference.control_checks]
    # warnings come with the evaluation
    raise_or_warn([check for check in checks if check.status == "error"], representation_check)


def _evaluated(
    prediction: AnnData,
    reference: EvaluationReference,
    settings: ScoringSettings,
    *,
    baseline: str | AnnData | EvaluationResult | None,
    policy: Literal["error", "warn", "off"],
    allow_train: bool,
    baselines: bool,
    seed: int,
    own: str | None = None,
) -> EvaluationResult:
    """Score a prediction; ``own`` is the name of the baseline that it is, if it is one."""
    record = settings.record
    reference.verify_unchanged()
    baseline = reference.chosen_baseline(baseline)  # before anything else is computed
    context_checks = reference.context_checks
    own_controls = settings.control_cells == "predicted"
    predicted, reference, checks = matched(prediction, reference, own_controls=own_controls)
    checks += [*context_checks, check_space(prediction, counts=record.from_counts)]
    checks += [] if allow_train else reference.leakage_checks
    as_given = (predicted, reference)
    if record.from_counts:
        checks += [*count_checks(predicted, reference.cells), *reference.train_count_checks]
        raise_or_warn(checks, policy)
        predicted, reference = log1p_expression(predicted, total=reference.total), reference.log1p
        settings = replace(settings, match_cells=False)
    profiles = profiles_of_contexts(predicted, without=reference.control)
    if not record.from_counts:
        checks += [
            *value_checks(predicted, profiles, reference.profiles, reference.range_check),
            *reference.train_checks,
            *reference.control_checks,
        ]
        raise_or_warn(checks, policy)
    if any(check.name == "values of the prediction" and check.status != "ok" for check in checks):
        predicted = clipped(predicted)

    given = _given_statistics(predicted, reference, settings)
    if own is None:
        tables = _choices_of_cells(predicted, reference, settings, seed=seed)
    else:
        tables = reference.choices_of_baseline(own, settings, seed=seed)
    names = _shown_baselines(reference, settings) if baselines else []
    draws, scores = _score_draws(tables, reference, settings, n_after=reference.n_unscored(names, settings, seed=seed))
    per_perturbation = mean_over_draws(draws)
    per_perturbation["n_cells_predicted"] = np.concatenate([given[c].n_cells for c in reference.contexts])
    de_predicted = {c: s.de_predicted for c, s in scores.items() if s.de_predicted is not None}
    found = checks_of_contexts(
        given, per_perturbation, reference.contexts, own_controls=own_controls, needs_de=record.needs_de
    )
    raise_or_warn(found, policy)
    baseline_scores = _baseline_scores(baseline, reference, settings, seed=seed)
    all_baselines = _all_baselines(names, reference, settings, seed=seed) if baselines else None
    halves = reference.ceiling_scores(settings, seed=seed) if reference.ceiling else None
    observed_de = {c: truth.differential_expression for c, truth in reference.contexts.items() if record.needs_de}
    kind = "a result" if isinstance(baseline, EvaluationResult) else "a prediction"
    result = EvaluationResult(
        summary=summarize(per_perturbation, baseline=baseline_scores, halves=halves, draws=draws, seed=seed),
        per_perturbation=per_perturbation,
        vcc=_overall(record, draws, per_perturbation, baseline_scores, all_baselines),
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
        effects=_effects(given, reference),
        cells=_cells(observed=reference.profiles, predicted=profiles),
        baseline_per_perturbation=baseline_scores,
        baselines_per_perturbation=all_baselines,
        halves_per_perturbation=halves,
        de_observed=_tests(observed_de),
        de_predicted=_tests(de_predicted),
    )
    return result if record.extend is None else record.extend(result, *as_given)


@contextmanager
def _showing(reference: EvaluationReference, progress: bool | None) -> Iterator[None]:
    """Show progress bars, or none, while a reference is used."""
    if progress is None or progress == reference.progress:
        yield
        return
    sides: list[Any] = [reference, *reference.contexts.values()]
    try:
        for side in sides:
            side.progress = progress
        yield
    finally:
        for side in sides:
            side.progress = not progress


def _given_statistics(
    predicted: CellTable, reference: EvaluationReference, settings: ScoringSettings
) -> dict[str, GroupStatistics]:
    """Statistics of all predicted cells of each context."""
    real = settings.control_cells == "real"
    return {
        c: group_statistics(
            predicted.of_context(c), c, truth.perturbations, control=truth.control,
            controls_of=truth.statistics if real else None,
        )
        for c, truth in reference.contexts.items()
    }  # fmt: skip


def _choices_of_cells(
    predicted: CellTable, reference: EvaluationReference, settings: ScoringSettings, *, seed: int
) -> Iterator[CellTable]:
    """As many predicted cells of each condition as were observed, chosen again and again unless there is no choice."""
    n_cells = {(c, p): len(reference.cells.rows[c, p]) for c, ps in reference.conditions.items() for p in ps}
    if not settings.match_cells or all(len(predicted.rows[key]) == n for key, n in n_cells.items()):
        yield predicted
        return
    for offset in settings.seeds_of_draws:
        yield with_n_cells(predicted, n_cells, seed=seed + offset)


def _score_draws(
    tables: Iterator[CellTable], reference: EvaluationReference, settings: ScoringSettings, n_after: int = 0
) -> tuple[list[pd.DataFrame], dict[str, ContextScores]]:
    """Scores of each table of predicted cells, and all that is known of the first one.

    After the first table is said how long it takes to score as many tables of ``n_after`` baselines, if that is long.
    """
    draws: list[pd.DataFrame] = []
    first: dict[str, ContextScores] = {}
    if settings.record.needs_de:
        for truth in reference.contexts.values():
            truth.differential_expression  # noqa: B018  # computed once, and no part of what another table takes
    for cells in tables:
        start = time.perf_counter()
        scores = {c: score_context(truth, cells.of_context(c), settings) for c, truth in reference.contexts.items()}
        seconds = (time.perf_counter() - start) * n_after * len(settings.seeds_of_draws)
        if not first and seconds >= _LONG:
            logger.info(f"{n_after} baselines take about {duration(seconds)} more; baselines=False leaves them out.")
        first = first or scores
        parts = {c: s.per_perturbation for c, s in scores.items()}
        draws.append(pd.concat(parts, names=["context", "perturbation"]))
        del cells  # before the next ones are made
    return draws, first


def _overall(
    preset: Preset,
    draws: Sequence[pd.DataFrame],
    scores: pd.DataFrame,
    baseline: pd.DataFrame | None,
    baselines: pd.DataFrame | None,
) -> dict[str, Any] | None:
    """Overall score of the preset, its standard deviation over choices of cells, and from the challenge's baseline."""
    overall = preset.aggregate(scores, baseline)
    if overall is None:
        return None
    if len(draws) > 1:
        found = [preset.aggregate(draw, baseline) or {} for draw in draws]
        overall["sd_draws"] = float(np.std([one.get("overall", np.nan) for one in found], ddof=1))
    own = preset.challenge_baseline
    if baselines is not None and own is not None and own in baselines.index.get_level_values("baseline"):
        prescribed = preset.aggregate(scores, pd.DataFrame(baselines.xs(own))) or {}
        overall["challenge"] = {"baseline": own, "overall": prescribed.get("overall", np.nan)}
    return overall


def _shown_baselines(reference: EvaluationReference, settings: ScoringSettings) -> list[str]:
    """Names of every baseline that applies."""
    names = reference.applicable_baselines
    if settings.record.challenge_baseline is not None and reference.train is not None:
        names.append(settings.record.challenge_baseline)
    return names


def _all_baselines(
    names: Sequence[str], reference: EvaluationReference, settings: ScoringSettings, *, seed: int
) -> pd.DataFrame:
    """Scores of baselines; index baseline, context, perturbation."""
    shown = progress_bar(names, "Baselines", disable=not reference.progress)
    tables = {name: reference.baseline_scores(name, settings, seed=seed) for name in shown}
    return pd.concat(tables, names=["baseline", "context", "perturbation"])


def baseline_results(
    reference: EvaluationReference,
    names: Sequence[str] = ("control", "train_mean", "context_transfer", "deviation", "cells_quantile"),
    *,
    preset: str = "vcc2025",
    seed: int = 0,
) -> dict[str, EvaluationResult]:
    """Evaluate :data:`~scvi_tahoe.evaluate.BASELINES` as if each were a prediction, to compare a model's result with.

    The reference needs training data; ``preset`` and ``seed`` are those of :func:`~scvi_tahoe.evaluate.evaluate`.
    """
    settings = ScoringSettings(preset=preset)
    perturbation_key, context_key = reference.perturbation_key, reference.context_key
    results = {}
    for name in names:
        cells = reference.baseline_cells(name, seed=seed)
        prediction = cells.to_adata(perturbation_key=perturbation_key, context_key=context_key)
        # a baseline is allowed to be as bad as it is: its warnings are expected and kept in the result's checks
        results[name] = _evaluated(
            prediction, reference, settings,
            baseline="train_mean", policy="off", allow_train=False, baselines=False, seed=seed, own=name,
        )  # fmt: skip
    return results


def _as_reference(
    reference: AnnData | EvaluationReference,
    perturbation_key: str | None,
    control: str | None,
    context_key: str | None,
    combination_separator: str | None,
    train: AnnData | None,
) -> EvaluationReference:
    if isinstance(reference, EvaluationReference):
        given = {"perturbation_key": perturbation_key, "control": control, "context_key": context_key,
                 "combination_separator": combination_separator}  # fmt: skip
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
        reference, perturbation_key=perturbation_key, control=control, context_key=context_key,
        combination_separator=combination_separator, baseline_from=train,
    )  # fmt: skip


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
    tables = _choices_of_cells(clipped(predicted), reference, settings, seed=seed)
    draws, _ = _score_draws(tables, reference, settings)
    return mean_over_draws(draws)


def _effects(given: Mapping[str, GroupStatistics], reference: EvaluationReference) -> Effects:
    conditions = tuple((c, p) for c, perturbations in reference.conditions.items() for p in perturbations)
    observed = np.concatenate([truth.statistics.delta for truth in reference.contexts.values()])
    predicted = np.concatenate([given[c].delta for c in reference.contexts])
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
