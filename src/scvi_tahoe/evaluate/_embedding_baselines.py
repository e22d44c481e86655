"""Baselines that guess the effect of an unseen perturbation from those of perturbations with similar embeddings.

Shapes: **T** training perturbations, **P** width of an embedding, **G** genes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.evaluate._baselines import shifted_controls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._baseline_task import BaselineTask
    from scvi_tahoe.evaluate._cells import CellTable

__all__ = ["nearest", "ridge", "ridge_fit"]

#: neighbours averaged
_N_NEIGHBOURS = 5
#: penalties tried, in units of the mean squared singular value of the embeddings
_PENALTIES = np.logspace(-3, 4, 15)


def ridge(task: BaselineTask, seed: int = 0) -> CellTable:
    """Control cells moved by a ridge regression of training deltas on perturbation embeddings.

    The penalty is chosen by leave-one-out error on the training perturbations. Ahlmann-Eltze, Huber and Anders (Nature
    Methods 2025) found regressions of this kind hard to beat.
    """
    predicted = {context: _ridge_deltas(task, context) for context in task.n_cells}
    return shifted_controls(task, lambda context, perturbation: predicted[context][perturbation], seed)


def nearest(task: BaselineTask, seed: int = 0) -> CellTable:
    """Control cells moved by the mean delta of the five training perturbations of most similar embedding (cosine)."""
    predicted = {context: _nearest_deltas(task, context) for context in task.n_cells}
    return shifted_controls(task, lambda context, perturbation: predicted[context][perturbation], seed)


def ridge_fit(
    x_TP: NDArray[np.floating], y_TG: NDArray[np.floating], new_NP: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Fit a ridge regression with intercept and return its predictions for new rows, ``[N, G]``.

    Parameters
    ----------
    x_TP, y_TG
        Training embeddings and deltas.
    new_NP
        Embeddings to predict for.

    Notes
    -----
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


def _ridge_deltas(task: BaselineTask, context: str) -> dict[str, NDArray[np.float64]]:
    x, y, _ = _training(task, context)
    wanted = list(task.n_cells[context])
    return dict(zip(wanted, ridge_fit(x, y, _embeddings(task, wanted))))


def _nearest_deltas(task: BaselineTask, context: str) -> dict[str, NDArray[np.float64]]:
    x, y, _ = _training(task, context)
    wanted = list(task.n_cells[context])
    similarity = _unit(_embeddings(task, wanted)) @ _unit(x).T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :_N_NEIGHBOURS]
    return {name: y[neighbours].mean(axis=0) for name, neighbours in zip(wanted, order)}


def _training(task: BaselineTask, context: str) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
    """Embeddings and deltas of training perturbations: of the context if seen there, else the mean of the others."""
    embeddings = _table(task)
    where: dict[str, list[str]] = {}
    for seen_in, perturbations in task.seen.items():
        for perturbation in perturbations:
            if perturbation in embeddings:
                where.setdefault(perturbation, []).append(seen_in)
    names = sorted(where)
    if len(names) < 2:
        msg = "Baselines on embeddings need at least two training perturbations that have an embedding."
        raise ValueError(msg)
    deltas = []
    for name in names:
        contexts = [context] if context in where[name] else where[name]
        deltas.append(np.mean([task.delta(c, name) for c in contexts], axis=0))
    return np.stack([embeddings[name] for name in names]), np.stack(deltas), names


def _embeddings(task: BaselineTask, names: list[str]) -> NDArray[np.float64]:
    """Embeddings of perturbations to predict.

    Raises
    ------
    ValueError
        If a perturbation has none.
    """
    embeddings = _table(task)
    missing = [name for name in names if name not in embeddings]
    if missing:
        msg = f"{len(missing)} perturbations have no embedding (first {missing[:3]}); add rows for them."
        raise ValueError(msg)
    return np.stack([embeddings[name] for name in names])


def _table(task: BaselineTask) -> Mapping[str, NDArray[np.float64]]:
    if task.embeddings is None:
        msg = "The baselines 'ridge' and 'nearest' need perturbation embeddings: pass perturbation_embedding=..."
        raise ValueError(msg)
    return task.embeddings


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros(rows.shape), where=length > 0)
