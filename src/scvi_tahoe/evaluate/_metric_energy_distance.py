"""Distance between populations of cells, in the principal components of the observed ones.

Shapes: **C** cells, **G** genes, **K** components.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe._arguments import checked
from scvi_tahoe.evaluate._cells import dense
from scvi_tahoe.evaluate._metrics import register_metric

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable, Matrix
    from scvi_tahoe.evaluate._metrics import Comparison

#: cells that components are fitted on
_MAX_FIT = 2000
#: cells of each side of a distance: more change it by less than its replicates differ
_MAX_CELLS = 500


@dataclass(frozen=True)
class Components:
    """Principal components."""

    #: mean of the cells they were fitted on, ``[G]``
    center: NDArray[np.float64]
    #: orthonormal directions, ``[G, K]``
    axes: NDArray[np.float64]

    def __call__(self, cells: Matrix) -> NDArray[np.float64]:
        """Coordinates of cells, ``[C, K]``, of expression ``[C, G]``."""
        return np.asarray(cells @ self.axes) - self.center @ self.axes


def fit_components(cells: CellTable, *, n_components: int = 50, seed: int = 0) -> Components:
    """Fit components, at most as many as cells or genes, to observed cells: each prediction is seen from one side."""
    from sklearn.utils.extmath import randomized_svd

    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(cells.n_cells, min(_MAX_FIT, cells.n_cells), replace=False))
    sample = dense(cells.expression[rows]).astype(np.float64)
    center, k = sample.mean(axis=0), min(n_components, *sample.shape)
    _, _, axes = randomized_svd(sample - center, n_components=k, random_state=seed)
    return Components(center, axes.T)


@checked()
def energy_distance(x: NDArray[np.floating], y: NDArray[np.floating], *, seed: int = 0) -> float:
    """Return ``2 E|x - y| - E|x - x'| - E|y - y'|`` with Euclidean distances, 0 for equal distributions.

    ``x`` and ``y`` are coordinates of two populations, ``[C, K]``; of more than 500 cells, 500 are drawn.

    Notes
    -----
    Szekely and Rizzo, Journal of Statistical Planning and Inference 143 (2013). Means are over all pairs, a cell with
    itself included, as in cell-eval; two samples of one population therefore have a distance above 0, which falls with
    the number of cells: compare with the ceiling, the distance of replicates of the same size.
    """
    from scipy.spatial.distance import cdist

    rng = np.random.default_rng(seed)
    x, y = (
        side if len(side) <= _MAX_CELLS else side[rng.choice(len(side), _MAX_CELLS, replace=False)] for side in (x, y)
    )
    return float(2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean())


_SOURCE = "Szekely and Rizzo (2013)"


@register_metric(
    "energy_distance", label="Energy distance (50 PCs)", best=0, ceiling="squared", source=_SOURCE, needs_cells=True
)
def _energy_distance(sides: Comparison) -> NDArray[np.float64]:
    truth, cells = sides.truth, sides.predicted_cells
    if truth is None or cells is None:
        raise ValueError("The energy distance needs the cells of both sides.")
    place = truth.once(fit_components)
    blocks = [[side.block(truth.context, p) for side in (cells, truth.cells)] for p in truth.perturbations]
    return np.array([energy_distance(place(ours), place(theirs)) for ours, theirs in blocks])
