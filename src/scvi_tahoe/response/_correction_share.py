"""How much of the network's correction holds for conditions that it was not trained on, and no more is kept of it.

With a prior the network learns from some tens of conditions what is different about each, and part of that is their
noise. The conditions that validate say how large a part: the share ``s`` for which ``prior + s * correction`` comes
nearest to what was observed, as in a regression of what is missing on the correction. The head's last layer is linear,
so the share goes into its weights; what saves, exports or runs the network needs to know nothing of it.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe._constants import STREAMS
from scvi_tahoe.data import condition_of_cell
from scvi_tahoe.evaluate import EvaluationWarning
from scvi_tahoe.response._condition_means import means_by_code

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from anndata import AnnData

    from scvi_tahoe.data import AssignedSplit, CellStore, Condition, Output, ScreenKeys

logger = logging.getLogger(__name__)

# one number is fitted, so that a sample of conditions and cells is enough
_MOST_CONDITIONS, _MOST_CELLS = 64, 512
_FEWEST_CONDITIONS = 3
_AT_ONCE = 16  # conditions whose cells are in memory


def fit_share(prior_KG: np.ndarray, network_KG: np.ndarray, observed_KG: np.ndarray) -> float:
    """Share of the network's correction to keep, from 0 to 1.

    The least squares of ``observed - prior`` on ``network - prior``: the noise of conditions that the network did not
    see is not in its correction, and so does not bias it. 1 where a smaller one has a larger mean absolute error.

    Parameters
    ----------
    prior_KG, network_KG, observed_KG
        Mean expression of conditions.
    """
    correction_KG = network_KG - prior_KG
    length = np.square(correction_KG).sum()
    if length == 0:
        return 1.0
    share = float(np.clip((correction_KG * (observed_KG - prior_KG)).sum() / length, 0, 1))
    error = np.abs(prior_KG + share * correction_KG - observed_KG).mean()
    return share if error <= np.abs(network_KG - observed_KG).mean() else 1.0


def validation_share(
    predict: Callable[[Output, Mapping[Condition, int]], AnnData],
    keys: ScreenKeys,
    split: AssignedSplit,
    expression: CellStore,
    device: torch.device,
    *,
    seed: int,
) -> float | None:
    """Share of the network's correction that holds for the conditions that validate.

    Parameters
    ----------
    predict
        Predicts an output, with or without the network, for so many cells of each condition. Its prior does not know
        the conditions that validate.
    keys
        Where the labels of predicted cells are.
    split
        Split of the training.
    expression
        Expression of the training data.
    device
        Where rows become dense.
    seed
        Random seed for the sample of conditions and cells, where there are many.

    Returns
    -------
    The share; None where fewer than three conditions validate, or ones that also train.
    """
    index, rng = split.index, np.random.default_rng((seed, STREAMS.SHRINKAGE))
    position = index.condition_of_cell[split.validation]
    found = np.unique(position)
    if len(found) < _FEWEST_CONDITIONS or np.isin(found, index.condition_of_cell[split.train]).any():
        return None
    chosen = np.sort(rng.permutation(found)[:_MOST_CONDITIONS])
    conditions = [index.conditions[i] for i in chosen]
    rows = [rng.permutation(split.validation[position == i])[:_MOST_CELLS] for i in chosen]
    observed_KG = np.stack([expression.mean(r, device) for r in rows])
    prior_KG, network_KG = (_predicted(predict, keys, conditions, output) for output in ("prior", "expression"))
    share = fit_share(prior_KG, network_KG, observed_KG)
    logger.info(f"kept {share:.2f} of the network's correction of its prior, by {len(chosen)} validation conditions")
    return share


def _predicted(
    predict: Callable[[Output, Mapping[Condition, int]], AnnData],
    keys: ScreenKeys,
    conditions: Sequence[Condition],
    output: Output,
) -> np.ndarray:
    """Mean predicted cell of each condition, ``[K, G]``."""
    means = []
    for first in range(0, len(conditions), _AT_ONCE):
        wanted = dict.fromkeys(conditions[first : first + _AT_ONCE], _MOST_CELLS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EvaluationWarning)  # nobody asked for this prediction
            predicted = predict(output, wanted)
        means.append(means_by_code(predicted.X, condition_of_cell(predicted.obs, keys)[0]))
    return np.concatenate(means)
