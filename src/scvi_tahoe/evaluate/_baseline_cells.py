"""Baselines that move observed cells of the same perturbation over from other contexts.

Shapes: **C** cells, **G** genes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.evaluate._baselines import assemble, column_mean, register_baseline
from scvi_tahoe.evaluate._cells import dense

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._baselines import BaselineInputs
    from scvi_tahoe.evaluate._cells import CellTable, Matrix

    Vector = NDArray[np.floating]
    Move = Callable[[NDArray[np.intp]], Vector]  # of chosen cells


#: genes whose columns are made dense at a time
_GENES = 512


@register_baseline("cells_shifted")
def cells_shifted(inputs: BaselineInputs, seed: int) -> CellTable:
    """Observed cells of the same perturbation in other contexts, moved by the difference of the control means."""

    def move(cells: Matrix, source: str, context: str, rng: np.random.Generator) -> Move:
        shift = column_mean(inputs.controls[context]) - column_mean(inputs.train_controls(source))
        return lambda chosen: np.maximum(dense(cells[chosen]) + shift, 0)

    return _moved_cells(inputs, move, seed)


@register_baseline("cells_quantile")
def cells_quantile(inputs: BaselineInputs, seed: int) -> CellTable:
    """Observed cells of the same perturbation in other contexts, moved gene by gene through the controls' quantiles.

    The strongest simple predictor for a perturbation seen elsewhere: it keeps the spread of real cells. See
    :func:`~scvi_tahoe.evaluate.quantile_map`.
    """

    def move(cells: Matrix, source: str, context: str, rng: np.random.Generator) -> Move:
        uniform = rng.random(cells.shape[::-1]).T
        return lambda chosen: quantile_map(
            cells[chosen], inputs.train_controls(source), inputs.controls[context], uniform[chosen]
        )

    return _moved_cells(inputs, move, seed)


def _moved_cells(inputs: BaselineInputs, move: Callable[..., Move], seed: int) -> CellTable:
    """Draw from the moved cells of the other contexts; with no other context, fall back on shifted controls."""
    generators = {context: np.random.default_rng(seed) for context in inputs.n_cells}

    def predict(context: str, perturbation: str, n: int) -> Matrix:
        rng = generators[context]
        others = inputs.other_contexts(context, perturbation)
        if not others:
            controls = inputs.controls[context]
            drawn = dense(controls[rng.choice(controls.shape[0], n)])
            return np.maximum(drawn + inputs.mean_delta(context), 0)
        pools = [inputs.train.block(other, perturbation) for other in others]
        movers = [move(pool, other, context, rng) for pool, other in zip(pools, others)]
        starts = np.cumsum([0, *(pool.shape[0] for pool in pools)])
        chosen = rng.choice(starts[-1], n, replace=n > starts[-1])
        predicted = np.empty((n, len(inputs.genes)), dtype=np.float32)
        for mover, start, stop in zip(movers, starts[:-1], starts[1:]):
            here = (chosen >= start) & (chosen < stop)
            predicted[here] = mover(chosen[here] - start)
        return predicted

    return assemble(inputs, predict)


def quantile_map(
    cells: Matrix, source_controls: Matrix, target_controls: Matrix, uniform: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Return the cells as they would look in another population, ``[C, G]``.

    Each value is looked up in the source's control cells of its gene, which gives the interval of quantiles that it
    occupies there (a wide one for zeros); a point of that interval, drawn by ``uniform``, is read off the target's
    control cells with linear interpolation. The spread and the zeros of real cells are kept, which a shifted mean
    loses. Cells and ``uniform``, draws from the unit interval, are ``[C, G]``, control cells of either population
    ``[any, G]``.
    """
    mapped = np.empty(cells.shape, dtype=np.float32)
    for start in range(0, cells.shape[1], _GENES):
        columns = slice(start, start + _GENES)
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


def _map_gene(value: Vector, source: Vector, target: Vector, draw: Vector) -> Vector:
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
