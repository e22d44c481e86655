"""How much of a network's correction of its prior is kept, by conditions that it was not trained on, and a verdict."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import t

from scvi_tahoe._constants import STREAMS
from scvi_tahoe.data import condition_of_cell
from scvi_tahoe.evaluate import EvaluationWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from anndata import AnnData

    from scvi_tahoe.data import AssignedSplit, CellStore, Condition, Output, ScreenKeys

logger = logging.getLogger(__name__)

# the shrinkage factor is one number, so that a sample of validation conditions and of their cells is enough
_MOST_CONDITIONS, _MOST_OF_CONDITION, FEWEST_CONDITIONS = 64, 512, 3
_AT_ONCE = 16  # conditions whose predicted cells are in memory
NOTHING = "The network adds nothing here; predictions are the response model's."


@dataclass(frozen=True)
class Gain:
    """What a correction changes about conditions that it was not fitted to.

    Attributes
    ----------
    factor
        Shrinkage factor that fits all of them, from 0 to 1.
    share
        Share of the squared error of the start that the correction takes away, each condition with the factor of the
        others.
    error
        Half width of its 90 % interval over conditions (Student's t).
    n_conditions
        Number of conditions.
    """

    factor: float
    share: float
    error: float
    n_conditions: int

    @classmethod
    def of(cls, correction_KG: np.ndarray, missing_KG: np.ndarray) -> Gain:
        """Compare the correction of conditions with what their start misses."""
        products, lengths = (correction_KG * missing_KG).sum(axis=1), np.square(correction_KG).sum(axis=1)
        total, n = np.square(missing_KG).sum(axis=1).mean(), len(lengths)
        if n < 2 or not lengths.sum() or not total:
            return cls(0.0, 0.0, 0.0, n)
        others = np.clip((products.sum() - products) / np.maximum(lengths.sum() - lengths, 1e-300), 0, 1)
        gains = (2 * others * products - np.square(others) * lengths) / total
        error = float(t.ppf(0.95, n - 1) * gains.std(ddof=1) / np.sqrt(n))
        return cls(float(np.clip(products.sum() / lengths.sum(), 0, 1)), float(gains.mean()), error, n)

    @property
    def holds(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.share > self.error

    @property
    def kept(self) -> float:
        """Factor that the correction is multiplied by: 0 unless it holds."""
        return self.factor if self.holds else 0.0

    def __str__(self) -> str:
        low, high = -self.share - self.error, -self.share + self.error
        on = f"On {self.n_conditions} held-out conditions"
        changed = f"the squared error of mean changes by {-self.share:+.1%} (90 % interval {low:+.1%} to {high:+.1%})"
        if self.holds:
            return (
                f"The network corrects the response model. {on} it changes {changed}, at {self.factor:.2f} of its size."
            )
        return f"{NOTHING} {on} its correction would change {changed}."


def means_by_code(cells_CG: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Mean of the cells of each code from 0 on, ``[K, G]``; every code has cells."""
    return np.stack([cells_CG[codes == k].mean(axis=0, dtype=np.float64) for k in range(codes.max() + 1)])


def fit_shrinkage(prior_KG: np.ndarray, network_KG: np.ndarray, observed_KG: np.ndarray) -> float:
    """Fit the shrinkage factor of the network's correction, from 0 to 1, to mean expression of conditions.

    The least squares of ``observed - prior`` on ``network - prior``: the noise of conditions that the network did not
    see is not in its correction, and so does not bias it. 1 where a smaller one has a larger mean absolute error.
    """
    correction_KG = network_KG - prior_KG
    length = np.square(correction_KG).sum()
    if length == 0:
        return 1.0
    factor = float(np.clip((correction_KG * (observed_KG - prior_KG)).sum() / length, 0, 1))
    error = np.abs(prior_KG + factor * correction_KG - observed_KG).mean()
    return factor if error <= np.abs(network_KG - observed_KG).mean() else 1.0


def judging_conditions(split: AssignedSplit) -> np.ndarray:
    """Return the conditions that validate without being trained on; none where some are or there are fewer than 3."""
    found = np.unique(split.index.condition_of_cell[split.validation])
    trained = np.isin(found, split.index.condition_of_cell[split.train]).any()
    return found[:0] if trained or len(found) < FEWEST_CONDITIONS else found


def shrinkage_factor(
    predict: Callable[[Output, Mapping[Condition, int]], AnnData],
    keys: ScreenKeys,
    split: AssignedSplit,
    expression: CellStore,
    device: torch.device,
    *,
    known_start: Callable[[Sequence[Condition]], np.ndarray | None],
    seed: int,
) -> tuple[float | None, str]:
    """Return the shrinkage factor that fits the validation conditions, and a sentence about it.

    With a prior the network learns from some tens of conditions what is different about each, and part of that is
    their noise. The factor ``s`` is the one for which ``prior + s * correction`` comes nearest to what was observed.
    The head's last layer is linear, so it goes into its weights, and nothing else needs to know of it.

    ``predict`` predicts an output for so many cells of each condition, with a prior that does not know the validation
    conditions; ``known_start`` returns the means that these start from, if no cells have to be made for that. None
    where no conditions can tell (:func:`judging_conditions`).
    """
    index, rng = split.index, np.random.default_rng((seed, STREAMS.SHRINKAGE))
    position, found = index.condition_of_cell[split.validation], judging_conditions(split)
    if not len(found):
        return None, "No held-out condition tells whether the network's correction holds."
    chosen = np.sort(rng.permutation(found)[:_MOST_CONDITIONS])
    rows = [rng.permutation(split.validation[position == i])[:_MOST_OF_CONDITION] for i in chosen]
    observed_KG = np.stack([expression.mean(r, device) for r in rows])
    groups = np.split(chosen, range(_AT_ONCE, len(chosen), _AT_ONCE))

    def means(output: Output) -> np.ndarray:
        found = []
        for group in groups:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", EvaluationWarning)  # nobody asked for this prediction
                cells = predict(output, dict.fromkeys([index.conditions[i] for i in group], _MOST_OF_CONDITION))
            found.append(means_by_code(cells.X, condition_of_cell(cells.obs, keys)[0]))
        return np.concatenate(found)

    start_KG, network_KG = known_start([index.conditions[i] for i in chosen]), means("expression")
    if start_KG is None:
        factor = fit_shrinkage(means("prior"), network_KG, observed_KG)
        return (
            factor,
            f"Kept {factor:.2f} of the network's correction of its prior, by {len(chosen)} held-out conditions.",
        )
    gain = Gain.of(network_KG - start_KG, observed_KG - start_KG)
    return gain.kept, str(gain)
