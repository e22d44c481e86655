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
import torch

from scvi_tahoe._condition_means import mean_expression, means_by_code
from scvi_tahoe._prediction import asked_in_order, condition_of_cell
from scvi_tahoe._sources import learn_prior, minibatch_sources
from scvi_tahoe.data import ConditionIndex, split_from_dict
from scvi_tahoe.evaluate import EvaluationWarning

if TYPE_CHECKING:
    from scvi_tahoe._model import TahoeST
    from scvi_tahoe._prediction import Output
    from scvi_tahoe.data import AssignedSplit, CellStore, Condition

__all__ = ["fit_share", "shrink_correction", "shrink_restored"]

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


def shrink_correction(
    model: TahoeST, split: AssignedSplit, expression: CellStore, device: torch.device, *, recipe: str, seed: int
) -> float | None:
    """Multiply the correction of a trained network with the share of it that validates.

    Parameters
    ----------
    model
        Trained, with a prior that does not know the conditions that validate.
    split
        Of its training.
    expression
        Of its data.
    device
        Where rows become dense.
    recipe
        Of its training; ``'lora'`` leaves the head as it was before, and so does this.
    seed
        Of the prediction, and of the sample of conditions and cells where there are many.

    Returns
    -------
    The share; None where nothing was done: without a prior, or because no step improved what training started from,
    fewer than three conditions validate, or ones that also train.
    """
    if model.prior == "none" or recipe == "lora" or (model.training_config_ or {}).get("best_step") == 0:
        return None
    index, rng = split.index, np.random.default_rng((seed, 5))
    position = index.condition_of_cell[split.validation]
    found = np.unique(position)
    if len(found) < _FEWEST_CONDITIONS or np.isin(found, index.condition_of_cell[split.train]).any():
        return None
    chosen = np.sort(rng.permutation(found)[:_MOST_CONDITIONS])
    conditions = [index.conditions[i] for i in chosen]
    rows = [rng.permutation(split.validation[position == i])[:_MOST_CELLS] for i in chosen]
    observed_KG = np.stack([mean_expression(expression, r, device) for r in rows])
    prior_KG, network_KG = (_predicted(model, conditions, output, seed=seed) for output in ("prior", "expression"))
    share = fit_share(prior_KG, network_KG, observed_KG)
    if share < 1:
        with torch.no_grad():
            for parameter in model.module.network.head.project.layers[-1].parameters():
                parameter.mul_(share)
    logger.info(f"kept {share:.2f} of the network's correction of its prior, by {len(chosen)} validation conditions")
    return share


def shrink_restored(model: TahoeST) -> float | None:
    """As :func:`shrink_correction`, for a model that was given the weights of a training which ended elsewhere.

    Parameters
    ----------
    model
        With its data, split and training configuration.
    """
    screen, plan = model._training_screen(), model.training_config_["plan"]  # type: ignore[index]
    index = ConditionIndex.from_screen(screen)
    split = split_from_dict(model.split_).assign(index, seed=plan["seed"])  # type: ignore[arg-type]
    if model.prior == "none":
        return None
    sources, kept = minibatch_sources(model, screen, model.device, exact=True), model.prior_
    model.prior_ = learn_prior(model, screen, index, split.train, seed=plan["seed"])
    try:
        return shrink_correction(
            model, split, sources.cells, model.device, recipe=plan["recipe"], seed=plan["seed"]
        )  # fmt: skip
    finally:
        model.prior_ = kept


def _predicted(model: TahoeST, conditions: list[Condition], output: Output, *, seed: int) -> np.ndarray:
    """Mean predicted cell of each condition, ``[K, G]``."""
    means = []
    for first in range(0, len(conditions), _AT_ONCE):
        wanted = conditions[first : first + _AT_ONCE]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EvaluationWarning)  # nobody asked for this prediction
            predicted = model.predict(
                **asked_in_order(dict.fromkeys(wanted, _MOST_CELLS)), output=output, seed=seed, progress=False
            )
        means.append(means_by_code(predicted.X, condition_of_cell(predicted.obs, model.keys)[0]))
    return np.concatenate(means)
