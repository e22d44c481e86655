"""Scoring one context: observed cells on one side, predicted ones on the other."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from scvi_tahoe.evaluate._differential_expression import FDR
from scvi_tahoe.evaluate._group_statistics import GroupStatistics, group_statistics
from scvi_tahoe.evaluate._metric_cell_eval import cell_eval_scores
from scvi_tahoe.evaluate._metrics import Comparison, computed_metrics
from scvi_tahoe.evaluate._presets import PRESETS, Preset

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable
    from scvi_tahoe.evaluate._context_truth import ContextTruth


@dataclass(frozen=True, kw_only=True)
class ScoringSettings:
    """How to score; everything here enters the cache key and the provenance."""

    #: name of a preset
    preset: str = "vcc2025"
    #: ``"real"`` puts the observed controls under the prediction; ``"predicted"`` takes its own
    control_cells: Literal["real", "predicted"] = "real"

    def __post_init__(self) -> None:
        if self.control_cells not in ("real", "predicted"):
            raise ValueError(f'control_cells must be "real" or "predicted", got {self.control_cells!r}.')
        if self.record.from_counts and self.control_cells == "predicted":
            raise ValueError('The challenge of 2026 takes observed controls on both sides: use control_cells="real".')

    @property
    def record(self) -> Preset:
        """What the preset scores."""
        return PRESETS.find(self.preset)

    def to_kwargs(self) -> dict[str, object]:
        """Return the settings as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class ContextScores:
    """Scores of one context."""

    #: one row per perturbation, one column per score, and ``n_cells``, ``n_cells_predicted``
    per_perturbation: pd.DataFrame
    #: means, variances and zeros of the predicted cells
    statistics: GroupStatistics
    #: differential expression of the predicted cells, if it was tested
    de_predicted: pl.DataFrame | None = None


def score_context(truth: ContextTruth, predicted: CellTable, settings: ScoringSettings) -> ContextScores:
    """Score predicted cells of every perturbation, with controls unless the real ones are taken, against the truth."""
    preset, real_controls = settings.record, settings.control_cells == "real"
    statistics = group_statistics(
        predicted,
        truth.context,
        truth.perturbations,
        control=truth.control,
        controls_of=truth.statistics if real_controls else None,
    )
    sides = Comparison(
        truth.statistics, statistics, truth.cells.genes, truth.weights, truth=truth, predicted_cells=predicted
    )
    scores = computed_metrics(sides, lambda metric: not (metric.needs_de or metric.needs_cells))
    de_predicted = None
    if preset.cell_eval_profile is not None:
        controls = truth.controls if real_controls else None
        de_predicted = truth.test(predicted, controls=controls)
        theirs = cell_eval_scores(
            observed=(truth.cells, truth.statistics, truth.differential_expression),
            predicted=(predicted, statistics, de_predicted),
            control=truth.control,
            profile=preset.cell_eval_profile,
            controls=controls,
        )
        tables = (truth.differential_expression, de_predicted)
        n_observed, n_predicted = (_count_significant(table, truth.perturbations) for table in tables)
        sides = replace(sides, n_de_observed=n_observed, n_de_predicted=n_predicted)
        ours = computed_metrics(sides, lambda metric: metric.needs_de and not metric.needs_cells)
        rest = scores.drop(columns=scores.columns.intersection(theirs.columns))
        counts = pd.DataFrame({"n_de_observed": n_observed, "n_de_predicted": n_predicted}, index=scores.index)
        scores = pd.concat([theirs, rest, counts, ours], axis=1)
    if preset.scores_cells:
        of_cells = computed_metrics(sides, lambda info: info.needs_cells and (preset.needs_de or not info.needs_de))
        scores = pd.concat([scores, of_cells], axis=1)
    scores.insert(0, "n_cells", truth.statistics.n_cells)
    scores.insert(1, "n_cells_predicted", statistics.n_cells)
    scores.index.name = "perturbation"
    return ContextScores(scores, statistics, de_predicted)


def _count_significant(table: pl.DataFrame, perturbations: tuple[str, ...]) -> NDArray[np.intp]:
    """Differentially expressed genes of each perturbation, ``[P]``."""
    import polars as pl

    counts = dict(table.filter(pl.col("fdr") < FDR).group_by("target").len().iter_rows())
    return np.array([counts.get(p, 0) for p in perturbations], dtype=np.intp)
