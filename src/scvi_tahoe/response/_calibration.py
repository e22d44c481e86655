"""Variances of genes and conditions, calibrated on conditions that were left out."""

from __future__ import annotations

import numpy as np

_COVERED, _LEVEL = 0.9, 1.645  # share of a central interval, and its standard deviations
_SPREADS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)  # variances tried, in units of the squared change that is predicted
# of the variance of conditions, in proportion to their change; the likelihood hardly tells larger ones apart, with
# which what is known of a condition would count for less
_SHARES = (0.0, 0.1, 0.2, 0.3)
_SCALES = np.exp(np.linspace(-2, 2, 41))
_LEAST = 0.5  # of the factor by the mean square
_PULL = 2  # conditions' worth of a pull of a context's factor towards that of all contexts
_FEWEST = 5  # left-out conditions from which is learned how sure they are


def shaped_variance(variance_nG: np.ndarray, squared_nG: np.ndarray, spread: float, sized: float = 0.0) -> np.ndarray:
    """Add to the variance of conditions and genes what strong predicted changes are wrong by in addition.

    Among the genes of a condition, ``spread`` times the squared predicted change is added, and the sum over genes kept;
    to this sum, ``sized`` times the sum of the squared changes is added.
    """
    total = np.maximum(variance_nG + spread * squared_nG, 1e-12)
    of_condition = (variance_nG + sized * squared_nG).sum(axis=-1, keepdims=True)
    return total * (of_condition / total.sum(axis=-1, keepdims=True))


def chosen_spread(squares: np.ndarray, variance: np.ndarray, predicted: np.ndarray, noise: np.ndarray) -> float:
    """Choose by likelihood how much of the squared predicted change is added to the variance, apart from its scale.

    Parameters
    ----------
    squares
        Squared residuals of left-out conditions, ``[n, G]``; NaN where a response is missing.
    variance, predicted, noise
        Their variance by the kernels, squared predicted change, and sampling variance, ``[n, G]``.
    """
    known = np.isfinite(squares)
    if not known.any():
        return 0.0
    costs = []
    for spread in _SPREADS:
        shape = np.maximum(shaped_variance(variance, predicted, spread), 1e-12)
        scale = max(float(np.mean((np.maximum(squares - noise, 0) / shape)[known])), 1e-6)
        total = scale * shape + noise
        costs.append(float(np.mean((np.log(total) + squares / total)[known])))
    return _SPREADS[int(np.argmin(costs))]


def chosen_size(squares: np.ndarray, variance: np.ndarray, predicted: np.ndarray, noise: np.ndarray) -> float:
    """Choose by likelihood how much the variance of conditions grows with their predicted change.

    Parameters are those of :func:`chosen_spread`; compared are means over genes. The kernels tell conditions apart by
    what is known of them, which is the same for all whose perturbation was seen in the same contexts.
    """
    weight = np.isfinite(squares).astype(float)
    rows = weight.sum(axis=1) > 0
    if rows.sum() < _FEWEST:
        return 0.0
    means = (
        np.average(np.nan_to_num(x)[rows], axis=1, weights=weight[rows]) for x in (squares, variance, predicted, noise)
    )
    squares_n, variance_n, predicted_n, noise_n = means
    if not predicted_n.any():
        return 0.0
    found = {}
    for share in _SHARES:
        sized = share / (1 - share) * variance_n.mean() / predicted_n.mean()
        shape = np.maximum(variance_n + sized * predicted_n, 1e-12)
        scale = max(float(np.maximum(squares_n - noise_n, 0).mean() / shape.mean()), 1e-6)
        total = scale * _SCALES[:, None] * shape + noise_n
        found[float(sized)] = float((np.log(total) + squares_n / total).mean(axis=1).min())
    return min(found, key=found.__getitem__)


def inflation_of(squares: np.ndarray, variance: np.ndarray, noise: np.ndarray) -> float:
    """Find the factor of standard deviations at which intervals of 90 %, with known noise, hold that many values.

    Where the noise of most genes alone covers them, nothing follows from that about the others, so the factor is at
    least half of the one that the mean squared residual has.
    """
    low, high = np.log(1e-3), np.log(1e3)
    known = np.isfinite(squares)
    if not known.any():
        return 1.0
    mean = (squares - noise)[known].mean() / max(variance[known].mean(), 1e-300)
    rest, variance = (squares / _LEVEL**2 - noise)[known], variance[known]
    for _ in range(25):
        middle = (low + high) / 2
        covered = float((rest <= np.exp(2 * middle) * variance).mean())
        low, high = (middle, high) if covered < _COVERED else (low, middle)
    return max(float(np.exp(high)), _LEAST * float(np.sqrt(max(mean, 0.0))))


def inflation_of_contexts(
    squares: np.ndarray, variance: np.ndarray, noise: np.ndarray, contexts: np.ndarray, overall: float
) -> dict[str, float]:
    """Find the factor of :func:`inflation_of` in each context, pulled towards that of all, ``overall``.

    In a context of few perturbations less is known than in those that most left-out conditions are of.
    """
    found = {}
    for context in np.unique(contexts).tolist():
        here = contexts == context
        share = here.sum() / (here.sum() + _PULL)
        own = inflation_of(squares[here], variance[here], noise[here])
        found[context] = float(own**share * overall ** (1 - share))
    return found
