"""Baselines that carry over what was seen: cells in other contexts, or effects of perturbations of similar embedding.

Shapes: **C** cells, **G** genes, **T** training perturbations, **P** width of an embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.evaluate._baselines import assemble, column_mean, register_baseline, shifted_controls
from scvi_tahoe.evaluate._cells import dense
from scvi_tahoe.evaluate._metric_effects import unit_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._baselines import BaselineInputs
    from scvi_tahoe.evaluate._cells import CellTable, Matrix

    Vector = NDArray[np.floating]
    Move = Callable[[NDArray[np.intp]], Vector]  # of chosen cells

#: genes whose columns are made dense at a time
_GENES = 512
#: neighbours averaged
_N_NEIGHBOURS = 5
#: penalties tried, in units of the mean squared singular value of the embeddings
_PENALTIES = np.logspace(-3, 4, 15)


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


@register_baseline("ridge", needs_embeddings=True)
def ridge(inputs: BaselineInputs, seed: int) -> CellTable:
    """Control cells moved by a ridge regression of training deltas on embeddings, penalty by leave-one-out error.

    Ahlmann-Eltze, Huber and Anders (Nature Methods 2025) found regressions of this kind hard to beat.
    """
    return _predicted_changes(inputs, ridge_fit, seed)


@register_baseline("nearest", needs_embeddings=True)
def nearest(inputs: BaselineInputs, seed: int) -> CellTable:
    """Control cells moved by the mean delta of the five training perturbations of most similar embedding (cosine)."""
    return _predicted_changes(inputs, _mean_of_nearest, seed)


def ridge_fit(
    x_TP: NDArray[np.floating], y_TG: NDArray[np.floating], new_NP: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Fit a ridge regression with intercept and return its predictions for new rows, ``[N, G]``.

    The leave-one-out residual of row i is ``e_i / (1 - h_ii)`` with the hat matrix of the fit, so one decomposition
    serves all penalties.
    """
    x_mean, y_mean = x_TP.mean(axis=0), y_TG.mean(axis=0)
    u, s, vt = np.linalg.svd(x_TP - x_mean, full_matrices=False)
    target = u.T @ (y_TG - y_mean)
    if not (s > 0).any():
        return np.broadcast_to(y_mean, (len(new_NP), len(y_mean))).copy()
    scale = np.mean(s[s > 0] ** 2)
    errors = []
    for penalty in _PENALTIES * scale:
        shrink = s**2 / (s**2 + penalty)
        leverage = 1 / len(x_TP) + (u**2 @ shrink)
        residual = (y_TG - y_mean) - u @ (shrink[:, None] * target)
        errors.append(np.mean((residual / np.maximum(1 - leverage, 1e-6)[:, None]) ** 2))
    best = _PENALTIES[int(np.argmin(errors))] * scale
    coefficients = vt.T @ ((s / (s**2 + best))[:, None] * target)
    return y_mean + (new_NP - x_mean) @ coefficients


def _mean_of_nearest(
    x_TP: NDArray[np.floating], y_TG: NDArray[np.floating], new_NP: NDArray[np.floating]
) -> NDArray[np.float64]:
    similarity = unit_rows(new_NP) @ unit_rows(x_TP).T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :_N_NEIGHBOURS]
    return np.stack([y_TG[neighbours].mean(axis=0) for neighbours in order])


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


def _training(inputs: BaselineInputs, context: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Embeddings and deltas of training perturbations: of the context if seen there, else the mean of the others."""
    embeddings = inputs.embeddings
    where: dict[str, list[str]] = {}
    for seen_in, perturbations in inputs.seen.items():
        for perturbation in perturbations:
            if perturbation in embeddings:
                where.setdefault(perturbation, []).append(seen_in)
    names = sorted(where)
    if len(names) < 2:
        raise ValueError("Baselines on embeddings need at least two training perturbations that have an embedding.")
    contexts = {name: [context] if context in where[name] else where[name] for name in names}
    deltas = [np.mean([inputs.delta(c, name) for c in contexts[name]], axis=0) for name in names]
    return np.stack([embeddings[name] for name in names]), np.stack(deltas)
