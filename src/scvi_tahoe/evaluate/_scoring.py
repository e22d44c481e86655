"""Scoring one context: observed cells on one side, predicted ones on the other."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from scvi_tahoe.evaluate._cache import TruthCache, content_hash, installed_versions
from scvi_tahoe.evaluate._cell_eval import CELL_EVAL_PROFILES, cell_eval_scores
from scvi_tahoe.evaluate._differential_expression import FDR, differential_expression
from scvi_tahoe.evaluate._effect_metrics import effect_metrics
from scvi_tahoe.evaluate._energy_distance import Components, energy_distance, fit_components
from scvi_tahoe.evaluate._gene_weights import gene_weights
from scvi_tahoe.evaluate._group_statistics import GroupStatistics, group_statistics

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable

__all__ = ["PRESETS", "ContextScores", "ContextTruth", "ScoringSettings", "score_context"]

PRESETS = ("quick", "vcc2025", "minimal", "full", "vcc2026")


@dataclass(frozen=True, kw_only=True)
class ScoringSettings:
    """How to score; everything here enters the cache key and the provenance.

    Attributes
    ----------
    preset
        One of :data:`PRESETS`.
    control_cells
        ``"real"`` puts the observed controls under the prediction; ``"predicted"`` takes its own.
    """

    preset: str = "vcc2025"
    control_cells: Literal["real", "predicted"] = "real"

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            msg = f"There is no preset {self.preset!r}; choose one of {list(PRESETS)}."
            raise ValueError(msg)
        if self.control_cells not in ("real", "predicted"):
            msg = f'control_cells must be "real" or "predicted", got {self.control_cells!r}.'
            raise ValueError(msg)
        if self.from_counts and self.control_cells == "predicted":
            msg = 'The challenge of 2026 takes the observed controls on both sides: use control_cells="real".'
            raise ValueError(msg)

    @property
    def from_counts(self) -> bool:
        """Whether both sides hold raw counts."""
        return self.preset == "vcc2026"

    @property
    def needs_de(self) -> bool:
        """Whether differential expression is tested."""
        return self.preset in CELL_EVAL_PROFILES

    def to_kwargs(self) -> dict[str, object]:
        """Settings as plain values."""
        return asdict(self)


class ContextTruth:
    """Observed cells of one context and what follows from them, each part computed when first asked for.

    Parameters
    ----------
    cells
        Observed cells of one context, controls included.
    control
        Label of the control cells.
    cache
        Where differential expression is kept.
    de_backend
        Where differential expression is tested.
    num_threads
        Threads of the test.
    progress
        Show progress bars.
    """

    def __init__(
        self,
        cells: CellTable,
        *,
        control: str,
        cache: TruthCache | None = None,
        de_backend: Literal["cpu", "gpu"] = "cpu",
        num_threads: int | None = None,
        progress: bool = False,
    ) -> None:
        (self.context,) = cells.contexts
        self.cells = cells
        self.control = control
        self.perturbations = cells.perturbations(self.context, control=control)
        self.de_backend = de_backend
        self.num_threads = num_threads
        self.progress = progress
        self._cache = cache or TruthCache()

    @cached_property
    def statistics(self) -> GroupStatistics:
        """Means, variances and zeros of every perturbation."""
        return group_statistics(self.cells, self.context, self.perturbations, control=self.control)

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """Gene weights of the weighted scores, ``[P, G]``."""
        return gene_weights(self.statistics)

    @cached_property
    def components(self) -> Components:
        """Principal components of the observed cells."""
        return fit_components(self.cells)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the cells and the control label."""
        return content_hash(self.cells) + f"-{self.control}"

    @cached_property
    def differential_expression(self) -> pl.DataFrame:
        """Differential expression of the observed cells."""
        key: dict[str, object] = {
            "table": "observed de",
            "truth": self.fingerprint,
            "backend": self.de_backend,
            "versions": installed_versions(),
        }
        return self._cache.table(key, lambda: self.test(self.cells))

    def test(self, cells: CellTable, *, controls: CellTable | None = None) -> pl.DataFrame:
        """Differential expression of other cells of this context under the same settings."""
        return differential_expression(
            cells,
            control=self.control,
            controls=controls,
            backend=self.de_backend,
            num_threads=self.num_threads,
            progress=self.progress,
        )

    @property
    def controls(self) -> CellTable:
        """Observed control cells."""
        return self.cells.take(self.cells.rows[self.context, self.control])


@dataclass(frozen=True)
class ContextScores:
    """Scores of one context.

    Attributes
    ----------
    per_perturbation
        One row a perturbation, one column a score, and ``n_cells``, ``n_cells_predicted``.
    statistics
        Means, variances and zeros of the predicted cells.
    de_predicted
        Differential expression of the predicted cells, if it was tested.
    """

    per_perturbation: pd.DataFrame
    statistics: GroupStatistics
    de_predicted: pl.DataFrame | None = None


def score_context(truth: ContextTruth, predicted: CellTable, settings: ScoringSettings) -> ContextScores:
    """Score predicted cells against the truth of their context.

    Parameters
    ----------
    truth
        Observed cells.
    predicted
        Predicted cells of every perturbation of the truth, over the same genes, and under ``control_cells="predicted"``
        their own controls.
    settings
        What to compute.
    """
    real_controls = settings.control_cells == "real"
    statistics = group_statistics(
        predicted,
        truth.context,
        truth.perturbations,
        control=truth.control,
        controls_of=truth.statistics if real_controls else None,
    )
    scores = effect_metrics(truth.statistics, statistics, truth.cells.genes, truth.weights)
    de_predicted = None
    if settings.needs_de:
        controls = truth.controls if real_controls else None
        de_predicted = truth.test(predicted, controls=controls)
        theirs = cell_eval_scores(
            observed=(truth.cells, truth.statistics, truth.differential_expression),
            predicted=(predicted, statistics, de_predicted),
            control=truth.control,
            preset=settings.preset,
            controls=controls,
        )
        counts = _de_counts(truth, de_predicted)
        scores = pd.concat([theirs, scores.drop(columns=scores.columns.intersection(theirs.columns)), counts], axis=1)
    if settings.preset == "full":
        scores["energy_distance"] = _energy_distances(truth, predicted)
    scores.insert(0, "n_cells", truth.statistics.n_cells)
    scores.insert(1, "n_cells_predicted", statistics.n_cells)
    scores.index.name = "perturbation"
    return ContextScores(scores, statistics, de_predicted)


def _energy_distances(truth: ContextTruth, predicted: CellTable) -> list[float]:
    """Energy distance of predicted from observed cells of each perturbation, in 50 principal components."""
    place = truth.components
    blocks = [[side.block(truth.context, p) for side in (predicted, truth.cells)] for p in truth.perturbations]
    return [energy_distance(place(ours), place(theirs)) for ours, theirs in blocks]


def _de_counts(truth: ContextTruth, de_predicted: pl.DataFrame) -> pd.DataFrame:
    """Differentially expressed genes of each perturbation, ``n_de_observed``, ``n_de_predicted`` and their ratio."""
    observed, predicted = (_count_significant(table, truth) for table in (truth.differential_expression, de_predicted))
    ratio = np.divide(predicted, observed, out=np.full(len(observed), np.nan), where=observed > 0)
    columns = {"n_de_observed": observed, "n_de_predicted": predicted, "nsig_ratio": ratio}
    return pd.DataFrame(columns, index=list(truth.perturbations))


def _count_significant(table: pl.DataFrame, truth: ContextTruth) -> NDArray[np.intp]:
    import polars as pl

    counts = dict(table.filter(pl.col("fdr") < FDR).group_by("target").len().iter_rows())
    return np.array([counts.get(p, 0) for p in truth.perturbations], dtype=np.intp)
