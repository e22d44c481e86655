"""Training conditions as others predict them: scores of these predictions, and what they say of variances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial.distance import cdist

from scvi_tahoe.response._calibration import (
    chosen_size,
    chosen_spread,
    inflation_of,
    inflation_of_contexts,
    shaped_variance,
)
from scvi_tahoe.response._members import MEMBERS, Origin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scvi_tahoe.response._members import Question

_FACTORS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)  # of what is specific to a perturbation, to tell them apart
_GAINED = 0.75  # share of the gain in discrimination that the factor has to reach
_FEWEST_JUDGED = 6  # conditions that such a factor is chosen on


@dataclass(frozen=True)
class Judged:
    """Training conditions of one kind of question, as others predict them.

    Attributes
    ----------
    asked
        Conditions, the way in which each was left out, and the question.
    members
        Changes by members, for each condition.
    changes
        Changes as the response model has them, ``[m, G]``.
    variance
        Variance of the kernels, ``[m, G]``.
    """

    asked: Sequence[tuple[int, str, Question]]
    members: Sequence[Mapping[str, np.ndarray]]
    changes: np.ndarray
    variance: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """Conditions."""
        return np.array([i for i, _, _ in self.asked])


def judge(
    judged: Mapping[tuple[Origin, bool], Judged],
    observed: np.ndarray,
    noise: np.ndarray,
    missing: np.ndarray,
    contexts: np.ndarray,
    factors: np.ndarray,
    *,
    discriminates: bool,
) -> dict[str, Any]:
    """Fit variances, and score predictions; what :class:`Fitted` has of the same names.

    Parameters
    ----------
    judged
        Conditions of each kind of question.
    observed, noise, missing, contexts
        Changes of all conditions, their sampling variance and whether they were not measured, ``[n, G]`` each; and
        contexts, ``[n]``.
    factors
        What changes are multiplied by before they are scored, ``[n, G]`` or ``[n, 1]``.
    discriminates
        Whether what is specific to a perturbation is multiplied so that perturbations are told apart.
    """
    inflation, local, unshrinking, spread, sized, residuals = {}, {}, {}, {}, {}, []
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for key, of_key in judged.items():
        rows, found = of_key.rows, of_key.changes
        here, truth = contexts[rows], observed[rows]
        scale = factors[rows]
        scores[question_name(key)] = _scores(of_key.members, found, truth, here, scale)
        if discriminates:
            mean = np.stack([p["mean"] for p in of_key.members])
            factor = unshrinking[key] = _discriminating(found * scale, mean * scale, truth * scale, here)
            found = mean + factor * (found - mean)
            scores[question_name(key)][f"response model x {factor:g}"] = change_scores(
                found * scale, truth * scale, here
            )
        residual = np.where(missing[rows], np.nan, truth - found)
        residuals.append((key, residual, found, noise[rows], of_key.variance, here))
    if not residuals:  # a single condition: nothing is left out
        return {"excess_G": np.square(observed).mean(axis=0)}
    # what is outside the basis, or what kernels do not know of: one value a gene, over all questions
    squares = np.concatenate([np.square(r) - n - v for _, r, _, n, v, _ in residuals])
    excess = np.maximum(np.nan_to_num(nanmean(squares)), 0)
    for key, residual, found, own_noise, variance, here in residuals:
        given = np.square(residual), variance + excess, np.square(found), own_noise
        spread[key], sized[key] = chosen_spread(*given), chosen_size(*given)
        total = shaped_variance(variance + excess, np.square(found), spread[key], sized[key])
        inflation[key] = inflation_of(np.square(residual), total, own_noise)
        local[key] = inflation_of_contexts(np.square(residual), total, own_noise, here, inflation[key])
    return {
        "inflation": inflation, "local": local, "excess_G": excess, "scores": scores, "unshrinking": unshrinking,
        "spread": spread, "sized": sized,
    }  # fmt: skip


def nanmean(values: np.ndarray) -> np.ndarray:
    """Mean over rows of what is not NaN; NaN where nothing is."""
    n = (~np.isnan(values)).sum(axis=0)
    return np.where(n > 0, np.nansum(values, axis=0) / np.maximum(n, 1), np.nan)


def _discriminating(found: np.ndarray, mean: np.ndarray, truth: np.ndarray, contexts: np.ndarray) -> float:
    """Choose the smallest factor of the difference from the mean that tells left-out conditions apart almost best."""
    pds = [change_scores(mean + f * (found - mean), truth, contexts)["pds"] for f in _FACTORS]
    if len(found) < _FEWEST_JUDGED or not np.isfinite(pds).all():
        return 1.0
    return _FACTORS[int(np.argmax(np.array(pds) >= pds[0] + _GAINED * (max(pds) - pds[0])))]


def question_name(key: tuple[Origin, bool]) -> str:
    """Name a kind of question."""
    origin, hides_context = key
    return origin.value + (", in a context with controls only" if hides_context else "")


def _scores(
    predicted: Sequence[Mapping[str, np.ndarray]],
    stacked: np.ndarray,
    truth: np.ndarray,
    contexts: np.ndarray,
    scale: np.ndarray,
) -> dict[str, Any]:
    """Mean absolute and root mean squared error, Pearson and PDS of every member and of the stack."""
    rows: dict[str, np.ndarray] = {"response model": stacked}
    for name in ("without the network", *MEMBERS):
        if any(name in p for p in predicted):
            rows[name] = np.stack([p.get(name, p["kernels"]) for p in predicted])
    return {name: change_scores(values * scale, truth * scale, contexts) for name, values in rows.items()}


def change_scores(predicted: np.ndarray, truth: np.ndarray, contexts: np.ndarray) -> dict[str, float]:
    """Scores of changes ``[n, G]``: Pearson, PDS (against the others of the context), MAE and RMSE."""

    def centred(values: np.ndarray) -> np.ndarray:
        values = values - values.mean(axis=1, keepdims=True)
        return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)

    ranks = []
    for context in np.unique(contexts).tolist():
        here = np.flatnonzero(contexts == context)[:300]
        if len(here) > 1:
            distance = cdist(predicted[here], truth[here], "cityblock")
            ranks.append(1 - (distance < distance.diagonal()[:, None]).mean(axis=1))
    return {
        "pearson": float((centred(predicted) * centred(truth)).sum(axis=1).mean()),
        "pds": float(np.concatenate(ranks).mean()) if ranks else float("nan"),
        "mae": float(np.abs(predicted - truth).mean()),
        "rmse": float(np.sqrt(np.square(predicted - truth).mean())),
        "n": len(predicted),
    }
