"""Several predictions for the same cells, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_tahoe.evaluate._baselines import BASELINES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from scvi_tahoe.evaluate._reference import EvaluationReference
    from scvi_tahoe.evaluate._result import EvaluationResult

__all__ = ["HEADLINE_METRICS", "baseline_results", "compare_results", "verify_comparable"]

#: metrics shown unless others are asked for; those that a preset does not give are left out
HEADLINE_METRICS = (
    "overlap_at_N",
    "discrimination_score_l1",
    "mae",
    "pearson_delta",
    "de_direction_match",
    "pds_cosine",
    "pearson_systema",
    "wmse",
)


def compare_results(
    results: Mapping[str, EvaluationResult],
    *,
    metrics: Sequence[str] | None = None,
    baseline: bool = True,
    ceiling: bool = True,
) -> pd.DataFrame:
    """Return one row a prediction and one column a metric, with the overall score of the challenge where there is one.

    Parameters
    ----------
    results
        Results by name, all against the same truth under the same settings.
    metrics
        Metrics to show; by default the headline ones that all results have.
    baseline
        Add a row with the baseline that shares of the way and overall scores start from, unless one of the predictions
        is that baseline.
    ceiling
        Add a last row with what a replicate experiment would reach.

    Raises
    ------
    ValueError
        If there is no result, or two of them cannot be compared; the message names what differs.
    KeyError
        If a result lacks a metric that was asked for.
    """
    verify_comparable(results)
    first = next(iter(results.values()))
    if metrics is None:
        metrics = [m for m in HEADLINE_METRICS if all(m in r.summary.index for r in results.values())]
    absent = [m for m in metrics if any(m not in r.summary.index for r in results.values())]
    if absent:
        msg = f"Metrics {absent} are not in every result; they have {list(first.summary.index)}."
        raise KeyError(msg)
    rows = {name: result.summary.loc[list(metrics), "value"] for name, result in results.items()}
    scaled = next((r for r in results.values() if r.provenance["baseline"] is not None), first)
    base = scaled.summary.loc[list(metrics), "baseline"]
    if baseline and base.notna().any() and not any(_same(base, row) for row in rows.values()):
        # the six scores of 2026 have a baseline of their own beside the named one
        several = scaled.provenance["preset"] == "vcc2026"
        rows["baseline" if several else f"baseline ({scaled.provenance['baseline']})"] = base
    if ceiling and first.summary["ceiling"].notna().any():
        rows["ceiling (replicate)"] = first.summary.loc[list(metrics), "ceiling"]
    table = pd.DataFrame(rows).T
    challenges = {name: result.vcc for name, result in results.items() if result.vcc is not None}
    if challenges:
        year = next(iter(challenges.values()))["year"]
        table[f"VCC {year} overall"] = [challenges[n]["overall"] if n in challenges else np.nan for n in table.index]
    table.index.name = "prediction"
    return table


def _same(one: pd.Series, other: pd.Series) -> bool:
    return bool(np.allclose(one.to_numpy(float), other.to_numpy(float), rtol=1e-6, atol=0, equal_nan=True))


def _same_baseline(one: EvaluationResult, other: EvaluationResult) -> bool:
    """Whether shares of the way and overall scores start from the same; without a baseline there are none to compare.

    A named baseline counts as the same with another seed: its cells are drawn anew, from the same training data.
    """
    names = [side.provenance["baseline"] for side in (one, other)]
    if None in names:
        return True
    if all(name in BASELINES for name in names):
        from_training = names[0] != "control"
        return names[0] == names[1] and not (from_training and one.provenance["train"] != other.provenance["train"])
    return _same(one.summary["baseline"], other.summary["baseline"])


def baseline_results(
    reference: EvaluationReference,
    names: Sequence[str] = ("control", "train_mean", "context_transfer", "cells_shifted", "cells_quantile"),
    *,
    preset: str = "vcc2025",
    seed: int = 0,
) -> dict[str, EvaluationResult]:
    """Evaluate baselines as if each were a prediction, to be put beside a model's result.

    Parameters
    ----------
    reference
        Truth with training data.
    names
        Baselines, see :data:`~scvi_tahoe.evaluate.BASELINES`.
    preset
        Preset of :func:`~scvi_tahoe.evaluate.evaluate`.
    seed
        Seed of the cells they draw.
    """
    from scvi_tahoe.evaluate._baselines import baseline_cells
    from scvi_tahoe.evaluate._evaluate import evaluate

    def predict(name: str) -> AnnData:
        cells = baseline_cells(name, reference.task, seed=seed)
        return cells.to_adata(perturbation_key=reference.perturbation_key, context_key=reference.context_key)

    # a baseline is allowed to be as bad as it is: its warnings are expected and kept in the result's checks
    return {
        name: evaluate(predict(name), reference, preset=preset, seed=seed, representation_check="off") for name in names
    }


def verify_comparable(results: Mapping[str, EvaluationResult]) -> None:
    """Refuse results of different truths, settings, baselines or releases of cell-eval.

    Raises
    ------
    ValueError
        If there is no result, or two of them differ in what decides about scores.
    """
    if not results:
        msg = "There is no result to compare."
        raise ValueError(msg)
    (first_name, first), *others = results.items()
    for name, other in others:
        different = [
            key for key in ("truth", "preset", "control_cells") if first.provenance[key] != other.provenance[key]
        ]
        versions = [r.provenance["versions"] for r in (first, other)]
        different += [p for p in ("cell-eval", "pdex", "cell-eval2") if versions[0].get(p) != versions[1].get(p)]
        if not different and not _same_baseline(first, other):
            different = ["baseline"]
        if different:
            msg = f"Results {first_name!r} and {name!r} cannot be compared: they differ in {', '.join(different)}."
            raise ValueError(msg)
