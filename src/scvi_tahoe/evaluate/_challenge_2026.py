"""Adding the scores of 2026 to a result that was made from the same counts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_tahoe.evaluate._bootstrap import bootstrap_means, interval
from scvi_tahoe.evaluate._check import Check, checks_table
from scvi_tahoe.evaluate._metric_info import metric_info
from scvi_tahoe.evaluate._summary import mean_over_contexts
from scvi_tahoe.evaluate._vcc2026 import VCC2026_METRICS, vcc2026_scores

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvi_tahoe.evaluate._cells import CellTable
    from scvi_tahoe.evaluate._reference import EvaluationReference
    from scvi_tahoe.evaluate._result import EvaluationResult
    from scvi_tahoe.evaluate._vcc2026 import Vcc2026Scores

__all__ = ["with_scores_of_2026"]


def with_scores_of_2026(
    result: EvaluationResult, predicted: CellTable, reference: EvaluationReference
) -> EvaluationResult:
    """Return the result with the six members in front, and the overall score of 2026 in ``vcc``.

    Parameters
    ----------
    result
        Result of the quick metrics on the same cells.
    predicted
        Predicted cells, raw counts.
    reference
        Truth, raw counts.
    """
    scores = {
        context: vcc2026_scores(truth, predicted.of_context(context), reference)
        for context, truth in reference.contexts.items()
    }
    members = pd.concat({c: s.per_perturbation for c, s in scores.items()}, names=["context", "perturbation"])
    own = result.per_perturbation.drop(columns=members.columns.intersection(result.per_perturbation.columns))
    kept = result.summary.drop(index=result.summary.index.intersection(list(VCC2026_METRICS)))
    vcc = _overall(scores)
    theirs = _summary(scores, members, kept.columns, seed=result.provenance["seed"])
    return replace(
        result,
        checks=pd.concat([checks_table([_scale_check(vcc)]), result.checks]),
        per_perturbation=own.join(members),
        summary=pd.concat([theirs, kept]).rename_axis("metric"),
        vcc=vcc,
    )


def _scale_check(vcc: Mapping[str, Any]) -> Check:
    """Tell which members have no scale on these data, and hence why there is no overall score."""
    lost = [name for name, share in vcc["scaled"].items() if np.isnan(share)]
    if not lost:
        return Check("scale of 2026", "ok", 6, "6 members")
    message = (
        f"{', '.join(lost)} have no room between the mean response and a replicate on these data (too few genes or "
        "cells), so there is no overall score of 2026."
    )
    return Check("scale of 2026", "warning", 6 - len(lost), "6 members", message)


def _summary(
    scores: Mapping[str, Vcc2026Scores], members: pd.DataFrame, columns: pd.Index, *, seed: int
) -> pd.DataFrame:
    """Lines of the six members in the form of the summary; the ceiling is the mean of five split-half replicates."""
    mean = pd.concat([s.table for s in scores.values()]).groupby(level=0, sort=False).mean()
    table = pd.DataFrame(np.nan, index=list(VCC2026_METRICS), columns=columns, dtype=object)
    table["value"], table["baseline"] = mean["value"], mean["baseline"]
    table["ceiling"], table["scaled"] = mean["replicate"], mean["scaled"]
    low, high = interval(bootstrap_means([members], seed=seed)[0])
    # a member whose value is not the mean over perturbations has no interval
    means = np.isclose(mean_over_contexts(members), table["value"].reindex(members.columns).astype(float))
    for side, ends in (("low", low), ("high", high)):
        table[side] = pd.Series(np.where(means, ends, np.nan), index=members.columns).reindex(table.index)
    table["direction"] = [metric_info(name).direction for name in table.index]
    known = members.notna().sum().reindex(table.index).fillna(len(members)).astype(int)
    table["n_perturbations"], table["n_missing"] = known, len(members) - known
    numbers = [c for c in columns if c != "direction"]
    return table.astype(dict.fromkeys(numbers, float))


def _overall(scores: Mapping[str, Vcc2026Scores]) -> dict[str, Any]:
    """Overall score with its terms, means over contexts."""
    mean = pd.concat([s.table for s in scores.values()]).groupby(level=0, sort=False).mean()
    return {
        "year": 2026,
        **{str(name): float(value) for name, value in mean["value"].items()},
        "baseline": {str(name): float(value) for name, value in mean["baseline"].items()},
        "replicate": {str(name): float(value) for name, value in mean["replicate"].items()},
        "scaled": {str(name): float(value) for name, value in mean["scaled"].items()},
        "overall": float(np.mean([s.overall for s in scores.values()])),
        "by_context": {context: s.overall for context, s in scores.items()},
    }
