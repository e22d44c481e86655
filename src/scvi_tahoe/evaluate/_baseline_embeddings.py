"""Baselines that guess the effect of an unseen perturbation from those of perturbations with similar embeddings.

Shapes: **T** training perturbations, **P** width of an embedding, **G** genes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.evaluate._baselines import register_baseline, shifted_controls
from scvi_tahoe.evaluate._metric_effects import unit_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._baselines import BaselineInputs
    from scvi_tahoe.evaluate._cells import CellTable

#: neighbours averaged
_N_NEIGHBOURS = 5
#: penalties tried, in units of the mean squared singular value of the embeddings
_PENALTIES = np.logspace(-3, 4, 15)


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
