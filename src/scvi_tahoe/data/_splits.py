"""Which cells train, validate and test: named splits, and an audit that names leaks and empty parts.

A split is a small frozen dataclass that can be written to a file; :meth:`Split.assign` applies it to a screen.
Control cells belong to no part: they are inputs everywhere and targets nowhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
import pandas as pd

from scvi_tahoe._arguments import checked_fields
from scvi_tahoe._names import Registry, nearest_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scvi_tahoe.data._screen import ConditionIndex

Part = Literal["train", "validation", "test"]
_FEWEST_HELD = 3  # conditions by which a network is judged
PARTS: tuple[Part, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class AssignedSplit:
    """Rows of perturbed cells in each part of a split, and what they were taken from."""

    split: Split
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    index: ConditionIndex = field(repr=False)

    def rows(self, part: Part) -> np.ndarray:
        """Rows of a part."""
        return getattr(self, part)

    def audit(self) -> SplitAudit:
        """Report what the parts share, and what they lack."""
        conditions = {p: set(self.index.condition_of_cell[self.rows(p)].tolist()) for p in PARTS}
        perturbations = {p: {self.index.conditions[c].perturbation for c in conditions[p]} for p in PARTS}
        table = pd.DataFrame(
            {
                "cells": [len(self.rows(p)) for p in PARTS],
                "conditions": [len(conditions[p]) for p in PARTS],
                "perturbations": [len(perturbations[p]) for p in PARTS],
                "contexts": [len({self.index.conditions[c].context for c in conditions[p]}) for p in PARTS],
            },
            index=pd.Index(PARTS, name="part"),
        )
        leaks = []
        for a, b in combinations(PARTS, 2):
            if n := len(np.intersect1d(self.rows(a), self.rows(b))):
                leaks.append(f"{n} cells are in {a} and in {b}")
            if n := len(conditions[a] & conditions[b]):
                leaks.append(f"{n} conditions have cells in {a} and in {b}")
        unseen = perturbations["validation"] | perturbations["test"]
        return SplitAudit(
            table=table,
            leaks=tuple(leaks),
            empty=tuple(p for p in PARTS if not len(self.rows(p))),
            unseen_perturbations=tuple(sorted(unseen - perturbations["train"])),
        )


@dataclass(frozen=True)
class SplitAudit:
    """What :meth:`AssignedSplit.audit` found."""

    table: pd.DataFrame  # cells, conditions, perturbations and contexts of each part
    leaks: tuple[str, ...]  # one sentence for each thing that two parts share
    empty: tuple[str, ...]  # parts without cells
    unseen_perturbations: tuple[str, ...]  # of validation or test, that no training cell received

    def __str__(self) -> str:
        lines = [self.table.to_string(), *(f"shared: {leak}" for leak in self.leaks)]
        lines += [f"empty: {part}" for part in self.empty]
        if self.unseen_perturbations:
            shown = ", ".join(self.unseen_perturbations[:8]) + (" ..." if len(self.unseen_perturbations) > 8 else "")
            lines.append(f"never trained on: {shown}")
        return "\n".join(lines)


S = TypeVar("S", bound="Split")


@dataclass(frozen=True, kw_only=True)
class Split(ABC):
    """A rule that gives every perturbed cell to a part."""

    kind: ClassVar[str]

    @abstractmethod
    def _parts(self, index: ConditionIndex, rng: np.random.Generator) -> dict[Part, np.ndarray]:
        """Rows of each part."""

    def assign(self, index: ConditionIndex, *, seed: int = 0) -> AssignedSplit:
        """Apply the rule to a screen; a ValueError if it names unknown labels, or leaves no cell to train on."""
        parts = self._parts(index, np.random.default_rng(seed))
        if not len(parts["train"]):
            raise ValueError(f"{self} leaves no cell to train on; hold out less.")
        return AssignedSplit(self, parts["train"], parts["validation"], parts["test"], index)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, including the kind."""
        return {"kind": self.kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}}


SPLITS: Registry[type[Split]] = Registry("split")


def register_split(split: type[S]) -> type[S]:
    """Make a split known by its ``kind``, by which it is read from files."""
    SPLITS.register(split.kind, split)
    return split


def _verify_known(names: Sequence[str], known: Sequence[str], what: str) -> None:
    if unknown := [n for n in names if n not in known]:
        raise ValueError(
            f"the split names {what}s that the screen does not have: {unknown[:5]}{nearest_names(unknown[0], known)}; "
            f"it has {len(known)}: {list(known[:10])}."
        )


@dataclass(frozen=True, kw_only=True)
class _Fractions(Split):
    """Fractions from 0 that sum to less than 1."""

    validation: float = 0.1
    test: float = 0.0

    def __post_init__(self) -> None:
        validation, test = self.validation, self.test
        if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
            raise ValueError(
                f"validation={validation} and test={test} must be fractions from 0 that sum to less than 1."
            )


@dataclass(frozen=True, kw_only=True)
class _Names(Split):
    """Names to hold out, kept as tuples; no name may be held out for two parts."""

    named: ClassVar[str] = "perturbation"
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part in ("validation", "test"):
            value = getattr(self, part)
            if isinstance(value, str):
                raise TypeError(f"{part} of {type(self).__name__} is a list of names; got the text {value!r}.")
            object.__setattr__(self, part, tuple(str(v) for v in value))
        if both := sorted(set(self.validation) & set(self.test)):
            raise ValueError(f"these {self.named}s are held out for validation and for test: {both[:5]}; choose one.")

    def _parts(self, index: ConditionIndex, rng: np.random.Generator) -> dict[Part, np.ndarray]:
        _verify_known((*self.validation, *self.test), getattr(index, f"{self.named}s"), self.named)
        return self._by_name(index, [getattr(condition, self.named) for condition in index.conditions])

    def _by_name(self, index: ConditionIndex, names: Sequence[str | None]) -> dict[Part, np.ndarray]:
        """Rows by the part whose names list the name of their condition."""
        return _by_condition(index, np.array([(n in self.validation) + 2 * (n in self.test) for n in names]))


def _by_condition(index: ConditionIndex, part_of_condition: np.ndarray) -> dict[Part, np.ndarray]:
    """Rows by the part (0 train, 1 validation, 2 test) of their condition."""
    part_of_cell = np.where(index.is_control, -1, part_of_condition[index.condition_of_cell])
    return {part: np.flatnonzero(part_of_cell == i) for i, part in enumerate(PARTS)}


@register_split
@checked_fields
@dataclass(frozen=True, kw_only=True)
class FractionSplit(_Fractions):
    """Hold out a fraction of the cells of every condition.

    It tells how well seen conditions are reproduced, not how well unseen ones are predicted. Conditions with fewer than
    two cells keep them for training.
    """

    kind: ClassVar[str] = "fraction"

    def _parts(self, index: ConditionIndex, rng: np.random.Generator) -> dict[Part, np.ndarray]:
        rows: dict[Part, list[np.ndarray]] = {p: [] for p in PARTS}
        n_cells = np.bincount(index.condition_of_cell[~index.is_control], minlength=len(index.conditions))
        # stable, so that the cells of each condition come in the order of the data; controls are first
        order = np.argsort(index.condition_of_cell, kind="stable")[len(index.is_control) - n_cells.sum() :]
        for cells_of_one in np.split(order, np.cumsum(n_cells)[:-1]):
            cells = rng.permutation(cells_of_one)
            n_validation, n_test = (round(f * len(cells)) for f in (self.validation, self.test))
            if n_validation + n_test >= len(cells):
                n_validation = n_test = 0
            cuts = np.split(cells, [n_validation, n_validation + n_test])
            for part, chosen in zip(("validation", "test", "train"), cuts, strict=True):
                rows[part].append(chosen)  # type: ignore[index]
        return {p: np.sort(np.concatenate(r)) for p, r in rows.items()}


@register_split
@checked_fields
@dataclass(frozen=True, kw_only=True)
class HeldOutConditions(_Fractions):
    """Hold out a fraction of the conditions, whose perturbations are seen in other contexts.

    It tells how well a seen perturbation is predicted in a context where it was not measured. Every context and every
    perturbation keeps a condition to train on.
    """

    kind: ClassVar[str] = "held_out_conditions"

    def _parts(self, index: ConditionIndex, rng: np.random.Generator) -> dict[Part, np.ndarray]:
        contexts = Counter(c.context for c in index.conditions)
        perturbations = Counter(c.perturbation for c in index.conditions)
        n_validation, n_test = (round(f * len(index.conditions)) for f in (self.validation, self.test))
        held_out: list[int] = []
        for i in rng.permutation(len(index.conditions)):
            context, perturbation = index.conditions[i]
            if len(held_out) < n_validation + n_test and min(contexts[context], perturbations[perturbation]) > 1:
                held_out.append(i)
                contexts[context] -= 1
                perturbations[perturbation] -= 1
        if not held_out and n_validation + n_test:
            where = f"in one context, {index.conditions[0].context!r}" if len(contexts) == 1 else "in several contexts"
            raise ValueError(
                f"{self} holds out conditions whose perturbations train in other contexts; of this screen's, {where}, "
                "none can be. Name perturbations to hold out everywhere, HeldOutPerturbations(validation="
                f"{list(perturbations)[:1]}), or hold out cells of each, FractionSplit(validation=0.1)."
            )
        if len(held_out) < n_validation + n_test:
            raise ValueError(
                f"{self} would hold out {n_validation + n_test} conditions, and only {len(held_out)} have their "
                "perturbation in another context and another perturbation in theirs; hold out less."
            )
        part = np.zeros(len(index.conditions), dtype=np.int64)
        part[held_out[:n_validation]], part[held_out[n_validation:]] = 1, 2
        return _by_condition(index, part)


@register_split
@checked_fields
@dataclass(frozen=True, kw_only=True)
class HeldOutPerturbations(_Names):
    """Hold out perturbations in every context."""

    kind: ClassVar[str] = "held_out_perturbations"


@register_split
@checked_fields
@dataclass(frozen=True, kw_only=True)
class HeldOutContexts(_Names):
    """Hold out every perturbed cell of some contexts; their controls remain, as prediction needs them."""

    kind: ClassVar[str] = "held_out_contexts"
    named: ClassVar[str] = "context"


@register_split
@checked_fields
@dataclass(frozen=True, kw_only=True)
class FewShotContext(_Names):
    """Hold out perturbations in one context; the other perturbations there, and every other context, train."""

    kind: ClassVar[str] = "few_shot_context"
    context: str

    def _parts(self, index: ConditionIndex, rng: np.random.Generator) -> dict[Part, np.ndarray]:
        _verify_known((self.context,), index.contexts, "context")
        here = [c.perturbation for c in index.conditions if c.context == self.context]
        _verify_known((*self.validation, *self.test), here, f"perturbation in {self.context!r} with cell")
        names = [c.perturbation if c.context == self.context else None for c in index.conditions]
        return self._by_name(index, names)


@register_split
@checked_fields
@dataclass(frozen=True, kw_only=True)
class ListedConditions(Split):
    """Hold out conditions by list: for each context the names of perturbations, or ``"all"`` of them.

    The controls of a context remain, as prediction needs them. The zero-shot and few-shot tables of arc-state mean the
    same.
    """

    kind: ClassVar[str] = "listed_conditions"
    validation: Mapping[str, Sequence[str] | Literal["all"]] = field(default_factory=dict)
    test: Mapping[str, Sequence[str] | Literal["all"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in ("validation", "test"):
            given = dict(getattr(self, part) or {})
            if wrong := [name for name, value in given.items() if isinstance(value, str) and value != "all"]:
                raise TypeError(f"{part} of {wrong[0]!r} is a list of perturbations, or the text 'all'.")
            listed = {str(c): v if isinstance(v, str) else tuple(map(str, v)) for c, v in given.items()}
            object.__setattr__(self, part, listed)
        for context in set(self.validation) & set(self.test):
            names = [self.validation[context], self.test[context]]
            if "all" in names or set(names[0]) & set(names[1]):
                raise ValueError(f"conditions of {context!r} are held out for validation and for test; choose one.")

    def _parts(self, index: ConditionIndex, rng: np.random.Generator) -> dict[Part, np.ndarray]:
        _verify_known([*self.validation, *self.test], index.contexts, "context")
        measured: dict[str, set[str]] = {}
        for c in index.conditions:
            measured.setdefault(c.context, set()).add(c.perturbation)
        for context, names in [*self.validation.items(), *self.test.items()]:
            if not isinstance(names, str):
                _verify_known(names, sorted(measured.get(context, ())), f"condition of {context!r}, a perturbation")

        def holds(part: Mapping[str, Any], condition: Any) -> bool:
            names = part.get(condition.context, ())
            return names == "all" or condition.perturbation in names

        return _by_condition(
            index, np.array([holds(self.validation, c) + 2 * holds(self.test, c) for c in index.conditions])
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, including the kind."""
        parts = {"validation": self.validation, "test": self.test}
        listed = {k: {c: v if isinstance(v, str) else list(v) for c, v in part.items()} for k, part in parts.items()}
        return {"kind": self.kind, **listed}


def default_split(index: ConditionIndex, *, with_prior: bool, predictable: Sequence[str] = (), seed: int = 0) -> Split:
    """Validate with a tenth of the conditions where a prior can predict them, otherwise with a tenth of the cells.

    A prior leaves to the network what is different about a condition; only conditions that it was not trained on tell
    whether it learned that or the noise. ``predictable`` are perturbations that others say something about: with these,
    at least three conditions are held out, and where perturbations do not recur, at least three of them, drawn by
    ``seed``.
    """
    n, n_held = len(index.conditions), max(_FEWEST_HELD, round(0.1 * len(predictable)))
    # a spanning forest of perturbations and contexts is what must stay; twice the tenth is on the safe side of that
    n_free = n - len(index.perturbations) - len(index.contexts)
    if with_prior and n_free >= max(10, 0.2 * n):
        return HeldOutConditions(validation=0.1)
    if len(predictable) and n_free >= _FEWEST_HELD:
        return HeldOutConditions(validation=max(0.1, _FEWEST_HELD / n))
    if len(predictable) >= 2 * n_held:
        held_out = np.random.default_rng(seed).choice(sorted(predictable), n_held, replace=False)
        return HeldOutPerturbations(validation=tuple(sorted(held_out.tolist())))
    return FractionSplit(validation=0.1)


def split_from_dict(values: dict[str, Any]) -> Split:
    """Make the split that :meth:`Split.to_dict` described; ValueError if the kind or an argument is unknown."""
    rest = dict(values)
    kind = rest.pop("kind", None)
    split = SPLITS.find(kind)
    try:
        return split(**rest)
    except TypeError as error:
        raise ValueError(f"split {kind!r}: {error}") from None
