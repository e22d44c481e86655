"""Contexts in which perturbations show nothing, although the same ones have common effects in other contexts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scvi_tahoe.response._kernels import Conditions

_FEWEST = 6  # perturbations that contexts are compared by
_ALIKE, _UNLIKE = 0.3, 0.15  # correlations of effects: of some pair of contexts, and of a silent one with any other
_WEAK = 0.5  # variance among perturbations of a silent context, relative to that of the others
_NONE, _CLEAR = 2.0, 4.0  # standard errors of the variance among perturbations: of a silent context, and of the other
_LESS = 0.2  # that variance, relative to the other context's
_NOISE = 300.0  # variance that its conditions get in addition, in units of that of the others


def silent_contexts(changes_nG: np.ndarray, noise_nG: np.ndarray, conditions: Conditions) -> frozenset[str]:
    """Name the contexts whose changes vary little among perturbations, and not as those of any other context.

    What they show is nothing; as evidence against effects that other contexts agree on it would mislead. Of two
    contexts, one is silent if its perturbations differ by no more than their sampling noise, those of the other do.
    """
    names = conditions.context_names
    if len(names) == 2:
        return _silent_of_two(changes_nG, noise_nG, conditions)
    if len(names) < 3:
        return frozenset()
    rows = [dict(zip(conditions.label[r].tolist(), r.tolist(), strict=True)) for r in _rows(conditions)]
    alike, energy = np.full((len(names), len(names)), np.nan), np.full((len(names), len(names)), np.nan)
    for i in range(len(names)):
        for j in range(i):
            shared = sorted(rows[i].keys() & rows[j].keys())
            if len(shared) < _FEWEST:
                continue
            one, other = (changes_nG[[rows[k][label] for label in shared]] for k in (i, j))
            one, other = one - one.mean(axis=0), other - other.mean(axis=0)
            energy[i, j], energy[j, i] = np.square(one).mean(), np.square(other).mean()
            alike[i, j] = alike[j, i] = (one * other).mean() / np.sqrt(max(energy[i, j] * energy[j, i], 1e-300))
    if not (alike > _ALIKE).any():
        return frozenset()
    found = []
    for i, name in enumerate(names):
        known = np.isfinite(alike[i])
        # compared with contexts that agree with some other one
        known &= np.nan_to_num(alike, nan=-1.0).max(axis=1) > _ALIKE
        if known.any() and alike[i, known].max() < _UNLIKE and (energy[i] < _WEAK * energy[:, i])[known].all():
            found.append(name)
    return frozenset(found)


def _silent_of_two(changes_nG: np.ndarray, noise_nG: np.ndarray, conditions: Conditions) -> frozenset[str]:
    """Name the one of two contexts without differences among perturbations beyond known noise, if the other has some.

    For each perturbation, the mean over genes of the squared difference from the mean of its context, in units of its
    sampling variance, is 1 if there are no effects. What exceeds it is compared with its spread over perturbations.
    """
    sizes, significant = [], []
    for rows in _rows(conditions):
        noise = noise_nG[rows].astype(np.float64)
        if len(rows) < _FEWEST or not (noise > 0).any():
            return frozenset()
        centred = changes_nG[rows] - changes_nG[rows].mean(axis=0)
        usual = np.maximum(noise.mean(axis=0), 1e-3 * noise.mean())
        expected = (noise / usual).mean(axis=1) * (1 - 1 / len(rows))
        beyond = (np.square(centred) / usual).mean(axis=1) / expected - 1
        sizes.append(float((np.square(centred) - noise).mean()))
        significant.append(float(beyond.mean() / max(beyond.std(ddof=1) / np.sqrt(len(rows)), 1e-12)))
    for mine, other in ((0, 1), (1, 0)):
        if significant[mine] < _NONE < _CLEAR < significant[other] and sizes[mine] < _LESS * sizes[other]:
            return frozenset({conditions.context_names[mine]})
    return frozenset()


def noise_of_regression(changes_nG: np.ndarray, noise_nG: np.ndarray, conditions: Conditions) -> np.ndarray:
    """Return the sampling variance, and for conditions of silent contexts so much more that they have no say."""
    silent = np.isin(conditions.contexts, sorted(silent_contexts(changes_nG, noise_nG, conditions)))
    if not silent.any():
        return noise_nG
    result = noise_nG.copy()
    result[silent] += (_NOISE * np.square(changes_nG[~silent] - changes_nG[~silent].mean(axis=0)).mean(axis=0)).astype(
        noise_nG.dtype
    )
    return result


def _rows(conditions: Conditions) -> list[np.ndarray]:
    return [np.flatnonzero(conditions.context == k) for k in range(len(conditions.context_names))]
