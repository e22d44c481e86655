"""What a change can be predicted from besides the kernels, what kind of question it is, and how members are stacked.

Members are simple arithmetic (:class:`~scvi_tahoe.evaluate.SeenChanges`) and the kernel regression. Their weights sum
to 1 and minimise the squared error of conditions that are predicted without themselves (stacked regressions, Breiman
1996, Machine Learning 24:49), for each kind of question on its own: a perturbation that was measured in another context
is asked differently from one that was measured nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression, nnls

from scvi_tahoe.evaluate import RidgeFit, SeenChanges, nearest_mean
from scvi_tahoe.response._elsewhere import Translation
from scvi_tahoe.response._kernels import table_rows, unit_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scvi_tahoe.data import LabelParser

#: members, in the order of their weights
MEMBERS = ("kernels", "mean", "transfer", "deviation", "nearest", "ridge", "translation")
_FEWEST = 6  # conditions that weights are fitted to
_PULL = 20  # conditions' worth of a pull towards the kernels alone
_PULL_OF_CONTEXT = 5  # the same of the pull towards relying on them in a context
_ONE_SIDED = 1.645
#: differences from the mean, in standard deviations of their noise, between which the unshrunk member has one weight
_STRENGTHS = np.array([1.0, 2.0, 3.0, 4.0, 6.0, 9.0])


class Origin(Enum):
    """What a prediction may start from; the values name no condition, so that the conditions of each can be counted."""

    CONTROL_CELLS = "control cells"
    OTHER_CONTEXTS = "the same perturbation in other contexts"
    NEAREST_DOSES = "the nearest doses of the same perturbation"
    PARTS = "its parts"
    SOME_PARTS = "some of its parts"
    NEAREST = "the nearest perturbations by embedding"
    SHARING_PARTS = "perturbations that share parts with it"
    OTHERS = "the mean of other perturbations"


@dataclass(frozen=True)
class Question:
    """A condition to be predicted, and what must not be used.

    Attributes
    ----------
    perturbation, context
        Labels.
    without
        Labels of perturbations that are not known.
    hides_context
        Whether nothing of the context but its controls is known.
    hides_condition
        Whether the condition itself is not known.
    """

    perturbation: str
    context: str
    without: frozenset[str] = frozenset()
    hides_context: bool = False
    hides_condition: bool = True


@dataclass(frozen=True)
class Members:
    """Simple members of the response model.

    Attributes
    ----------
    seen
        Training changes, with genes that perturbations target directly replaced (see :class:`OwnGene`).
    noise
        Their sampling variance, ``[n, G]``.
    parser
        Reads labels.
    tables
        Embedding tables.
    """

    seen: SeenChanges
    noise: np.ndarray
    parser: LabelParser
    tables: Mapping[str, Any]

    @cached_property
    def scale_G(self) -> np.ndarray:
        """Root mean square of each gene's changes, never 0."""
        return np.maximum(np.sqrt(np.square(self.seen.changes, dtype=np.float64).mean(axis=0)), 1e-12)

    @cached_property
    def _labels_with(self) -> dict[str, set[str]]:
        """Labels that each component is in."""
        found: dict[str, set[str]] = {}
        for label in np.unique(self.seen.perturbations).tolist():
            for part in self.parser.components(label):
                found.setdefault(part.name, set()).add(label)
        return found

    def labels_sharing(self, label: str) -> frozenset[str]:
        """Labels with any component of a label, at any dose."""
        found = (self._labels_with.get(part.name, set()) for part in self.parser.components(label))
        return frozenset(set().union(*found, {label}))

    def _rows(self, label: str, question: Question) -> list[int]:
        """Rows of a label that a question may use."""
        if label in question.without:
            return []
        rows = self.seen.elsewhere(label, question.context).tolist()
        here = self.seen.row(label, question.context)
        if here is not None and not question.hides_context:
            if not (question.hides_condition and label == question.perturbation):
                rows.append(here)
        return rows

    def origin(self, question: Question) -> Origin:
        """Return what kind of question this is."""
        label = question.perturbation
        if label not in question.without and len(self.seen.elsewhere(label, question.context)):
            return Origin.OTHER_CONTEXTS
        parts = self.parser.components(label)
        if len(parts) == 1 and parts[0].dose is not None and self._doses(question):
            return Origin.NEAREST_DOSES
        if len(parts) > 1:
            alone = [bool(self._rows(str(part), question)) for part in parts]
            if any(alone):
                return Origin.PARTS if all(alone) else Origin.SOME_PARTS
        if self.tables and self.rows_of_table([label])[1][0]:
            return Origin.NEAREST
        known = self._labels_with
        if len(parts) > 1 and any(known.get(part.name, set()) - set(question.without) - {label} for part in parts):
            return Origin.SHARING_PARTS
        return Origin.OTHERS

    def changes(self, question: Question, origin: Origin) -> dict[str, np.ndarray]:
        """Predict with the members that know something, ``[G]`` each."""
        without = tuple(question.without | ({question.perturbation} if question.hides_condition else set()))
        mean = self.seen.mean(question.context, without, hidden=question.hides_context)
        if mean is None:
            mean = np.zeros(self.seen.changes.shape[1])
        found = {"mean": mean}
        if origin is Origin.OTHER_CONTEXTS:
            label, context = question.perturbation, question.context
            found["transfer"] = self.seen.transfer(label, context)  # type: ignore[assignment]
            found["deviation"] = self.seen.deviation(label, context, without, hidden=question.hides_context)  # type: ignore[assignment]
            if not question.hides_context and (translation := self._translation(context)) is not None:
                hides = question.hides_condition
                found["translation"] = translation.change(self.seen, label, context, without_itself=hides)
        elif origin is Origin.NEAREST_DOSES:
            weights = self._dose_weights(question)
            found["deviation"] = np.sum([w * self._unshrunk(k, question, mean) for k, w in weights.items()], axis=0)
        elif origin in (Origin.PARTS, Origin.SOME_PARTS):
            parts = [str(part) for part in self.parser.components(question.perturbation)]
            known = [part for part in parts if self._rows(part, question)]
            found["deviation"] = mean + np.sum([self._unshrunk(p, question, mean) - mean for p in known], axis=0)
        elif origin is Origin.NEAREST:
            found |= self._by_table(question, without)
        return found

    def lacks_translation(self, context: str) -> bool:
        """Whether too few perturbations were measured in a context to translate to it, but not so in others."""
        others = np.unique(self.seen.contexts).tolist()
        return self._translation(context) is None and any(self._translation(other) is not None for other in others)

    def _translation(self, context: str) -> Translation | None:
        if context not in self._translations:
            self._translations[context] = Translation.of(self.seen, context)
        return self._translations[context]

    @cached_property
    def _translations(self) -> dict[str, Translation | None]:
        return {}

    def noise_of(self, question: Question, origin: Origin) -> np.ndarray:
        """Return the sampling variance of the member ``'deviation'``, ``[G]``."""
        if origin is Origin.OTHER_CONTEXTS:
            groups = {question.perturbation: 1.0}
        elif origin is Origin.NEAREST_DOSES:
            groups = self._dose_weights(question)
        else:
            groups = {str(part): 1.0 for part in self.parser.components(question.perturbation)}
        total = np.zeros(self.seen.changes.shape[1])
        for label, weight in groups.items():
            if rows := self._rows(label, question):
                total += weight**2 * self.noise[rows].mean(axis=0) / len(rows)
        return total

    def _unshrunk(self, label: str, question: Question, mean: np.ndarray) -> np.ndarray:
        """Change of another label in the context: measured there, or carried over."""
        here = self.seen.row(label, question.context)
        if here is not None and not question.hides_context:
            return self.seen.changes[here]
        found = self.seen.deviation(label, question.context, tuple(question.without), hidden=question.hides_context)
        return mean if found is None else found

    def _doses(self, question: Question) -> dict[str, float]:
        """Labels of other measured doses of the same perturbation, and their log10."""
        (own,) = self.parser.components(question.perturbation)
        found = {}
        for label in sorted(self._labels_with.get(own.name, set())):
            parts = self.parser.components(label)
            if len(parts) == 1 and parts[0].dose is not None and label != question.perturbation:
                if self._rows(label, question):
                    found[label] = float(np.log10(parts[0].dose))
        return found

    def _dose_weights(self, question: Question) -> dict[str, float]:
        """Weights of the measured doses next below and above, by log dose; of the last one beyond them."""
        (own,) = self.parser.components(question.perturbation)
        dose, doses = np.log10(own.dose or 1.0), sorted(self._doses(question).items(), key=lambda item: item[1])
        above = int(np.searchsorted([d for _, d in doses], dose))
        (low, lower), (high, upper) = doses[max(above - 1, 0)], doses[min(above, len(doses) - 1)]
        if low == high:
            return {low: 1.0}
        share = (dose - lower) / (upper - lower)
        return {low: 1 - share, high: share}

    def rows_of_table(self, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Rows of labels in all tables side by side, ``[labels, P]``, and whether any table has all components."""
        parts = [self.parser.components(label) for label in labels]
        names = sorted({part.name for of_label in parts for part in of_label})
        position = {name: i for i, name in enumerate(names)}
        found = [table_rows(table, names) for table in self.tables.values()]
        rows = np.concatenate([values for values, _ in found], axis=1)
        known = np.logical_or.reduce([k for _, k in found])
        index = [[position[part.name] for part in of_label] for of_label in parts]
        return np.stack([rows[i].sum(axis=0) for i in index]), np.array([known[i].all() for i in index])

    @cached_property
    def _fits(self) -> dict[tuple[str, bool], tuple[list[str], np.ndarray, np.ndarray, _Ridge]]:
        return {}

    def _by_table(self, question: Question, without: Sequence[str]) -> dict[str, np.ndarray]:
        """Nearest neighbours and ridge regression on the tables."""
        key = question.context, question.hides_context
        if key not in self._fits:
            names = self.seen.names_seen(question.context, hidden=question.hides_context)
            rows, known = self.rows_of_table(names)
            names = [name for name, ok in zip(names, known, strict=True) if ok]
            changes = self.seen.of_perturbations(question.context, names, hidden=question.hides_context)
            self._fits[key] = names, rows[known], changes, _ridge_of(rows[known], changes) if names else None  # type: ignore[assignment]
        names, rows, changes, ridge = self._fits[key]
        left_out = set(without)
        allowed = np.array([name not in left_out for name in names], dtype=bool)
        if not allowed.any():
            return {}
        (own,), _ = self.rows_of_table([question.perturbation])
        lengths = np.linalg.norm(rows, axis=1) * max(float(np.linalg.norm(own)), 1e-12)
        cosine = rows @ own / np.maximum(lengths, 1e-12)
        nearest = nearest_mean(np.where(allowed, cosine, -np.inf)[None], changes)[0]
        known_here = question.perturbation in left_out and question.perturbation in names
        if known_here:
            return {"nearest": nearest, "ridge": ridge.fit.left_out_TG[names.index(question.perturbation)]}
        return {"nearest": nearest, "ridge": ridge.predict(own[None])[0]}


class _Ridge(NamedTuple):
    """A ridge regression on rows of tables, and whether they are scaled to unit length."""

    fit: RidgeFit
    of_unit_rows: bool

    def predict(self, rows: np.ndarray) -> np.ndarray:
        return self.fit.predict(unit_rows(rows) if self.of_unit_rows else rows)


def _ridge_of(rows: np.ndarray, changes: np.ndarray) -> _Ridge:
    """Fit to rows with and without their lengths, and keep what predicts left-out rows better."""
    found = [_Ridge(RidgeFit.of(rows, changes), False), _Ridge(RidgeFit.of(unit_rows(rows), changes), True)]
    return min(found, key=lambda ridge: np.square(ridge.fit.left_out_TG - changes).sum())


@dataclass(frozen=True)
class Stack:
    """How members are put together for one kind of question.

    Attributes
    ----------
    weights
        One for each of :data:`MEMBERS`; they sum to 1.
    unshrunk
        Share of the member ``'deviation'`` for genes in which it differs from the mean by more than so many standard
        deviations of its noise, in the steps of ``_STRENGTHS``; what is left has the weighted sum.
    reliance
        Factor of the difference from the mean in contexts where it is not 1.
    """

    weights: np.ndarray
    unshrunk: np.ndarray
    reliance: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def default(cls) -> Stack:
        """Kernels alone."""
        weights = np.zeros(len(MEMBERS))
        weights[0] = 1.0
        return cls(weights, np.zeros(len(_STRENGTHS) + 1))

    def apply(self, changes: Mapping[str, np.ndarray], noise: np.ndarray | None, context: str = "") -> np.ndarray:
        """Put members together; those that know nothing are replaced by the kernels."""
        total = np.zeros_like(changes["kernels"])
        for name, weight in zip(MEMBERS, self.weights, strict=True):
            if weight:
                total = total + weight * changes.get(name, changes["kernels"])
        if "deviation" in changes and noise is not None and self.unshrunk.any():
            total = total + self.unshrunk[strength(changes, noise)] * (changes["deviation"] - total)
        reliance = self.reliance.get(context, 1.0)
        return total if reliance == 1 else changes["mean"] + reliance * (total - changes["mean"])


def strength(changes: Mapping[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
    """Class of each gene by how far the unshrunk member is from the mean, in standard deviations of its noise."""
    apart = np.abs(changes["deviation"] - changes["mean"])
    return np.searchsorted(_STRENGTHS, apart / np.sqrt(np.maximum(noise, 1e-12)))


def fit_stack(
    predicted: Sequence[Mapping[str, np.ndarray]],
    noises: Sequence[np.ndarray | None],
    observed: Sequence[np.ndarray],
    weight: np.ndarray,
    contexts: np.ndarray | None = None,
) -> Stack:
    """Fit the weights of members to conditions that were predicted without themselves.

    Parameters
    ----------
    predicted
        Changes by members, for each condition.
    noises
        Sampling variance of the member ``'deviation'``.
    observed
        Observed changes, ``[G]`` each.
    weight
        Weight of each condition.
    contexts
        Context of each; None where nothing of it is known but controls.
    """
    n = len(predicted)
    if n < _FEWEST:
        return Stack.default()
    products = np.zeros((len(MEMBERS), len(MEMBERS)))
    available = np.zeros(len(MEMBERS), dtype=bool)
    for changes, truth, w in zip(predicted, observed, weight, strict=True):
        residual = np.stack([truth - changes.get(name, changes["kernels"]) for name in MEMBERS])
        products += w * (residual @ residual.T)
        available |= [name in changes for name in MEMBERS]
    scale = max(float(np.trace(products)), 1e-300) / len(MEMBERS)
    use = np.flatnonzero(available)
    root = np.linalg.cholesky(products[np.ix_(use, use)] / scale + 1e-9 * np.eye(len(use))).T
    # the sum of the weights is a row that counts far more than the others
    system, target = np.vstack([root, np.full(len(use), 1e3)]), np.append(np.zeros(len(use)), 1e3)
    weights = np.zeros(len(MEMBERS))
    weights[use] = nnls(system, target)[0]
    # few conditions choose among members by chance
    weights = weights / weights.sum() * n / (n + _PULL)
    weights[0] += _PULL / (n + _PULL)
    stack = Stack(weights, np.zeros(len(_STRENGTHS) + 1))
    stack = replace(stack, unshrunk=_fit_unshrunk(stack, predicted, noises, observed, weight))
    if contexts is None:
        return stack
    stacked = [stack.apply(changes, noise) for changes, noise in zip(predicted, noises, strict=True)]
    return replace(stack, reliance=_fit_reliance(stacked, [p["mean"] for p in predicted], observed, weight, contexts))


def _fit_reliance(
    stacked: Sequence[np.ndarray],
    means: Sequence[np.ndarray],
    observed: Sequence[np.ndarray],
    weight: np.ndarray,
    contexts: np.ndarray,
) -> dict[str, float]:
    """Factors of the difference from the mean of a context where, beyond chance, the mean alone is nearer.

    Perturbations may do there what they do nowhere else, or the opposite (an activation instead of a knock-down).
    """
    apart = [(s - m, y - m) for s, m, y in zip(stacked, means, observed, strict=True)]
    squared = weight * np.array([d @ d for d, _ in apart])
    shared = weight * np.array([d @ y for d, y in apart])
    pull, found = _PULL_OF_CONTEXT * squared.mean(), {}
    for context in np.unique(contexts).tolist():
        here = contexts == context
        lost = squared[here] - 2 * shared[here]  # squared error beyond that of the mean
        if lost.sum() > _ONE_SIDED * np.sqrt(here.sum()) * lost.std():
            found[context] = float(np.clip((shared[here].sum() + pull) / (squared[here].sum() + pull), -1, 1))
    return found


def _fit_unshrunk(
    stack: Stack,
    predicted: Sequence[Mapping[str, np.ndarray]],
    noises: Sequence[np.ndarray | None],
    observed: Sequence[np.ndarray],
    weight: np.ndarray,
) -> np.ndarray:
    """Least squares share of the unshrunk member in each class of strength, never less in a stronger one."""
    above, below = (np.zeros(len(_STRENGTHS) + 1) for _ in range(2))
    for changes, noise, truth, w in zip(predicted, noises, observed, weight, strict=True):
        if "deviation" in changes and noise is not None and noise.any():
            total = stack.apply(changes, None)
            apart, classes = changes["deviation"] - total, strength(changes, noise)
            above += w * np.bincount(classes, apart * (truth - total), len(above))
            below += w * np.bincount(classes, np.square(apart), len(below))
    share = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return np.clip(isotonic_regression(share, weights=np.maximum(below, 1e-12)).x, 0, 1)
