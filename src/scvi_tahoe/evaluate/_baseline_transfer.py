"""Baselines that carry over what was seen: cells in other contexts, or effects of perturbations of similar embedding.

Shapes: **C** cells, **G** genes, **T** training perturbations, **P** width of an embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.evaluate._arithmetic import nearest_mean, ridge_fit
from scvi_tahoe.evaluate._baselines import assemble, register_baseline, shifted_controls
from scvi_tahoe.evaluate._cells import dense
from scvi_tahoe.evaluate._exact_means import chosen_rows, column_mean, generator, scaled_to_mean
from scvi_tahoe.evaluate._metric_effects import unit_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._baselines import BaselineInputs
    from scvi_tahoe.evaluate._cells import CellTable, Matrix

    Vector = NDArray[np.floating]

#: genes whose columns are made dense at a time
_GENES = 512


@register_baseline("cells_shifted", needs_elsewhere=True, shown=False)
def cells_shifted(inputs: BaselineInputs, seed: int) -> CellTable:
    """Observed cells of the same perturbation in other contexts, scaled to the mean of `context_transfer`."""
    means = {context: column_mean(controls) for context, controls in inputs.controls.items()}

    def predict(context: str, perturbation: str, n: int | None) -> Matrix:
        rng, others = generator(seed, context, perturbation), inputs.other_contexts(context, perturbation)
        change, cells = inputs.changes.transfer(perturbation, context), dense(inputs.controls[context])
        if others:
            cells = np.concatenate([dense(inputs.train.block(other, perturbation)) for other in others])
        change = inputs.mean_delta(context) if change is None else change
        chosen = cells if n is None else cells[chosen_rows(len(cells), n, rng)]
        return scaled_to_mean(chosen, means[context] + change, rng)

    return assemble(inputs, predict)


@register_baseline("cells_quantile", needs_elsewhere=True)
def cells_quantile(inputs: BaselineInputs, seed: int) -> CellTable:
    """Observed cells of the same perturbation in other contexts, moved gene by gene through the controls' quantiles.

    It keeps the spread of real cells. See :func:`~scvi_tahoe.evaluate.quantile_map`. Chosen cells have the mean of all
    that can be moved; a perturbation seen nowhere else is predicted as by `train_mean`.
    """
    means = {context: column_mean(controls) for context, controls in inputs.controls.items()}

    def predict(context: str, perturbation: str, n: int | None) -> Matrix:
        rng, others = generator(seed, context, perturbation), inputs.other_contexts(context, perturbation)
        controls = inputs.controls[context]
        if others:
            moved = [
                quantile_map(cells := inputs.train.block(c, perturbation), inputs.train_controls(c), controls,
                             rng.random(cells.shape))
                for c in others
            ]  # fmt: skip
            cells = np.concatenate(moved)
            mean = column_mean(cells)
        else:
            cells, mean = dense(controls), means[context] + inputs.mean_delta(context)
        chosen = cells if n is None else cells[chosen_rows(len(cells), n, rng)]
        return scaled_to_mean(chosen, mean, rng)

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


@register_baseline("ridge", needs_embeddings=True)
def ridge(inputs: BaselineInputs, seed: int) -> CellTable:
    """Control cells moved by a ridge regression of training deltas on embeddings, penalty by leave-one-out error."""
    return _predicted_changes(inputs, ridge_fit, seed)


@register_baseline("nearest", needs_embeddings=True)
def nearest(inputs: BaselineInputs, seed: int) -> CellTable:
    """Control cells moved by the mean delta of the five training perturbations of most similar embedding (cosine)."""

    def predict(
        x_TP: NDArray[np.floating], y_TG: NDArray[np.floating], new_NP: NDArray[np.floating]
    ) -> NDArray[np.float64]:
        return nearest_mean(unit_rows(new_NP) @ unit_rows(x_TP).T, y_TG)

    return _predicted_changes(inputs, predict, seed)


def _predicted_changes(inputs: BaselineInputs, predict: Callable[..., NDArray[np.float64]], seed: int) -> CellTable:
    """Control cells moved by what ``predict(x_TP, y_TG, new_NP)`` returns, fitted for each context."""
    table = inputs.embeddings
    changes = {}
    for context, wanted in inputs.n_cells.items():
        x, y = _training(inputs, context)
        if missing := [name for name in wanted if name not in table]:
            raise ValueError(f"{len(missing)} perturbations have no embedding (first {missing[:3]}); add their rows.")
        changes[context] = dict(zip(wanted, predict(x, y, np.stack([table[name] for name in wanted]))))
    return shifted_controls(inputs, lambda context, perturbation: changes[context][perturbation], seed)


def _training(inputs: BaselineInputs, context: str) -> tuple[NDArray[np.float64], NDArray[np.floating]]:
    """Embeddings and deltas of training perturbations: of the context if seen there, else the mean of the others."""
    embeddings, changes = inputs.embeddings, inputs.changes
    names = sorted(set(changes.perturbations.tolist()) & set(embeddings))
    if len(names) < 2:
        raise ValueError("Baselines on embeddings need at least two training perturbations that have an embedding.")
    return np.stack([embeddings[name] for name in names]), changes.of_perturbations(context, names)
