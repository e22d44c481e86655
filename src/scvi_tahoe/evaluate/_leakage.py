"""Did the training data hold what the prediction is scored on?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.evaluate._cells import dense
from scvi_tahoe.evaluate._check import Check

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable

__all__ = ["check_conditions", "check_leakage"]

#: share of held-out cells that may equal a training cell by chance: shallow cells over few genes do
_CHANCE = 0.01
#: cells made dense at a time
_CHUNK = 1024


def check_leakage(train: CellTable, observed: CellTable, *, control: str) -> list[Check]:
    """Look for held-out conditions, and for held-out perturbed cells, among the training data.

    Controls may be in both: a model needs them to predict.

    Parameters
    ----------
    train, observed
        Training cells and held-out cells over the same genes.
    control
        Label of control cells.
    """
    held_out = [key for key in observed.rows if key[1] != control]
    return [check_conditions(train.rows, held_out), _leaked_cells(train, observed, control)]


def check_conditions(trained: Collection[tuple[str, str]], held_out: Collection[tuple[str, str]]) -> Check:
    """Look for held-out conditions among those that were trained on; both as context and perturbation."""
    both = sorted(set(held_out) & set(trained))
    if not both:
        return Check("leakage of conditions", "ok", 0.0, "0")
    context, perturbation = both[0]
    message = (
        f"{len(both)} of {len(held_out)} held-out conditions are in the training data too (first: {perturbation!r} "
        f"in {context!r}), so baselines and perhaps the model have seen the answer. Take them out of the training "
        "data, or pass allow_train=True to score the fit."
    )
    return Check("leakage of conditions", "error", len(both), "0", message)


def _leaked_cells(train: CellTable, observed: CellTable, control: str) -> Check:
    """Find held-out perturbed cells whose expression occurs in the training data, under whatever label."""
    held_out = np.flatnonzero(observed.perturbation != control)
    # equal cells have equal sums; only rows that share a sum with a held-out cell are compared in full
    sums, wanted = _sums(train), _sums(observed)[held_out]
    candidates = np.flatnonzero(np.isin(sums, wanted))
    known = {row.tobytes() for row in _blocks(train, candidates)}
    n = sum(row.tobytes() in known for row in _blocks(observed, held_out[np.isin(wanted, sums)])) if known else 0
    if n <= _CHANCE * len(held_out):
        return Check("leakage of cells", "ok", n / len(held_out), f"0 to {_CHANCE:g}")
    message = (
        f"{n} of {len(held_out)} held-out perturbed cells occur in the training data with the same expression; drop "
        "them from one side, or pass allow_train=True to score the fit."
    )
    return Check("leakage of cells", "error", n / len(held_out), f"0 to {_CHANCE:g}", message)


def _sums(cells: CellTable) -> NDArray[np.float64]:
    """Sum of each row in one precision and one order, so that equal cells have equal sums in any storage."""
    chunks = (dense(cells.expression[start : start + _CHUNK]) for start in range(0, cells.n_cells, _CHUNK))
    return np.concatenate(
        [np.ascontiguousarray(chunk, dtype=np.float32).sum(axis=1, dtype=np.float64) for chunk in chunks]
    )


def _blocks(cells: CellTable, rows: NDArray[np.intp]) -> list[NDArray[np.float32]]:
    """Rows as float32, the precision in which both sides are compared."""
    return list(dense(cells.expression[rows]).astype(np.float32)) if len(rows) else []
