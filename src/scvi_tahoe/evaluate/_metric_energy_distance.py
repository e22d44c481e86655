"""Distance between populations of cells, in the principal components of the observed ones.

Shapes: **C** cells, **G** genes, **K** components.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_tahoe._arguments import checked
from scvi_tahoe.evaluate._cells import dense
from scvi_tahoe.evaluate._metrics import register_metric

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
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
    return _fit(cells.expression, n_components=n_components, seed=seed)


def _fit(expression: Matrix, *, n_components: int, seed: int) -> Components:
    from sklearn.utils.extmath import randomized_svd

    rng, n_cells = np.random.default_rng(seed), expression.shape[0]
    rows = np.sort(rng.choice(n_cells, min(_MAX_FIT, n_cells), replace=False))
    sample = dense(expression[rows]).astype(np.float64)
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


@checked(n_components=(1, None), seed=(0, None))
def energy_distances(
    populations: Mapping[str, AnnData],
    key: str,
    *,
    labels: Sequence[str] | None = None,
    n_components: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the energy distance of populations of cells to observed ones, label by label.

    Parameters
    ----------
    populations
        Cells by name; the first population is the observed one, with which the others are compared. Genes are matched
        by name.
    key
        Column of ``obs`` with labels, such as the perturbation.
    labels
        Labels to compare. If None, those of the observed cells. A population that has none of them, such as controls,
        is compared as a whole.
    n_components
        Number of principal components of the observed cells, in which distances are computed.
    seed
        Random seed for drawing cells; see :func:`energy_distance`.

    Returns
    -------
    One row per label, one column per further population; NaN where it lacks the label.

    Raises
    ------
    KeyError
        If a population has no such column, lacks a gene, or the observed cells lack a label.
    ValueError
        If there are fewer than two populations.
    """
    if len(populations) < 2:
        raise ValueError(
            f"populations has {len(populations)} entry; the observed cells and at least one more are needed."
        )
    (_, observed), *others = populations.items()
    for name, cells in populations.items():
        if key not in cells.obs:
            raise KeyError(f"{name}: obs has no column {key!r}; it has {list(cells.obs)}.")
        if missing := set(observed.var_names) - set(cells.var_names):
            raise KeyError(f"{name} lacks {len(missing)} genes of the observed cells, such as {min(missing)!r}.")
    known = observed.obs[key].astype(str)
    labels = sorted(set(known)) if labels is None else [str(label) for label in labels]
    if unknown := sorted(set(labels) - set(known)):
        raise KeyError(f"the observed cells have no label {unknown[0]!r} in obs[{key!r}].")
    place = _fit(observed.X, n_components=n_components, seed=seed)
    truth = {label: place(observed.X[(known == label).to_numpy()]) for label in labels}
    table = pd.DataFrame(index=pd.Index(labels, name=key), columns=[name for name, _ in others], dtype=float)
    for name, cells in others:
        cells = cells[:, observed.var_names]
        own, whole = cells.obs[key].astype(str), cells.obs[key].astype(str).isin(labels).sum() == 0
        for label in labels:
            rows = np.ones(cells.n_obs, bool) if whole else (own == label).to_numpy()
            if rows.any():
                table.loc[label, name] = energy_distance(place(cells.X[rows]), truth[label], seed=seed)
    return table


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
