"""How sure a prediction is: standard deviations of conditions and genes, and the support of a condition."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import norm

from scvi_tahoe.response._calibration import shaped_variance
from scvi_tahoe.response._kernels import Conditions
from scvi_tahoe.response._members import Question
from scvi_tahoe.response._own_gene import target_genes
from scvi_tahoe.response._response_model import knows_own_genes, left_out_changes, predicted_changes, with_contexts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from scvi_tahoe.data import LabelParser
    from scvi_tahoe.response._fitted import Fitted

_UNKNOWN = "\x00unknown"  # a perturbation that nothing is known of
_BLOCK = 2**22  # values that are expanded from components at once


def measured_rows(fitted: Fitted, questions: Sequence[Question]) -> np.ndarray:
    """Training condition that each question may use the measurement of; -1 where there is none."""
    seen = fitted.members.seen

    def row(q: Question) -> int | None:
        hides = q.hides_condition or q.hides_context or q.perturbation in q.without
        return None if hides else seen.row(q.perturbation, q.context)

    return np.array([-1 if (found := row(q)) is None else found for q in questions], dtype=np.int64)


def predicted_sd(
    fitted: Fitted,
    questions: Sequence[Question],
    control_means: Mapping[str, np.ndarray],
    changes: np.ndarray,
    variance_nQ: np.ndarray | None = None,
) -> np.ndarray:
    """Return the standard deviations ``[n, G]`` of predicted changes ``[n, G]``.

    They are those of the true change: sampling noise of an observed one comes in addition. A standard deviation is
    ``inflation * sqrt(variance_Q @ basis_QG**2 + excess_G)``, calibrated on conditions that were left out, in each
    context for itself, with more for genes and for conditions that change and less for the others; that of the
    perturbed gene itself is the spread around its line.
    """
    if variance_nQ is None:
        variance_nQ = _variance(fitted, questions, control_means)[0]
    squared = np.square(fitted.regression.basis_QG)
    result = np.empty((len(questions), squared.shape[1]), dtype=np.float32)
    for rows in _blocks(len(questions), squared.shape[1]):
        result[rows] = variance_nQ[rows] @ squared
    return _calibrated(fitted, questions, control_means, changes, result)


def _calibrated(
    fitted: Fitted,
    questions: Sequence[Question],
    control_means: Mapping[str, np.ndarray],
    changes: np.ndarray,
    variance: np.ndarray,
) -> np.ndarray:
    """Turn variances of the kernels into standard deviations, in place."""
    trained = set(fitted.conditions.context_names)
    targets = target_genes([q.perturbation for q in questions], fitted.responses.genes.tolist(), fitted.parser)
    factors = fitted.factors([q.context for q in questions], control_means)
    largest = tuple(
        max(of.values(), default=start)
        for of, start in ((fitted.inflation, 1.0), (fitted.spread, 0.0), (fitted.sized, 0.0))
    )
    for i, question in enumerate(questions):
        hides = question.hides_context or question.context not in trained
        origin = fitted.members.origin(replace(question, hides_context=hides))
        # less is known in a context of few perturbations than in those that variances are mostly calibrated on
        hides = hides or fitted.members.lacks_translation(question.context)
        key = next((k for k in ((origin, hides), (origin, False)) if k in fitted.inflation), None)
        known = key and (fitted.inflation[key], fitted.spread[key], fitted.sized.get(key, 0.0))
        inflation, spread, sized = known or largest
        total = shaped_variance(variance[i] + fitted.excess_G, np.square(changes[i] / factors[i]), spread, sized)
        inflation = fitted.local.get(key, {}).get(question.context, inflation) if key else inflation
        variance[i] = inflation * np.sqrt(total) * factors[i]
        if fitted.own is not None and knows_own_genes(fitted, question.context, control_means):
            variance[i, targets[i]] = np.sqrt(fitted.own.error)
    return variance


def probability_of_direction(changes: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Return the probability that the true change has the sign of the predicted one, float32."""
    return norm.cdf(np.abs(changes) / np.maximum(deviation, 1e-12)).astype(np.float32)


def probability_of_effect(changes: np.ndarray, deviation: np.ndarray, min_change: float) -> np.ndarray:
    """Return the probability that the true change is larger than ``min_change``, up or down, float32."""
    deviation = np.maximum(deviation, 1e-12)
    up, down = norm.sf((min_change - changes) / deviation), norm.cdf((-min_change - changes) / deviation)
    return (up + down).astype(np.float32)


def usual_change(fitted: Fitted) -> float:
    """Return the median over genes of the standard deviation of changes over the training conditions."""
    factors = fitted.factors(fitted.conditions.contexts.tolist(), fitted.responses.control_means)
    return float(np.median((fitted.members.seen.changes * factors).std(axis=0)))


def variance_and_support(
    fitted: Fitted,
    questions: Sequence[Question],
    control_means: Mapping[str, np.ndarray],
    left_out_n: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the variance of components of conditions, ``[n, Q]``, and their support, ``[n]``; see Prediction.

    ``left_out_n`` has the sum over components for training conditions that are predicted without themselves, NaN for
    the others: the regression has seen the former, and would be too sure of them.
    """
    variance_nQ, reference = _variance(fitted, questions, control_means)
    if left_out_n is not None and (known := np.flatnonzero(np.isfinite(left_out_n))).size:
        variance_nQ[known] *= (left_out_n[known] / np.maximum(variance_nQ[known].sum(axis=1), 1e-300))[:, None]
    return variance_nQ, np.clip(1 - variance_nQ.sum(axis=1) / np.maximum(reference, 1e-300), 0, 1)


@dataclass(frozen=True)
class Measured:
    """Training conditions as the others predict them, which their own measurements are combined with.

    Attributes
    ----------
    has_noise
        Whether the sampling variance of each condition is known, ``[n]``.
    changes, deviation
        Mean change and its standard deviation, float32 ``[n, G]``; empty where no condition can be left out, or no
        sampling variance is known.
    """

    has_noise: np.ndarray
    changes: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, fitted: Fitted, has_noise: np.ndarray) -> Measured:
        """Predict the training conditions from one another."""
        means = fitted.responses.control_means
        if "condition" not in fitted.left_out or not has_noise.any():
            nothing = np.empty((0, fitted.responses.changes.shape[1]), dtype=np.float32)
            return cls(has_noise, nothing, nothing)
        changes, c = left_out_changes(fitted, "condition", means), fitted.conditions
        deviation = np.empty_like(changes)
        for rows in _blocks(len(c), changes.shape[1]):
            _, variance = fitted.left_out["condition"].changes(np.arange(len(c))[rows])
            deviation[rows] = variance
        questions = [Question(str(p), str(where)) for p, where in zip(c.perturbations, c.contexts, strict=True)]
        return cls(has_noise, changes, _calibrated(fitted, questions, means, changes, deviation))


@dataclass(frozen=True)
class Prediction:
    """What is predicted for conditions.

    Attributes
    ----------
    changes, deviation
        Mean change and its standard deviation, float32 ``[n, G]``.
    support
        Share of the variance that what is known of the perturbation explains, ``[n]``: 1 - variance / variance of the
        same condition if nothing but its context were known.
    starts_from
        What each starts from, ``[n]``.
    """

    changes: np.ndarray
    deviation: np.ndarray
    support: np.ndarray
    starts_from: list[str]


def predict_conditions(
    fitted: Fitted, questions: Sequence[Question], control_means: Mapping[str, np.ndarray], own: Measured
) -> Prediction:
    """Predict conditions, measured ones with their own measurement.

    A measured condition is the mean of its measurement and of what the others predict for it, weighted by their
    variances for each gene. Where its sampling variance is not known, what is a condition's own counts
    as noise, and the regression smooths it.
    """
    changes, origins = predicted_changes(fitted, questions, control_means)
    starts = [origin.value for origin in origins]
    measured = measured_rows(fitted, questions)
    known = np.flatnonzero(measured >= 0)
    noisy = known[own.has_noise[measured[known]]] if len(own.changes) else known[:0]
    smooth = np.setdiff1d(known, noisy)
    with_noise = np.full(len(questions), -1)
    with_noise[noisy] = measured[noisy]
    variance_nQ, reference = _variance(fitted, questions, control_means, with_noise)
    variance_nQ[smooth] = np.maximum(variance_nQ[smooth] - fitted.regression.nugget_Q, 0)
    if smooth.size:
        conditions = fitted.conditions.take(measured[smooth], fitted.parser)
        mean_nQ = fitted.regression.predict(fitted.kernels, conditions, fitted.conditions, fitted.device)
        places = [questions[i].context for i in smooth.tolist()]
        changes[smooth] = mean_nQ @ fitted.regression.basis_QG * fitted.factors(places, control_means)
        _keep_targets(fitted, measured[smooth], smooth, changes)
    deviation = predicted_sd(fitted, questions, control_means, changes, variance_nQ)
    for i in noisy.tolist():
        row = measured[i]
        before, squared = own.changes[row].astype(np.float64), np.square(own.deviation[row], dtype=np.float64)
        noise = fitted.responses.noise[row]
        share = squared / np.maximum(squared + noise, 1e-300)
        changes[i] = before + share * (fitted.responses.changes[row] - before)
        deviation[i] = np.sqrt(share * noise)
    for i in known.tolist():
        starts[i] = "its own measurement"
    support = 1 - variance_nQ.sum(axis=1) / np.maximum(reference, 1e-300)
    return Prediction(changes, deviation, np.clip(support, 0, 1), starts)


def _keep_targets(fitted: Fitted, rows: np.ndarray, positions: np.ndarray, changes: np.ndarray) -> None:
    """Put back the measured changes of perturbed genes, which are kept out of the regression."""
    if fitted.own is None:
        return
    labels = fitted.conditions.perturbations[rows].tolist()
    targets = target_genes(labels, fitted.responses.genes.tolist(), fitted.parser)
    for i, row, genes in zip(positions, rows, targets, strict=True):
        changes[i, genes] = fitted.responses.changes[row, genes]


def _variance(
    fitted: Fitted,
    questions: Sequence[Question],
    control_means: Mapping[str, np.ndarray],
    own: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Variance of components, ``[n, Q]``, and their sum if nothing but the context were known, ``[n]``."""
    kernels = with_contexts(fitted.kernels, control_means)
    regression, train, device = fitted.regression, fitted.conditions, fitted.device
    contexts = [q.context for q in questions]
    labels, n = [q.perturbation for q in questions], len(questions)
    pairs = [(_unknown(q.perturbation, fitted.parser), q.context) for q in questions]
    distinct = list(dict.fromkeys(pairs))
    position = {pair: k for k, pair in enumerate(distinct)}
    labels += [label for label, _ in distinct]
    contexts += [context for _, context in distinct]
    own = None if own is None else np.append(own, np.full(len(distinct), -1))
    asked = Conditions.of(labels, contexts, fitted.parser)
    posterior, prior = regression.variance(kernels, asked, train, device, own)
    of_context = (prior - posterior)[n:][[position[pair] for pair in pairs]]
    return posterior[:n], np.maximum(prior[:n] - of_context, 0).sum(axis=1)


def _unknown(label: str, parser: LabelParser) -> str:
    """Replace the perturbations of a label by unknown ones, at the same doses."""
    parts = parser.components(label)
    return parser.join([part._replace(name=f"{_UNKNOWN} {k}") for k, part in enumerate(parts)])


def _blocks(n: int, width: int) -> Iterator[slice]:
    size = max(1, _BLOCK // max(width, 1))
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
