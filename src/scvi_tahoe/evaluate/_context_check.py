"""Are cells of several contexts scored as one, because nobody said which column tells them apart?"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.evaluate._cells import dense
from scvi_tahoe.evaluate._check import Check

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable

__all__ = ["check_contexts"]

#: columns that name contexts in public screens
_NAMES = re.compile(r"cell[_ .]?(line|type)s?|celltype|donor|tissue|context|cell[_ .]?name", re.IGNORECASE)
#: largest distance of control means that sampling gives, in units of what it gives on average
_DISTANCE = 2.0
_MAX_CELLS = 1000


def check_contexts(obs: pd.DataFrame, cells: CellTable, *, control: str, context_key: str | None) -> Check:
    """Look for a column of contexts that was not named, whose control cells differ.

    cell-eval mixes two cell types under one perturbation label without a word; effects are then taken against the mean
    of both.

    Parameters
    ----------
    obs
        Columns of the reference.
    cells
        Its cells, in the same order.
    control
        Label of control cells.
    context_key
        Column of contexts, if one was named: then nothing is looked for.
    """
    name, allowed = "contexts", f"control cells within {_DISTANCE:g} of one another"
    if context_key is not None:
        return Check(name, "ok", allowed=allowed)
    rows = np.flatnonzero(cells.perturbation == control)
    for column in (c for c in obs.columns if _NAMES.fullmatch(str(c))):
        labels = obs[column].to_numpy().astype(str)[rows]
        distance = _largest_distance(cells, rows, labels)
        if distance > _DISTANCE:
            message = (
                f"obs[{column!r}] divides the control cells into {len(np.unique(labels))} populations whose means lie "
                f"{distance:.1f} times as far apart as sampling would put them, and they are scored as one; pass "
                f"context_key={column!r} to score them one by one."
            )
            return Check(name, "warning", distance, allowed, message)
    return Check(name, "ok", allowed=allowed)


def _largest_distance(cells: CellTable, rows: NDArray[np.intp], labels: NDArray[np.str_]) -> float:
    """Largest mean absolute distance of a population from the first, over its expectation under sampling alone."""
    blocks = []
    for label in np.unique(labels):
        chosen = rows[labels == label][:_MAX_CELLS]
        if len(chosen) > 1:
            blocks.append(dense(cells.expression[chosen]))
    if len(blocks) < 2:
        return 0.0
    mean = np.stack([block.mean(axis=0, dtype=np.float64) for block in blocks])
    error = np.stack([block.var(axis=0, ddof=1, dtype=np.float64) / len(block) for block in blocks])
    distance = np.abs(mean[1:] - mean[0]).mean(axis=1)
    expected = np.sqrt(2 / np.pi) * np.sqrt(error[1:] + error[0]).mean(axis=1)
    return float(np.divide(distance, expected, out=np.zeros(len(distance)), where=expected > 0).max())
