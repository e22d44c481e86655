"""Are the training data, from which baselines are computed, on the scale of the cells that are scored?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.evaluate._cell_profile import profiles_of_contexts
from scvi_tahoe.evaluate._check import gravest
from scvi_tahoe.evaluate._value_checks import ONE_TOTAL, check_integers, check_range, check_scale

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvi_tahoe.evaluate._cell_profile import CellProfile
    from scvi_tahoe.evaluate._cells import CellTable
    from scvi_tahoe.evaluate._check import Check

__all__ = ["check_training_data"]

_ROLE = "training data"


def check_training_data(train: CellTable, observed: Mapping[str, CellProfile], *, control: str) -> list[Check]:
    """Check values and scale of the training data.

    A baseline from data on another scale is far from every truth, so that each prediction seems to beat it.

    Parameters
    ----------
    train
        Training cells over the genes of the reference.
    observed
        Profiles of the observed perturbed cells of each context.
    control
        Label of control cells.
    """
    found = check_range(train, role=_ROLE)
    if np.isnan(found.value):
        return [found]
    profiles = profiles_of_contexts(train, without=control)
    by_context = {
        context: [
            check_integers(profile, role=_ROLE),
            *([check_scale(profile, truth, role=_ROLE)] if (truth := _like(context, observed)) is not None else []),
        ]
        for context, profile in profiles.items()
    }
    return [found, *gravest(by_context)]


def _like(context: str, observed: Mapping[str, CellProfile]) -> CellProfile | None:
    """Observed cells whose totals those of a training context must have; ``None`` where they may differ.

    Over a part of the genes the totals of two contexts differ, unless cells were normalised over just these genes.
    """
    if context in observed:
        return observed[context]
    first = next(iter(observed.values()))
    normalised = all(np.std(o.totals) <= ONE_TOTAL * np.mean(o.totals) for o in observed.values())
    return first if normalised else None
