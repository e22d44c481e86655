"""Baselines that move control cells by a change of the mean that other conditions had."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.evaluate._baselines import register_baseline, shifted_controls

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._baselines import BaselineInputs
    from scvi_tahoe.evaluate._cells import CellTable


@register_baseline("control", needs_train=False)
def control(inputs: BaselineInputs, seed: int) -> CellTable:
    """Control cells of the context as they are, drawn with replacement."""
    return shifted_controls(inputs, lambda context, perturbation: np.zeros(len(inputs.genes)), seed)


@register_baseline("train_mean")
def train_mean(inputs: BaselineInputs, seed: int) -> CellTable:
    """Control cells moved by the mean of the training deltas of their context.

    This is the baseline against which the challenge of 2025 scales its three scores. A context without training
    perturbations gets the mean over the other contexts.
    """
    return shifted_controls(inputs, lambda context, perturbation: inputs.mean_delta(context), seed)


@register_baseline("train_mean_pooled")
def train_mean_pooled(inputs: BaselineInputs, seed: int) -> CellTable:
    """Control cells moved by the mean of the training deltas of all contexts, each condition counted once."""
    pooled = np.mean([inputs.delta(c, p) for c, seen in inputs.seen.items() for p in seen], axis=0)
    return shifted_controls(inputs, lambda context, perturbation: pooled, seed)


@register_baseline("context_transfer")
def context_transfer(inputs: BaselineInputs, seed: int) -> CellTable:
    """Control cells moved by the perturbation's own mean delta in the other contexts, each context counted once.

    A perturbation that no other context has seen gets the mean of the training deltas, as :func:`train_mean`.
    """

    def delta(context: str, perturbation: str) -> NDArray[np.float64]:
        others = inputs.other_contexts(context, perturbation)
        if not others:
            return inputs.mean_delta(context)
        return np.mean([inputs.delta(other, perturbation) for other in others], axis=0)

    return shifted_controls(inputs, delta, seed)
