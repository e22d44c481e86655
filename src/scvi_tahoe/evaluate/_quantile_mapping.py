"""Moving cells from one control population to another, gene by gene, through their quantiles.

Shapes: **C** cells, **G** genes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.evaluate._cells import dense

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import Matrix

#: genes whose columns are made dense at a time
_CHUNK = 512


def quantile_map(
    cells: Matrix,
    source_controls: Matrix,
    target_controls: Matrix,
    uniform: NDArray[np.floating],
) -> NDArray[np.float32]:
    """Return the cells as they would look in another population, ``[C, G]``.

    Each value is looked up in the source's control cells of its gene, which gives the interval of quantiles that it
    occupies there (a wide one for zeros); a point of that interval, drawn by ``uniform``, is read off the target's
    control cells with linear interpolation. The spread and the zeros of real cells are kept, which a shifted mean
    loses.

    Parameters
    ----------
    cells
        Expression to move, ``[C, G]``.
    source_controls, target_controls
        Control cells of the population that the cells come from and of the one they go to, ``[any, G]``.
    uniform
        Draws from the unit interval, ``[C, G]``.
    """
    mapped = np.empty(cells.shape, dtype=np.float32)
    for start in range(0, cells.shape[1], _CHUNK):
        columns = slice(start, start + _CHUNK)
        # transposed and made contiguous: what follows goes gene by gene
        values, source, target = (
            np.ascontiguousarray(dense(matrix[:, columns]).T) for matrix in (cells, source_controls, target_controls)
        )
        source.sort(axis=1)
        target.sort(axis=1)
        draws = np.ascontiguousarray(uniform[:, columns].T)
        for gene, (value, low, high, draw) in enumerate(zip(values, source, target, draws)):
            mapped[:, start + gene] = _map_gene(value, low, high, draw)
    return mapped


def _map_gene(
    value: NDArray[np.floating],
    source: NDArray[np.floating],
    target: NDArray[np.floating],
    draw: NDArray[np.floating],
) -> NDArray[np.floating]:
    """Map one gene; both control vectors are sorted."""
    first = np.zeros(len(value), dtype=np.intp)
    last = np.full(len(value), np.searchsorted(source, 0, side="right"))
    positive = np.flatnonzero(value)  # most values are zeros, which need no search of their own
    first[positive] = np.searchsorted(source, value[positive], side="left")
    last[positive] = np.searchsorted(source, value[positive], side="right")
    quantile = np.clip((first + (last - first) * draw) / len(source), 0, 1)
    position = quantile * (len(target) - 1)
    below = position.astype(np.intp)
    above = np.minimum(below + 1, len(target) - 1)
    return target[below] + (position - below) * (target[above] - target[below])
