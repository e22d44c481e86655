"""On which scale changes of a gene are compared between contexts that express it differently.

A perturbation that multiplies the rate of a gene moves its mean log1p expression by ``x / (1 + x)`` of the change of
``log x``: hardly at all in a cell type that does not express the gene. If ``m`` is mean log1p expression of controls,
``1 - exp(-m)`` stands for that derivative. Changes are divided by a power of it before contexts are compared, and
multiplied again where they are predicted. The power is 0, that is, changes are compared as they are, unless conditions
that are left out say that another one is better; where no perturbation was measured in two contexts, nothing can say
so, and it is one half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

_POWERS = (0.25, 0.5, 0.75, 1.0)
_FLOOR = 0.03  # of the derivative: controls tell rare expression from none only so well
_FEWEST = 4  # conditions, of perturbations that are in several contexts, that choose the power
_MOST = 2000  # conditions that it is chosen on
_SURE, _GAIN = 2.0, 0.01  # standard errors, and share of the squared error, by which a power has to be better than none
_UNTOLD = 0.5  # where nothing can tell: half way between both scales


@dataclass(frozen=True)
class ContextScale:
    """Factors of changes by context and gene.

    Attributes
    ----------
    power
        Exponent of the derivative of log1p expression.
    usual_G
        Mean of the derivative over the training contexts.
    """

    power: float
    usual_G: np.ndarray

    @classmethod
    def of(cls, power: float, contexts: np.ndarray, control_means: Mapping[str, np.ndarray]) -> ContextScale:
        """Return factors relative to the mean of the contexts, which have control means all."""
        return cls(power, np.mean([_derivative(control_means[c]) for c in np.unique(contexts).tolist()], axis=0))

    def factor(self, control_mean_G: np.ndarray | None) -> np.ndarray:
        """Return factors of genes, float32 ``[G]``; 1 in a context whose controls are not known."""
        if control_mean_G is None:
            return np.ones(len(self.usual_G), dtype=np.float32)
        ratio: np.ndarray = (_derivative(control_mean_G) / self.usual_G) ** self.power
        return ratio.astype(np.float32)

    def factors(self, contexts: np.ndarray, control_means: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return factors of conditions, float32 ``[n, G]``."""
        names, code = np.unique(contexts, return_inverse=True)
        return np.stack([self.factor(control_means.get(c)) for c in names.tolist()])[code]


def choose_scale(
    changes: np.ndarray,
    perturbations: np.ndarray,
    contexts: np.ndarray,
    control_means: Mapping[str, np.ndarray],
    rng: np.random.Generator,
) -> ContextScale | None:
    """Choose the power by predicting conditions from the same perturbation in other contexts.

    Parameters
    ----------
    changes
        Mean changes, ``[n, G]``, without missing values.
    perturbations, contexts
        Labels, ``[n]``.
    control_means
        Mean control expression of contexts, log1p.
    rng
        Chooses conditions where there are very many.

    Returns
    -------
    None if changes are best compared as they are, or controls are not known.
    """
    if not all(context in control_means for context in np.unique(contexts).tolist()):
        return None
    rows = _in_several_contexts(perturbations, contexts, rng)
    if len(rows) < _FEWEST:
        return ContextScale.of(_UNTOLD, contexts, control_means)
    y, (_, group) = changes[rows].astype(np.float64), np.unique(perturbations[rows], return_inverse=True)
    without, best = _errors(y, y, group), None
    least = (1 - _GAIN) * without.mean()
    for power in _POWERS:
        scale = ContextScale.of(power, contexts, control_means)
        factors = scale.factors(contexts[rows], control_means)
        errors = _errors(y / factors, y, group, factors)
        gained = without - errors
        if errors.mean() < least and gained.mean() > _SURE * gained.std(ddof=1) / np.sqrt(len(gained)):
            least, best = errors.mean(), scale
    return best


def _in_several_contexts(perturbations: np.ndarray, contexts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return rows of perturbations that were measured in more than one context, whole perturbations at a time."""
    places: dict[str, set[str]] = {}
    for perturbation, context in zip(perturbations.tolist(), contexts.tolist(), strict=True):
        places.setdefault(perturbation, set()).add(context)
    names = rng.permutation(sorted(name for name, of_name in places.items() if len(of_name) > 1))
    kept = names[np.cumsum([len(places[name]) for name in names.tolist()]) <= _MOST]
    return np.flatnonzero(np.isin(perturbations, kept))


def _errors(
    scaled: np.ndarray, observed: np.ndarray, group: np.ndarray, factors: np.ndarray | None = None
) -> np.ndarray:
    """Squared errors, mean over genes, of the shrunk mean of the others of each group, ``[n]``."""
    size = np.bincount(group)
    totals = np.zeros((len(size), scaled.shape[1]))
    np.add.at(totals, group, scaled)
    predicted = (totals[group] - scaled) / (size[group] - 1)[:, None]
    if factors is not None:
        predicted *= factors
    shrunk = float((predicted * observed).sum()) / max(float(np.square(predicted).sum()), 1e-300)
    return np.square(observed - np.clip(shrunk, 0, 1) * predicted).mean(axis=1)


def _derivative(control_mean_G: np.ndarray) -> np.ndarray:
    """Return the derivative of log1p expression by log expression, ``[G]``, where a gene has this mean; never 0."""
    return 1 - np.exp(-np.maximum(np.asarray(control_mean_G, dtype=np.float64), 0)) + _FLOOR
