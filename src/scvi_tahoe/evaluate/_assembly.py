"""Putting a result together from the scores of its contexts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_tahoe.evaluate._check import checks_table
from scvi_tahoe.evaluate._differential_expression import DE_COLUMNS
from scvi_tahoe.evaluate._overall import VCC2025_TERMS, Vcc2025Terms, vcc2025_overall
from scvi_tahoe.evaluate._result import Effects, EvaluationResult
from scvi_tahoe.evaluate._summary import summarize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cell_profile import CellProfile
    from scvi_tahoe.evaluate._check import Check
    from scvi_tahoe.evaluate._reference import EvaluationReference
    from scvi_tahoe.evaluate._scoring import ContextScores

__all__ = ["assemble_result"]

#: columns of differential expression that have another name in results
_TITLES = {"target": "perturbation", "feature": "gene"}


def assemble_result(
    profiles: Mapping[str, CellProfile],
    reference: EvaluationReference,
    scores: Mapping[str, ContextScores],
    *,
    baseline: pd.DataFrame | None,
    halves: pd.DataFrame | None,
    checks: Sequence[Check],
    provenance: Mapping[str, Any],
) -> EvaluationResult:
    """Return the result of one evaluation.

    Parameters
    ----------
    profiles
        Totals and zeros of a sample of the predicted cells of each context.
    reference
        Truth.
    scores
        Scores of each context.
    baseline, halves
        Scores of the baseline and of the split halves.
    checks
        Outcomes of all checks.
    provenance
        Versions, hashes, settings.
    """
    per_perturbation = pd.concat(
        {context: part.per_perturbation for context, part in scores.items()}, names=["context", "perturbation"]
    )
    observed_de = {
        c: t.differential_expression for c, t in reference.contexts.items() if scores[c].de_predicted is not None
    }
    return EvaluationResult(
        summary=summarize(per_perturbation, baseline=baseline, halves=halves, seed=provenance["seed"]),
        per_perturbation=per_perturbation,
        vcc=_challenge(per_perturbation, baseline),
        checks=checks_table(checks),
        provenance=provenance,
        effects=_effects(scores, reference),
        cells=_cells(observed=reference.profiles, predicted=profiles),
        baseline_per_perturbation=baseline,
        halves_per_perturbation=halves,
        de_observed=_tests(observed_de),
        de_predicted=_tests({c: s.de_predicted for c, s in scores.items() if s.de_predicted is not None}),
    )


def _challenge(scores: pd.DataFrame, baseline: pd.DataFrame | None) -> dict[str, Any] | None:
    """Overall score of 2025: of each context, then their mean, with the means of the terms."""
    if baseline is None or not set(VCC2025_TERMS.values()) <= set(scores.columns):
        return None
    columns = list(VCC2025_TERMS.values())
    terms, base = (side[columns].groupby(level="context", sort=False).mean() for side in (scores, baseline))
    by_context = {c: vcc2025_overall(_terms(terms.loc[c]), _terms(base.loc[c])) for c in terms.index}
    together = vcc2025_overall(_terms(terms.mean()), _terms(base.mean()))
    together["scaled"] = {t: float(np.mean([v["scaled"][t] for v in by_context.values()])) for t in VCC2025_TERMS}
    together["overall"] = float(np.mean([v["overall"] for v in by_context.values()]))
    together["by_context"] = {c: v["overall"] for c, v in by_context.items()}
    return together


def _terms(row: pd.Series) -> Vcc2025Terms:
    return Vcc2025Terms(**{term: float(row[column]) for term, column in VCC2025_TERMS.items()})


def _effects(scores: Mapping[str, ContextScores], reference: EvaluationReference) -> Effects:
    observed = [truth.statistics.delta for truth in reference.contexts.values()]
    predicted = [scores[context].statistics.delta for context in reference.contexts]
    return Effects(
        conditions=tuple((c, p) for c, perturbations in reference.conditions.items() for p in perturbations),
        genes=reference.cells.genes,
        observed=np.concatenate(observed).astype(np.float32),
        predicted=np.concatenate(predicted).astype(np.float32),
    )


def _cells(**sides: Mapping[str, CellProfile]) -> pd.DataFrame:
    """Totals and zeros of the sampled cells of both sides."""
    parts = [
        pd.DataFrame({"side": side, "context": c, "total": profile.totals, "zero_fraction": profile.zero_fraction})
        for side, profiles in sides.items()
        for c, profile in profiles.items()
    ]
    return pd.concat(parts, ignore_index=True)


def _tests(tables: Mapping[str, pl.DataFrame]) -> pd.DataFrame | None:
    """Differential expression of all contexts as one pandas table."""
    if not tables:
        return None
    # column by column, so that no part of the table exists twice
    labels = np.array(list(tables), dtype=object)
    columns: dict[str, NDArray[Any]] = {"context": np.repeat(labels, [len(table) for table in tables.values()])}
    for column in DE_COLUMNS:
        columns[_TITLES.get(column, column)] = np.concatenate([_values(table[column]) for table in tables.values()])
    return pd.DataFrame(columns, copy=False)


def _values(column: pl.Series) -> NDArray[Any]:
    """Values of a column; equal texts are one object, where polars would make a million of them."""
    import polars as pl

    if column.dtype != pl.String:
        return column.to_numpy()
    labels = column.unique(maintain_order=True)
    places = column.cast(pl.Enum(labels)).to_physical().to_numpy()
    return labels.to_numpy().astype(object)[places]
