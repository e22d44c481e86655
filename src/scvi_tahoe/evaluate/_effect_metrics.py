"""Scores that need no differential expression: one table from the group statistics of both sides.

Shapes: **P** perturbations, **G** genes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_tahoe.evaluate._discrimination import centroid_accuracy, discrimination_score_l1, pds_cosine
from scvi_tahoe.evaluate._errors import (
    effect_size_ratio,
    mean_absolute_error,
    mean_squared_error,
    pearson,
    r2_weighted,
    wmse,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._group_statistics import GroupStatistics

__all__ = ["EFFECT_METRICS", "effect_metrics", "target_columns"]

EFFECT_METRICS = (
    "mae",
    "mse",
    "mae_delta",
    "pearson_delta",
    "discrimination_score_l1",
    "pds_cosine",
    "pearson_systema",
    "centroid_accuracy",
    "wmse",
    "r2_weighted",
    "effect_size_ratio",
    "variance_ratio",
    "zero_fraction_difference",
)


def target_columns(perturbations: tuple[str, ...], genes: NDArray[np.str_]) -> NDArray[np.intp]:
    """Column of the gene that carries a perturbation's name, -1 where none does (drugs, guides), ``[P]``."""
    return pd.Index(genes).get_indexer(pd.Index(perturbations))


def effect_metrics(
    observed: GroupStatistics, predicted: GroupStatistics, genes: NDArray[np.str_], weights: NDArray[np.float64]
) -> pd.DataFrame:
    """Score every perturbation of one context from means, variances and zeros.

    Parameters
    ----------
    observed, predicted
        Statistics of the same perturbations in the same order. Each side's deltas are taken against its own control
        mean; with real controls under the prediction these are the same.
    genes
        Gene names, ``[G]``.
    weights
        Gene weights, ``[P, G]``, see :func:`~scvi_tahoe.evaluate.gene_weights`.

    Returns
    -------
    One row a perturbation, columns :data:`EFFECT_METRICS`. Those that cell-eval has too follow its definition.
    """
    targets = target_columns(observed.perturbations, genes)
    # Systema's reference: the mean of the observed perturbations, so that a shift all of them share earns nothing
    reference = observed.mean.mean(axis=0)
    columns = {
        "mae": mean_absolute_error(predicted.mean, observed.mean),
        "mse": mean_squared_error(predicted.mean, observed.mean),
        "mae_delta": mean_absolute_error(predicted.delta, observed.delta),
        "pearson_delta": pearson(predicted.delta, observed.delta),
        "discrimination_score_l1": discrimination_score_l1(predicted.delta, observed.delta, targets),
        "pds_cosine": pds_cosine(predicted.delta, observed.delta, targets),
        "pearson_systema": pearson(predicted.mean - reference, observed.mean - reference),
        "centroid_accuracy": centroid_accuracy(predicted.mean, observed.mean),
        "wmse": wmse(predicted.mean, observed.mean, weights),
        "r2_weighted": r2_weighted(predicted.mean - reference, observed.mean - reference, weights),
        "effect_size_ratio": effect_size_ratio(predicted.delta, observed.delta),
        "variance_ratio": _variance_ratio(predicted, observed),
        "zero_fraction_difference": (predicted.zero_fraction - observed.zero_fraction).mean(axis=1),
    }
    return pd.DataFrame(columns, index=pd.Index(observed.perturbations, name="perturbation"))


def _variance_ratio(predicted: GroupStatistics, observed: GroupStatistics) -> NDArray[np.float64]:
    """Summed standard deviations over genes, predicted over observed, ``[P]``; 0 where predicted cells are alike."""
    spread = np.sqrt(observed.variance).sum(axis=1)
    return np.divide(
        np.sqrt(predicted.variance).sum(axis=1), spread, out=np.full(len(spread), np.nan), where=spread > 0
    )
