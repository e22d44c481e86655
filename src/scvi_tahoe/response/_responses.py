"""Measured changes of conditions, as the response model is fitted to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.response._judged import nanmean

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Responses:
    """Changes of conditions.

    Attributes
    ----------
    perturbations, contexts
        Labels, ``[n]``.
    changes
        Mean change against the context's controls, ``[n, G]``; NaN where it was not measured.
    noise
        Their sampling variance, ``[n, G]``; zeros where it is not known.
    genes
        Names, ``[G]``.
    control_means
        Mean control expression of contexts, ``[G]`` each; may be empty.
    sources
        Data set of contexts; may be empty.
    """

    perturbations: np.ndarray
    contexts: np.ndarray
    changes: np.ndarray
    noise: np.ndarray
    genes: np.ndarray
    control_means: Mapping[str, np.ndarray]
    sources: Mapping[str, str] = field(default_factory=dict)


def filled_changes(changes: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """Fill in the mean of the context, or else of all conditions, where changes are missing."""
    missing = np.isnan(changes)
    if not missing.any():
        return changes.astype(np.float64)
    result = changes.astype(np.float64)
    with np.errstate(invalid="ignore"):
        overall = np.nan_to_num(nanmean(result))
        for context in np.unique(contexts).tolist():
            here = contexts == context
            mean = nanmean(result[here])
            mean = np.where(np.isnan(mean), overall, mean)
            result[here] = np.where(missing[here], mean, result[here])
    return result
