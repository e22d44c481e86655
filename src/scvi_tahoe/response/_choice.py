"""Which prior a model has where its user does not say."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scvi_tahoe.data import ConditionIndex, ScreenKeys
    from scvi_tahoe.response._prior import Prior

__all__ = ["choose_prior"]

_CELLS_UP_TO = 5_000_000  # conditions x genes whose prior is made in minutes


def choose_prior(index: ConditionIndex, keys: ScreenKeys, n_genes: int) -> Prior:
    """Cells, if most conditions can be made from others and there are not too many conditions to keep."""
    is_small = len(index.conditions) * n_genes <= _CELLS_UP_TO
    components = [keys.parser.components(label) for label in index.perturbations]
    has_parts = keys.combination_separator is not None and sum(len(of_label) == 1 for of_label in components) > 1
    return "cells" if is_small and (index.perturbations_recur or has_parts) else "none"
