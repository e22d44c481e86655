"""Are the control cells that a prediction starts from on the scale of those that the model was trained on?"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_tahoe.data import read_screen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from scvi_tahoe._compat import AnnOrMuData
    from scvi_tahoe.data import DataSpec, GeneAlignment, Screen

__all__ = ["warn_about_scale"]

#: cells that are looked at
_CELLS = 256
#: cell types differ by less than this; a tenth of the total gives less than half of the log1p expression
_LIMIT = 1.6


def warn_about_scale(
    learned: Mapping[str, Any] | None,
    own: AnnOrMuData | None,
    spec: DataSpec,
    screen: Screen,
    alignment: GeneAlignment,
    rows: NDArray[np.intp],
    *,
    own_data: bool,
) -> None:
    """Warn where new control cells have far more or less expression than the model's own.

    Compared are means of log1p expression over the genes that both have. Nothing is known of the model's own where it
    has neither a prior nor its training data.

    Parameters
    ----------
    learned
        The model's prior as plain values; None without one.
    own
        The model's own data; None where it has none.
    spec
        What the model fixes about its data.
    screen
        New cells.
    alignment
        Which column of theirs each gene of the model is in.
    rows
        Control cells that the prediction starts from.
    own_data
        Whether they are cells of the model's own data.
    """
    if not len(rows) or (learned is None and (own_data or own is None)):
        return
    own_G = _own_controls(learned, own, spec)
    present = alignment.columns >= 0
    new_G = _mean(alignment.apply(_some(screen, np.sort(rows))))
    own, new = (float(mean_G[present].mean()) for mean_G in (own_G, new_G))
    if own > 0 and not 1 / _LIMIT <= new / own <= _LIMIT:
        warnings.warn(
            f"the control cells have {new / own:.2g} times the log1p expression of those that the model was trained "
            "on: they were probably normalised to another total, which the prediction would not undo. Normalise them "
            "as the training data were (sc.pp.normalize_total with the same target_sum, then sc.pp.log1p).",
            stacklevel=3,
        )


def _own_controls(learned: Mapping[str, Any] | None, own: AnnOrMuData | None, spec: DataSpec) -> NDArray[np.float64]:
    """Mean log1p expression of the controls that the model knows, ``[G]``."""
    if learned is not None:
        return np.asarray(learned["control_means"], dtype=np.float64).mean(axis=0)
    screen = read_screen(own, spec.keys)
    return _mean(_some(screen, np.flatnonzero(screen.perturbation.codes == screen.perturbation.code(screen.control))))


def _some(screen: Screen, rows: NDArray[np.intp]) -> Any:
    """Expression of some of the cells, spread over all of them."""
    return screen.expression[rows[:: -(-len(rows) // _CELLS)]]


def _mean(cells: Any) -> NDArray[np.float64]:
    return np.asarray(cells.mean(axis=0), dtype=np.float64).ravel()
