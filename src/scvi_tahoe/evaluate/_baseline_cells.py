"""Baselines that move observed cells of the same perturbation over from other contexts.

Shapes: **C** cells, **G** genes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.evaluate._baselines import assemble, column_mean, register_baseline
from scvi_tahoe.evaluate._cells import dense
from scvi_tahoe.evaluate._quantile_mapping import quantile_map

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._baselines import BaselineInputs
    from scvi_tahoe.evaluate._cells import CellTable, Matrix


@register_baseline("cells_shifted")
def cells_shifted(inputs: BaselineInputs, seed: int) -> CellTable:
    """Observed cells of the same perturbation in other contexts, moved by the difference of the control means."""

    def move(
        cells: NDArray[np.floating], source: str, context: str, rng: np.random.Generator
    ) -> Callable[[NDArray[np.intp]], NDArray[np.floating]]:
        shift = column_mean(inputs.controls[context]) - column_mean(inputs.train_controls(source))
        return lambda chosen: np.maximum(dense(cells[chosen]) + shift, 0)

    return _moved_cells(inputs, move, seed)


@register_baseline("cells_quantile")
def cells_quantile(inputs: BaselineInputs, seed: int) -> CellTable:
    """Observed cells of the same perturbation in other contexts, moved gene by gene through the controls' quantiles.

    The strongest simple predictor for a perturbation seen elsewhere: it keeps the spread of real cells. See
    :func:`~scvi_tahoe.evaluate.quantile_map`.
    """

    def move(
        cells: NDArray[np.floating], source: str, context: str, rng: np.random.Generator
    ) -> Callable[[NDArray[np.intp]], NDArray[np.floating]]:
        uniform = rng.random(cells.shape[::-1]).T
        return lambda chosen: quantile_map(
            cells[chosen], inputs.train_controls(source), inputs.controls[context], uniform[chosen]
        )

    return _moved_cells(inputs, move, seed)


def _moved_cells(inputs: BaselineInputs, move: Callable[..., Callable], seed: int) -> CellTable:
    """Draw from the moved cells of the other contexts; with no other context, fall back on shifted controls."""
    generators = {context: np.random.default_rng(seed) for context in inputs.n_cells}

    def predict(context: str, perturbation: str, n: int) -> Matrix:
        rng = generators[context]
        others = inputs.other_contexts(context, perturbation)
        if not others:
            controls = inputs.controls[context]
            drawn = dense(controls[rng.choice(controls.shape[0], n)])
            return np.maximum(drawn + inputs.mean_delta(context), 0)
        pools = [inputs.training.block(other, perturbation) for other in others]
        movers = [move(pool, other, context, rng) for pool, other in zip(pools, others)]
        starts = np.cumsum([0, *(pool.shape[0] for pool in pools)])
        chosen = rng.choice(starts[-1], n, replace=n > starts[-1])
        predicted = np.empty((n, len(inputs.genes)), dtype=np.float32)
        for mover, start, stop in zip(movers, starts[:-1], starts[1:]):
            here = (chosen >= start) & (chosen < stop)
            predicted[here] = mover(chosen[here] - start)
        return predicted

    return assemble(inputs, predict)
