"""Are the control cells that a prediction starts from on the scale of those that the model was trained on?"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_tahoe.data import read_screen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_tahoe._model import TahoeST
    from scvi_tahoe.data import GeneAlignment, Screen

__all__ = ["warn_about_scale"]

#: cells that are looked at
_CELLS = 256
#: cell types differ by less than this; a tenth of the total gives less than half of the log1p expression
_LIMIT = 1.6


def warn_about_scale(
    model: TahoeST, screen: Screen, alignment: GeneAlignment, rows: NDArray[np.intp], *, own_data: bool
) -> None:
    """Warn where new control cells have far more or less expression than the model's own.

    Compared are means of log1p expression over the genes that both have. Nothing is known of the model's own where it
    has neither a prior nor its training data.

    Parameters
    ----------
    model
        Which is asked to predict.
    screen
        New cells.
    alignment
        Which column of theirs each gene of the model is in.
    rows
        Control cells that the prediction starts from.
    own_data
        Whether they are cells of the model's own data.
    """
    if not len(rows) or (model.prior_ is None and (own_data or model.adata is None)):
        return
    own_G = _own_controls(model)
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


def _own_controls(model: TahoeST) -> NDArray[np.float64]:
    """Mean log1p expression of the controls that the model knows, ``[G]``."""
    if model.prior_ is not None:
        return np.asarray(model.prior_["control_means"], dtype=np.float64).mean(axis=0)
    screen = read_screen(model.adata, model.keys)
    return _mean(_some(screen, np.flatnonzero(screen.perturbation.codes == screen.perturbation.code(screen.control))))


def _some(screen: Screen, rows: NDArray[np.intp]) -> Any:
    """Expression of some of the cells, spread over all of them."""
    return screen.expression[rows[:: -(-len(rows) // _CELLS)]]


def _mean(cells: Any) -> NDArray[np.float64]:
    return np.asarray(cells.mean(axis=0), dtype=np.float64).ravel()
