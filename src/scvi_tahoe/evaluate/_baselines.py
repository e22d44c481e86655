"""Simple predictors that a model has to beat; none of them looks at an observed cell of a held-out condition.

Every function takes a :class:`~scvi_tahoe.evaluate._baseline_task.BaselineTask` and a seed and returns predicted cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.evaluate._baseline_task import BaselineTask, assemble, column_mean
from scvi_tahoe.evaluate._cells import dense
from scvi_tahoe.evaluate._quantile_mapping import quantile_map

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable, Matrix

__all__ = ["cells_quantile", "cells_shifted", "context_transfer", "no_change", "shifted_controls", "train_mean"]


def no_change(task: BaselineTask, seed: int = 0) -> CellTable:
    """Control cells of the context as they are, drawn with replacement."""
    return shifted_controls(task, lambda context, perturbation: np.zeros(len(task.genes)), seed)


def train_mean(task: BaselineTask, seed: int = 0) -> CellTable:
    """Control cells moved by the mean of the training deltas of their context.

    This is the baseline against which the challenge of 2025 scales its three scores. A context without training
    perturbations gets the mean over the other contexts.
    """
    return shifted_controls(task, lambda context, perturbation: mean_delta(task, context), seed)


def train_mean_pooled(task: BaselineTask, seed: int = 0) -> CellTable:
    """Control cells moved by the mean of the training deltas of all contexts, each condition counted once."""
    pooled = np.mean([task.delta(c, p) for c, seen in task.seen.items() for p in seen], axis=0)
    return shifted_controls(task, lambda context, perturbation: pooled, seed)


def context_transfer(task: BaselineTask, seed: int = 0) -> CellTable:
    """Control cells moved by the perturbation's own mean delta in the other contexts, each context counted once.

    A perturbation that no other context has seen gets the mean of the training deltas, as :func:`train_mean`.
    """

    def delta(context: str, perturbation: str) -> NDArray[np.float64]:
        others = contexts_with(task, perturbation, besides=context)
        if not others:
            return mean_delta(task, context)
        return np.mean([task.delta(other, perturbation) for other in others], axis=0)

    return shifted_controls(task, delta, seed)


def cells_shifted(task: BaselineTask, seed: int = 0) -> CellTable:
    """Observed cells of the same perturbation in other contexts, moved by the difference of the control means."""

    def move(
        cells: NDArray[np.floating], source: str, context: str, rng: np.random.Generator
    ) -> Callable[[NDArray[np.intp]], NDArray[np.floating]]:
        shift = column_mean(task.controls[context]) - column_mean(task.train_controls(source))
        return lambda chosen: np.maximum(dense(cells[chosen]) + shift, 0)

    return _moved_cells(task, move, seed)


def cells_quantile(task: BaselineTask, seed: int = 0) -> CellTable:
    """Observed cells of the same perturbation in other contexts, moved gene by gene through the controls' quantiles.

    The strongest simple predictor for a perturbation seen elsewhere: it keeps the spread of real cells. See
    :func:`~scvi_tahoe.evaluate.quantile_map`.
    """

    def move(
        cells: NDArray[np.floating], source: str, context: str, rng: np.random.Generator
    ) -> Callable[[NDArray[np.intp]], NDArray[np.floating]]:
        uniform = rng.random(cells.shape[::-1]).T
        return lambda chosen: quantile_map(
            cells[chosen], task.train_controls(source), task.controls[context], uniform[chosen]
        )

    return _moved_cells(task, move, seed)


def shifted_controls(task: BaselineTask, delta: Callable[[str, str], NDArray[np.floating]], seed: int = 0) -> CellTable:
    """Control cells drawn with replacement, plus ``delta(context, perturbation)``, clipped at zero.

    Parameters
    ----------
    task
        What to predict.
    delta
        Returns the change of mean log1p expression, ``[G]``.
    seed
        Seed of the draw; every context starts anew, so its baseline does not depend on which others are scored.
    """
    # one stream beside that of the moved cells, so that which control is drawn says nothing about quantile ties
    generators = {context: np.random.default_rng(seed + 1) for context in task.n_cells}

    def predict(context: str, perturbation: str, n: int) -> NDArray[np.floating]:
        controls = task.controls[context]
        drawn = dense(controls[generators[context].choice(controls.shape[0], n)])
        return np.maximum(drawn + delta(context, perturbation), 0)

    return assemble(task, predict)


def _moved_cells(task: BaselineTask, move: Callable[..., Callable], seed: int) -> CellTable:
    """Draw from the moved cells of the other contexts; with no other context, fall back on shifted controls."""
    generators = {context: np.random.default_rng(seed) for context in task.n_cells}

    def predict(context: str, perturbation: str, n: int) -> Matrix:
        rng = generators[context]
        others = contexts_with(task, perturbation, besides=context)
        if not others:
            controls = task.controls[context]
            drawn = dense(controls[rng.choice(controls.shape[0], n)])
            return np.maximum(drawn + mean_delta(task, context), 0)
        pools = [task.training.block(other, perturbation) for other in others]
        movers = [move(pool, other, context, rng) for pool, other in zip(pools, others)]
        starts = np.cumsum([0, *(pool.shape[0] for pool in pools)])
        chosen = rng.choice(starts[-1], n, replace=n > starts[-1])
        predicted = np.empty((n, len(task.genes)), dtype=np.float32)
        for mover, start, stop in zip(movers, starts[:-1], starts[1:]):
            here = (chosen >= start) & (chosen < stop)
            predicted[here] = mover(chosen[here] - start)
        return predicted

    return assemble(task, predict)


def mean_delta(task: BaselineTask, context: str) -> NDArray[np.float64]:
    """Mean of the training deltas of a context; of the other contexts' means where it has none, ``[G]``.

    Raises
    ------
    ValueError
        If the training data hold no perturbed cell.
    """
    by_context = {c: seen for c, seen in task.seen.items() if seen}
    if not by_context:
        msg = f"The training data hold control cells ({task.control!r}) only: there is no delta to average."
        raise ValueError(msg)
    if context in by_context:
        return np.mean([task.delta(context, p) for p in by_context[context]], axis=0)
    return np.mean([mean_delta(task, other) for other in by_context], axis=0)


def contexts_with(task: BaselineTask, perturbation: str, *, besides: str) -> list[str]:
    """Training contexts other than ``besides`` in which the perturbation was seen."""
    return [context for context, seen in task.seen.items() if context != besides and perturbation in seen]
