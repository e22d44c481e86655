"""Metrics: what each is computed from, and how to read it.

Shapes: **P** perturbations, **G** genes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scvi_tahoe._arguments import checked
from scvi_tahoe._names import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable
    from scvi_tahoe.evaluate._context_truth import ContextTruth
    from scvi_tahoe.evaluate._group_statistics import GroupStatistics

    Compute = Callable[["Comparison"], NDArray[np.floating]]

CeilingRule = Literal["spearman_brown", "absolute", "squared", "none"]


@dataclass(frozen=True)
class Comparison:
    """Both sides of one context, as metrics see them."""

    #: statistics of the same perturbations in the same order, each with the controls that its deltas are taken
    #: against
    observed: GroupStatistics
    predicted: GroupStatistics
    #: gene names, ``[G]``
    genes: NDArray[np.str_]
    #: gene weights of each perturbation, ``[P, G]``, see :func:`~scvi_tahoe.evaluate.gene_weights`
    weights: NDArray[np.float64]
    #: differentially expressed genes of each perturbation, ``[P]``, for metrics that need them
    n_de_observed: NDArray[np.intp] | None = None
    n_de_predicted: NDArray[np.intp] | None = None
    #: observed and predicted cells, for metrics that need them
    truth: ContextTruth | None = None
    predicted_cells: CellTable | None = None

    @cached_property
    def target_gene(self) -> NDArray[np.intp]:
        """Column of the gene that carries a perturbation's name, -1 if none does (drugs, guides), ``[P]``."""
        return pd.Index(self.genes).get_indexer(pd.Index(self.observed.perturbations))

    @cached_property
    def perturbed_mean(self) -> NDArray[np.float64]:
        """Mean of the observed perturbations, Systema's reference: a common shift earns nothing, ``[G]``."""
        return self.observed.mean.mean(axis=0)


@dataclass(frozen=True, kw_only=True)
class MetricInfo:
    """How to read one score."""

    #: short name for tables and figures
    label: str
    #: value of a perfect prediction; ``None`` for a diagnostic that is reported and not scored
    best: float | None
    #: how a score between two halves of the observed cells becomes that of a replicate at full depth:
    #:
    #: * ``"spearman_brown"`` - ``2 r / (1 + r)``, for agreement (as cell-eval >= 0.8.2);
    #: * ``"absolute"`` - divided by the square root of 2, ``"squared"`` - divided by 2: differences of two half-depth
    #:   means are noise with twice the variance of those of two full-depth means;
    #: * ``"none"`` - no rule, no ceiling.
    ceiling: CeilingRule = "none"
    #: whether it is computed from differential expression
    needs_de: bool = False
    #: whether it is one number for all perturbations of a context, repeated in each row: then neither a bootstrap over
    #: perturbations nor groups of them have a meaning
    whole_panel: bool = False
    #: where the formula comes from
    source: str = "cell-eval 0.8.2"
    #: whether it is computed from single cells, which only presets with scores of cells do
    needs_cells: bool = False
    #: function of both sides of a context that returns a value for each perturbation; ``None`` for the scores that
    #: another package computes
    compute: Compute | None = field(default=None, repr=False)

    @property
    def direction(self) -> str:
        """``"higher"`` or ``"lower"`` is better; ``"diagnostic"`` if it is not scored."""
        if self.best is None:
            return "diagnostic"
        return "higher" if self.best == 1 else "lower"


METRICS: Registry[MetricInfo] = Registry("metric")


def register_metric(name: str, **info: Any) -> Callable[[Compute], Compute]:
    """Register the decorated function under a name; ``info`` are the attributes of :class:`MetricInfo`."""

    def register(compute: Compute) -> Compute:
        METRICS.register(name, MetricInfo(compute=compute, **info))
        return compute

    return register


@checked()
def metric_info(name: str) -> MetricInfo:
    """Return the entry of :data:`METRICS`; a metric of a later cell-eval that is not listed is a diagnostic."""
    return METRICS.get(name, MetricInfo(label=name, best=None, source="cell-eval"))


def computed_metrics(
    sides: Comparison, wanted: Callable[[MetricInfo], bool], names: Collection[str] | None = None
) -> pd.DataFrame:
    """Compute our own metrics that are wanted: one row per perturbation, in the order in which they are registered.

    ``names`` are those to choose from. If None, all.
    """
    columns = {
        name: info.compute(sides)
        for name, info in METRICS.items()
        if info.compute is not None and wanted(info) and (names is None or name in names)
    }
    return pd.DataFrame(columns, index=pd.Index(sides.observed.perturbations, name="perturbation"))


#: how a mean split-half score becomes that of a replicate at full depth
_FULL_DEPTH: dict[CeilingRule, Callable[[float], float]] = {
    "spearman_brown": lambda r: 2 * r / (1 + r) if r > 0 else np.nan,  # else the halves do not agree at all
    "absolute": lambda error: error / np.sqrt(2),
    "squared": lambda error: error / 2,
    "none": lambda score: np.nan,
}


def to_full_depth(half_depth: pd.Series) -> pd.Series:
    """Carry mean split-half scores to full depth by the ceiling rule of each metric; NaN if there is none."""
    full_depth = {name: _FULL_DEPTH[metric_info(str(name)).ceiling](score) for name, score in half_depth.items()}
    return pd.Series(full_depth, dtype=float)
