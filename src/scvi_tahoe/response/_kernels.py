"""Kernels over conditions: how alike two conditions are, by context, perturbation, embedding tables and dose.

A kernel of perturbations is a sum over the components of both labels, so that a combination nobody measured is the sum
of its components, and what it does beyond that is a kernel of its own (additive Gaussian processes, Duvenaud et al.
2011, arXiv:1112.4394). Tables have linear kernels on standardised columns, with and without the lengths of rows, and
radial kernels of several widths, of which the narrow ones are what nearest neighbours look at. A label that a table
lacks has no say there.

L labels, A components at their doses, P columns of a table.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import pandas as pd
    from torch import Tensor

    from scvi_tahoe.data import LabelParser

#: inverse widths of the radial kernels, in units of the median squared distance of a table
_WIDTHS = (1.0, 4.0, 16.0, 64.0)
#: decades of a dose over which responses are alike
_DECADES = 1.0
_AT_ONCE = 2**22  # values of one kernel that are held at once


@dataclass(frozen=True)
class Conditions:
    """Conditions, with each label and each component held once.

    Attributes
    ----------
    perturbations, contexts
        Labels, ``[n]``.
    label, context
        Position of each condition's label in ``labels`` and of its context in ``context_names``, int64 ``[n]``.
    labels, context_names
        Distinct ones, sorted.
    components
        Distinct components at their doses: names, and log10 of doses (NaN without one).
    counts_LA
        How often each label has each component, CSR.
    """

    perturbations: np.ndarray
    contexts: np.ndarray
    label: np.ndarray
    context: np.ndarray
    labels: tuple[str, ...]
    context_names: tuple[str, ...]
    components: tuple[str, ...]
    log_dose_A: np.ndarray
    counts_LA: sp.csr_matrix

    @classmethod
    def of(
        cls, perturbations: Sequence[str] | np.ndarray, contexts: Sequence[str] | np.ndarray, parser: LabelParser
    ) -> Conditions:
        """Read the labels of conditions."""
        labels, label = np.unique(np.asarray(perturbations, dtype=str), return_inverse=True)
        context_names, context = np.unique(np.asarray(contexts, dtype=str), return_inverse=True)
        parts = [parser.components(name) for name in labels.tolist()]
        distinct = sorted({part for of_label in parts for part in of_label}, key=lambda p: (p.name, p.dose or 0.0))
        position = {part: i for i, part in enumerate(distinct)}
        of_part = [(i, position[part]) for i, of_label in enumerate(parts) for part in of_label]
        where = np.array(of_part, dtype=np.int64).reshape(-1, 2).T
        # those of a label that has a component twice are summed
        counts_LA = sp.csr_matrix((np.ones(len(of_part)), tuple(where)), shape=(len(labels), len(distinct)))
        log_dose = np.array([np.nan if part.dose is None else np.log10(part.dose) for part in distinct])
        return cls(
            perturbations=np.asarray(perturbations, dtype=str), contexts=np.asarray(contexts, dtype=str),
            label=label, context=context, labels=tuple(labels.tolist()), context_names=tuple(context_names.tolist()),
            components=tuple(part.name for part in distinct), log_dose_A=log_dose, counts_LA=counts_LA,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.label)

    @property
    def has_combinations(self) -> bool:
        """Whether any label has several components."""
        return self.counts_LA.sum() > len(self.labels)

    def take(self, rows: np.ndarray, parser: LabelParser) -> Conditions:
        """Take some of the conditions."""
        return Conditions.of(self.perturbations[rows], self.contexts[rows], parser)


@dataclass(frozen=True)
class TableKernel:
    """Rows of an embedding table, standardised over the whole table and of unit length in the root mean square.

    Attributes
    ----------
    names
        Names of the rows.
    matrix
        float64 ``[names, P]``.
    center_P, spread_P
        Mean of each column, and its standard deviation times the usual length of a row; columns of no spread are left
        out by a spread of infinity.
    scale
        Median squared distance of the training components that the table covers, as rows of unit length.
    """

    names: tuple[str, ...]
    matrix: np.ndarray
    center_P: np.ndarray
    spread_P: np.ndarray
    scale: float

    @classmethod
    def of(cls, table: pd.DataFrame, components: Sequence[str]) -> TableKernel:
        """Standardise a table, index = name."""
        values = table.to_numpy(dtype=np.float64)
        center, spread = values.mean(axis=0), values.std(axis=0)
        constant = spread <= 1e-12 * max(float(np.abs(values).max(initial=0.0)), 1e-300)
        if np.isin(values, (0, 1)).all():  # bits count alike, however rare: a fingerprint's rarest ones say the least
            spread = np.full_like(spread, np.sqrt(np.mean(np.square(spread[~constant]))) if (~constant).any() else 1.0)
        spread = np.where(constant, np.inf, spread)
        length = np.sqrt(np.square((values - center) / spread).sum(axis=1).mean()) if len(values) else 1.0
        spread = spread * max(float(length), 1e-12)
        made = cls(tuple(map(str, table.index)), (values - center) / spread, center, spread, 1.0)
        known = unit_rows(made.matrix)[
            [made.rows[name] for name in dict.fromkeys(components) if name in made.rows][:2000]
        ]
        apart = (2 - 2 * known @ known.T)[np.triu_indices(len(known), 1)]
        return replace(made, scale=float(np.median(apart)) if len(apart) and np.median(apart) > 1e-9 else 1.0)

    def with_rows(self, table: pd.DataFrame) -> TableKernel:
        """Add the rows of names that are new."""
        fresh = [name for name in map(str, table.index) if name not in self.rows]
        if not fresh:
            return self
        values = table.set_axis(list(map(str, table.index))).loc[fresh].to_numpy(dtype=np.float64)
        matrix = np.concatenate([self.matrix, (values - self.center_P) / self.spread_P])
        return replace(self, names=(*self.names, *fresh), matrix=matrix)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of each name."""
        return {name: i for i, name in enumerate(self.names)}

    def of_components(self, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Rows of components, zeros for those without one, and which have one."""
        position = np.array([self.rows.get(name, -1) for name in names], dtype=np.int64)
        known = position >= 0
        return np.where(known[:, None], self.matrix[np.maximum(position, 0)], 0.0), known


@dataclass(frozen=True)
class ConditionKernels:
    """The kernels of a screen.

    Attributes
    ----------
    parser
        Reads labels.
    tables
        Embedding tables by name.
    control_profiles
        Mean control expression of contexts, ``[G]`` each, if there are three or more: what says how alike they are.
    sources
        Data set of contexts, if there are several and one of them has several contexts; else empty.
    has_contexts, has_combinations, has_doses, recurs
        Whether training has several contexts, combinations, doses, and labels in more than one context.
    """

    parser: LabelParser
    tables: Mapping[str, TableKernel]
    control_profiles: Mapping[str, np.ndarray]
    has_contexts: bool
    has_combinations: bool
    has_doses: bool
    recurs: bool
    sources: Mapping[str, str] = field(default_factory=dict)
    _features: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        conditions: Conditions,
        parser: LabelParser,
        tables: Mapping[str, TableKernel],
        control_profiles: Mapping[str, np.ndarray],
        sources: Mapping[str, str] | None = None,
    ) -> ConditionKernels:
        """Choose the kernels that training conditions can tell apart."""
        usable = {n: t for n, t in tables.items() if t.of_components(conditions.components)[1].sum() > 1}
        usable = {n: t for n, t in usable.items() if np.isfinite(t.spread_P).any()}
        combines = conditions.has_combinations
        doses = np.isfinite(conditions.log_dose_A)
        of_name: dict[str, set[float]] = {}
        for name, dose in zip(conditions.components, conditions.log_dose_A, strict=True):
            of_name.setdefault(name, set()).add(dose)
        likeness = len(conditions.context_names) > 2 and all(c in control_profiles for c in conditions.context_names)
        return cls(
            parser=parser,
            tables=usable,
            control_profiles=dict(control_profiles) if likeness else {},
            has_contexts=len(conditions.context_names) > 1,
            has_combinations=combines,
            has_doses=bool(doses.any()) and any(len(found) > 1 for found in of_name.values()),
            recurs=len(conditions) > len(conditions.labels) or combines,
            sources=_telling(sources or {}, conditions.context_names),
        )

    def matrices(  # noqa: C901
        self, rows: Conditions, columns: Conditions, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield name and values, float64 ``[rows, columns]``, of one kernel after the other, always in this order."""

        def tensor(values: np.ndarray) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(values), device=device)

        row_label, column_label = tensor(rows.label), tensor(columns.label)
        alone = not (rows.has_combinations or columns.has_combinations)
        if alone:  # each label is its component
            row_part, column_part = (tensor(side.counts_LA.indices[side.label]).long() for side in (rows, columns))
        else:
            row_counts, column_counts = tensor(rows.counts_LA.toarray()), tensor(columns.counts_LA.toarray())

        def of_conditions(of_components: Tensor) -> Tensor:
            if alone:
                return of_components[row_part][:, column_part]
            of_labels = row_counts @ of_components @ column_counts.T
            return of_labels[row_label][:, column_label]

        same_context = tensor((rows.contexts[:, None] == columns.contexts[None]).astype(np.float64))
        likeness = None
        if self.control_profiles:
            found = self._likeness(rows.context_names, columns.context_names)
            likeness = tensor(found[np.ix_(rows.context, columns.context)])

        same_source = tensor(self._same_source(rows, columns)) if self.sources else None

        def with_context(name: str, kernel: Tensor, by_likeness: bool = False) -> Iterator[tuple[str, Tensor]]:
            yield name, kernel
            if likeness is not None and by_likeness:
                yield f"{name} x likeness of contexts", kernel * likeness
            if same_source is not None and by_likeness:
                yield f"{name} x data set", kernel * same_source
            if self.has_contexts:
                yield f"{name} x context", kernel * same_context

        yield from with_context("shared", torch.ones_like(same_context), by_likeness=True)
        same_name = tensor(
            (np.array(rows.components)[:, None] == np.array(columns.components)[None]).astype(np.float64)
        )
        with np.errstate(invalid="ignore"):
            apart = (rows.log_dose_A[:, None] - columns.log_dose_A[None]) / _DECADES
        of_dose = tensor(np.where(np.isfinite(apart), np.exp(-0.5 * np.square(np.nan_to_num(apart))), 1.0))
        if self.has_combinations:
            n_rows, n_columns = (
                tensor(np.asarray(side.counts_LA.sum(axis=1)).ravel()[side.label]) for side in (rows, columns)
            )
            yield from with_context("number of components", n_rows[:, None] * n_columns[None])
        if self.has_doses:
            centred = [np.nan_to_num(side.log_dose_A - 0.0) for side in (rows, columns)]
            yield from with_context("perturbation, any dose", of_conditions(same_name))
            yield "dose", of_conditions(tensor(np.exp(-0.5 * np.square(centred[0][:, None] - centred[1][None]))))
            yield from with_context("perturbation at its dose", of_conditions(same_name * of_dose))
        elif self.has_combinations:
            yield from with_context("perturbation", of_conditions(same_name))
        elif self.recurs:
            yield "perturbation", of_conditions(same_name)
            if likeness is not None:
                yield "perturbation x likeness of contexts", of_conditions(same_name) * likeness
            if same_source is not None:
                yield "perturbation x data set", of_conditions(same_name) * same_source
        if self.has_combinations or self.has_doses:
            same_label = np.array(rows.labels)[:, None] == np.array(columns.labels)[None]
            yield "label", tensor(same_label.astype(np.float64))[row_label][:, column_label]
        for name, kernel in self._of_tables(rows, columns, tensor):
            yield from with_context(name, of_conditions(kernel * of_dose if self.has_doses else kernel))

    def sums(
        self, rows: Conditions, columns: Conditions, weights: Sequence[np.ndarray], device: torch.device | str = "cpu"
    ) -> list[Tensor]:
        """Return the sum of all kernels with each of several weights ``[K]``: float64 ``[rows, columns]`` each."""
        n, at_once = len(rows), max(1, _AT_ONCE // max(len(columns), 1))
        result = [torch.empty((n, len(columns)), dtype=torch.float64, device=device) for _ in weights]
        for start in range(0, n, at_once):
            some = rows if n <= at_once else rows.take(np.arange(start, min(start + at_once, n)), self.parser)
            for k, (_, kernel) in enumerate(self.matrices(some, columns, device)):
                for total, w in zip(result, weights, strict=True):
                    block = total[start : start + at_once]
                    if k:
                        block.add_(kernel, alpha=float(w[k]))
                    else:
                        torch.mul(kernel, float(w[k]), out=block)
        return result

    def _of_tables(
        self, rows: Conditions, columns: Conditions, tensor: Callable[[np.ndarray], Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the kernels of tables over components; those without a row have no say."""
        for name, table in self._tables().items():
            (row_values, row_known), (column_values, column_known) = (
                table_rows(table, side.components) for side in (rows, columns)
            )
            both = tensor((row_known[:, None] & column_known[None]).astype(np.float64))
            yield f"{name}, linear", (tensor(row_values) @ tensor(column_values).T) * both
            cosine = tensor(unit_rows(row_values)) @ tensor(unit_rows(column_values)).T
            yield f"{name}, cosine", cosine * both
            scale = table_scale(table)
            for width in _WIDTHS:
                radial = torch.exp((cosine - 1).clamp_max(0) * (2 * width / scale)) * both
                yield f"{name}, radius {width**-0.5:g}", radial

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the kernels, in the order of :meth:`matrices`."""
        nothing = Conditions.of([], [], self.parser)
        return tuple(name for name, _ in self.matrices(nothing, nothing))

    def of_table(self, table: str) -> np.ndarray:
        """Return which kernels read a table, ``[K]``: its own, and those of all tables together."""
        of_all = "all tables, " if len(self.tables) > 1 else f"{table}, "
        return np.array([name.startswith((f"{table}, ", of_all)) for name in self.names])

    def diagonals(self, rows: Conditions) -> np.ndarray:
        """Each condition's likeness with itself, float64 ``[kernels, rows]``."""
        labels, first = np.unique(rows.perturbations, return_index=True)
        if not len(labels):
            return np.zeros((len(self.names), 0))
        found = []
        for start in range(0, len(labels), 256):
            some = rows.take(first[start : start + 256], self.parser)
            found.append(np.stack([k.diagonal().numpy() for _, k in self.matrices(some, some)]))
        of_label = np.concatenate(found, axis=1)
        # a context is as alike to itself as any other, so the diagonal is the label's
        return of_label[:, np.searchsorted(labels, rows.perturbations)]

    def _tables(self) -> Mapping[str, Any]:
        """Return the tables, and all of them side by side where there are several."""
        return self.tables if len(self.tables) < 2 else {**self.tables, "all tables": tuple(self.tables.values())}

    def _same_source(self, rows: Conditions, columns: Conditions) -> np.ndarray:
        """Whether contexts are of one data set, float64 ``[rows, columns]``; a new one is in a data set of its own."""
        of_rows, of_columns = (
            np.array([self.sources.get(c, c) for c in side.context_names], dtype=str)[side.context]
            for side in (rows, columns)
        )
        return (of_rows[:, None] == of_columns[None]).astype(np.float64)

    def _likeness(self, rows: Sequence[str], columns: Sequence[str]) -> np.ndarray:
        """Radial kernel of mean control expression, in units of the median squared distance of training contexts."""
        if "scale" not in self._features:
            profiles = np.stack(list(self.control_profiles.values()))
            apart = np.square(profiles[:, None] - profiles[None]).mean(-1)[np.triu_indices(len(profiles), 1)]
            self._features["scale"] = max(float(np.median(apart)), 1e-12)
        sides = [[self.control_profiles.get(name) for name in side] for side in (rows, columns)]
        result = np.zeros((len(rows), len(columns)))
        for i, a in enumerate(sides[0]):
            for j, b in enumerate(sides[1]):
                if a is not None and b is not None:
                    result[i, j] = np.exp(-np.square(a - b).mean() / self._features["scale"])
        return result


def _telling(sources: Mapping[str, str], contexts: Sequence[str]) -> dict[str, str]:
    """Return data sets of contexts if they say more than the contexts themselves, else nothing."""
    of_context = {context: sources.get(context, context) for context in contexts}
    return of_context if 1 < len(set(of_context.values())) < len(contexts) else {}


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Scale rows to unit length; rows of zeros stay."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def table_rows(table: Any, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of components in a table, or in several side by side, and which of them have one in each."""
    if isinstance(table, TableKernel):
        return table.of_components(names)
    found = [one.of_components(names) for one in table]
    known = np.logical_and.reduce([k for _, k in found])
    return np.concatenate([values for values, _ in found], axis=1) / np.sqrt(len(found)), known


def table_scale(table: Any) -> float:
    """Median squared distance of a table, or of several side by side."""
    return table.scale if isinstance(table, TableKernel) else float(np.mean([one.scale for one in table]))
