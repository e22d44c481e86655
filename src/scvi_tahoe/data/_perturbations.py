"""Perturbation labels, and the table of their embeddings: one row per label, never one per cell.

A label combines perturbations, each at a dose (:class:`LabelParser`). Rows are the user's, one-hot, several tables side
by side (:class:`TableFusion`), or made from the rows of a label's components (:class:`Composition`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd

from scvi_tahoe._arguments import checked
from scvi_tahoe._matrices import verify_magnitude
from scvi_tahoe._names import nearest_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Between a perturbation and its dose in a label: ``"Trametinib@10"``.
DOSE_MARK = "@"


class Component(NamedTuple):
    """One perturbation of a label, and its dose if it has one."""

    name: str
    dose: float | None = None

    def __str__(self) -> str:
        return self.name if self.dose is None else with_dose(self.name, self.dose)


@checked()
def dose_label(perturbation: str, dose: float | str) -> str:
    """Return the label of a perturbation at a dose, as :meth:`~scvi_tahoe.TahoeST.predict` takes it.

    Parameters
    ----------
    perturbation
        Its label.
    dose
        Number, or its text, in the unit of the training data; a ValueError if it is not a positive finite number.

    Examples
    --------
    >>> dose_label("Trametinib", 0.5)
    'Trametinib@0.5'
    """
    return with_dose(perturbation, dose)


def with_dose(label: str, dose: object) -> str:
    """Return a label with its dose, a number or its text."""
    return f"{label}{DOSE_MARK}{_verified_dose(dose, label):.10g}"


def _verified_dose(dose: object, label: str) -> float:
    try:
        value = float(dose)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"the dose {dose!r} of {label!r} is not a positive number; a dose is above 0 and finite.")
    return value


@dataclass(frozen=True, kw_only=True)
class LabelParser:
    """Reads the labels of a screen."""

    control: str  #: the label of control cells; in a combination it is left out
    #: text between the perturbations of a combination, ``"+"`` in ``"KLF1+MAP2K6"``; None without combinations
    combination_separator: str | None = None
    has_dose: bool = False  #: whether every perturbation of a label carries its dose, ``"Trametinib@10"``

    @property
    def composes(self) -> bool:
        """Whether labels are more than names."""
        return self.combination_separator is not None or self.has_dose

    def components(self, label: str) -> tuple[Component, ...]:
        """Perturbations of a label, sorted; the control's own label has itself as its only component.

        An empty component, or a dose that is missing or not positive, is a ValueError.
        """
        texts = self.split(label)
        if not all(text.strip() for text in texts):
            where = f"between {self.combination_separator!r}"
            raise ValueError(f"perturbation {label!r} has an empty part {where}; name every part of a combination.")
        components = [self._component(text, label) for text in texts]
        named = sorted(component for component in components if component.name != self.control)
        return tuple(named) or (Component(self.control),)

    def is_control(self, label: str) -> bool:
        """Whether a label means the control: its own, ``"control+control"``, or at a dose."""
        return self.components(label) == (Component(self.control),)

    def repeated(self, label: str) -> str | None:
        """Find a perturbation that a label names more than once, at any dose; None if there is none."""
        names = [component.name for component in self.components(label)]
        return next((name for name, after in pairwise(names) if name == after), None)

    def split(self, label: str) -> list[str]:
        """Components of a label as they are written, control included."""
        return [label] if self.combination_separator is None else label.split(self.combination_separator)

    def join(self, components: Iterable[Component | str]) -> str:
        """Write the label of these components."""
        return (self.combination_separator or "").join(map(str, components))

    def spelling(self, label: str) -> str:
        """One spelling of all labels that mean the same: ``"B+A"`` and ``"A+control+B"`` become ``"A+B"``."""
        return self.join(self.components(label))

    def without_doses(self, label: str) -> str:
        """Name the perturbations of a label without their doses, in one spelling: ``"B@2+A@1"`` becomes ``"A+B"``."""
        return self.join(tuple(Component(component.name) for component in self.components(label)))

    def _component(self, text: str, label: str) -> Component:
        if not self.has_dose or text == self.control:
            return Component(text)
        name, mark, dose = text.rpartition(DOSE_MARK)
        if mark and name == self.control:
            return Component(name)  # a dose of the control has no meaning
        if not mark or not name:
            example = f"{text}{DOSE_MARK}10"
            raise ValueError(
                f"perturbation {label!r} needs a dose for {text!r}, e.g. {example!r}: the model was trained with doses."
            )
        return Component(name, _verified_dose(dose, name))


Combination = Literal["sum", "learned"]
COMBINATIONS: tuple[Combination, ...] = get_args(Combination)
#: Names of the columns beside those of the components' table.
NUMBER_COLUMNS = ("log10 dose", "further parts")


def _names_and_rows(table: object, where: str) -> tuple[list[str], np.ndarray]:
    names: Any
    if isinstance(table, pd.DataFrame):
        names, rows = table.index, table.to_numpy()
    elif isinstance(table, Mapping) and set(table) != {"names", "matrix"}:
        names, vectors = list(table), [np.asarray(v).ravel() for v in table.values()]
        if len(widths := {len(v) for v in vectors}) > 1:
            raise ValueError(f"rows have different widths: {sorted(widths)}; one width is needed.")
        rows = np.stack(vectors) if vectors else np.zeros((0, 0))
    elif isinstance(table, Mapping):  # how (names, matrix) survives writing to h5ad
        names, rows = np.asarray(table["names"]).ravel(), table["matrix"]
    elif isinstance(table, tuple | list) and len(table) == 2:
        names, rows = table
    else:
        raise TypeError(
            f"{where} is a {type(table).__name__}; a perturbation-embedding table is a mapping of label to vector, a "
            "DataFrame with labels as index, or a pair (names, matrix)."
        )
    rows = np.asarray(rows)
    if rows.dtype.kind == "c":
        raise ValueError("its numbers have imaginary parts; real numbers are needed.")
    with np.errstate(over="ignore"):  # such numbers are refused by their size
        return [str(name) for name in names], rows.astype(np.float32, copy=False)


def _verify_width(table: EmbeddingTable, width: int) -> None:
    if table.width != width:
        raise ValueError(f"a perturbation-embedding table is {table.width} wide, the model was trained with {width}.")


@dataclass(frozen=True)
class EmbeddingTable:
    """Names and one embedding row for each; ValueError if a name occurs twice, or names and rows disagree."""

    names: tuple[str, ...]  #: perturbation labels, unique
    matrix: np.ndarray  #: float32 ``[len(names), P]``
    #: whether the rows are the identity made from the labels of the screen, rather than a table of the user's
    one_hot: bool = False
    #: how the rows were made from those of the labels' components; None where every label has a row of its own
    composition: Composition | None = None
    fusion: TableFusion | None = None  #: how the rows were made from several tables; None if they are one table's
    #: labels that the columns stand for, where rows are one-hot or add up one-hot rows; None for features
    columns: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise ValueError("A perturbation name occurs twice in the table; names must be unique.")
        if self.matrix.ndim != 2 or len(self.matrix) != len(self.names):
            raise ValueError(f"{len(self.names)} perturbation names and a {self.matrix.shape} matrix disagree.")
        if self.one_hot and self.columns is None:
            object.__setattr__(self, "columns", self.names)

    @classmethod
    def from_labels(cls, labels: Iterable[str]) -> EmbeddingTable:
        """One-hot rows in the sorted order of the labels, control included."""
        return cls.one_hot_of(sorted(set(labels)))

    @classmethod
    def one_hot_of(cls, names: Iterable[str]) -> EmbeddingTable:
        """One-hot rows in the given order."""
        labels = tuple(names)
        return cls(labels, np.eye(len(labels), dtype=np.float32), one_hot=True)

    @classmethod
    def composed(cls, composition: Composition, labels: Iterable[str]) -> EmbeddingTable:
        """Rows of labels made from those of their components."""
        names = tuple(labels)
        return cls(names, composition.rows_of(names), composition=composition)

    @classmethod
    def from_user(cls, table: object, where: str) -> EmbeddingTable:
        """Read what users keep in ``uns``: a mapping of label to vector, a DataFrame, or names and a matrix.

        ``where`` names the table in messages, e.g. ``"adata.uns['esm2']"``.
        """
        try:
            names, matrix = _names_and_rows(table, where)
        except ValueError as error:
            raise ValueError(f"{where} is not a perturbation-embedding table: {error}") from None
        if matrix.ndim != 2 or matrix.shape[0] != len(names) or matrix.shape[1] == 0:
            what = f"{len(names)} names and a matrix of shape {matrix.shape}"
            raise ValueError(f"{where} has {what}; one row a name is needed.")
        if len(set(names)) < len(names):
            twice = sorted({n for n in names if names.count(n) > 1})[:5]
            raise ValueError(f"{where} names these labels more than once: {twice}; keep one row each.")
        bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
        if bad.size:
            raise ValueError(f"{where} has NaN or infinite values in the rows of {[names[i] for i in bad[:5]]}.")
        verify_magnitude(matrix, where)
        return cls(tuple(names), matrix)

    @property
    def width(self) -> int:
        """P, the width of a row."""
        return int(self.matrix.shape[1])

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row of each name."""
        return {name: i for i, name in enumerate(self.names)}

    @property
    def encoder_width(self) -> int:
        """Inputs of the network's perturbation encoder: P, or less where it encodes each component of a row."""
        return self.width if self.composition is None else self.composition.encoder_width

    @property
    def n_components(self) -> int:
        """Components that the network encodes one by one; 1 where it encodes rows."""
        return 1 if self.composition is None else self.composition.n_components

    @property
    def components(self) -> EmbeddingTable:
        """The table that rows are made from; itself where every label has a row of its own."""
        return self if self.composition is None else self.composition.components

    def known_name(self, label: str) -> str:
        """Return the table's spelling of a label, ``"A+B"`` for ``"B+A"``; the usual one where the label has no row."""
        if self.composition is None or label in self.row_of:
            return label
        spelling = self.composition.parser.spelling(label)
        same = (name for name in self.names if self.composition.parser.spelling(name) == spelling)
        return next(same, spelling)

    def with_composed(self, labels: Iterable[str]) -> EmbeddingTable:
        """Add rows of combinations and doses that the table lacks, as far as their components have rows."""
        composition = self.composition
        if composition is None:
            return self
        names = dict.fromkeys(self.known_name(label) for label in labels)
        fresh = [n for n in names if n not in self.row_of and not composition.unknown_components(n)]
        if not fresh:
            return self
        rows = np.concatenate([self.matrix, composition.rows_of(fresh)])
        return replace(self, names=(*self.names, *fresh), matrix=rows)

    def row(self, name: str) -> int:
        """Row of a label, in any spelling; a KeyError lists the nearest labels."""
        known = self.known_name(name)
        if known not in self.row_of:
            rows = f"{len(self.names)} labels" + (" (one-hot, those of its training data)" if self.one_hot else "")
            near = nearest_names(name, self.names)
            raise KeyError(f"perturbation {name!r} is unknown to the model{near}: it has rows for {rows}.")
        return self.row_of[known]

    def extended(self, new: EmbeddingTable) -> EmbeddingTable:
        """Add rows of labels that the table lacks; those of combinations and doses are made from them.

        A new table of another width, or with another row for a known label, is a ValueError.
        """
        if (composition := self.composition) is not None:
            return replace(self, composition=replace(composition, components=composition.components.extended(new)))
        _verify_width(new, self.width)
        known = self.row_of
        shared = [(known[n], i) for i, n in enumerate(new.names) if n in known]
        changed = [new.names[i] for k, i in shared if not np.array_equal(self.matrix[k], new.matrix[i])]
        if changed:
            raise ValueError(
                f"the new perturbation-embedding table has other rows for labels that the model knows: {changed[:5]}; "
                "give the table that it was trained with, plus new rows."
            )
        fresh = [i for i, n in enumerate(new.names) if n not in known]
        names = (*self.names, *(new.names[i] for i in fresh))
        return replace(self, names=names, matrix=np.concatenate([self.matrix, new.matrix[fresh]]))

    def reindexed(self, components: EmbeddingTable) -> EmbeddingTable:
        """Compose the same labels of another table of components; that table itself where labels are not composed."""
        if self.composition is None:
            return components
        return EmbeddingTable.composed(replace(self.composition, components=components), self.names)


@dataclass(frozen=True, kw_only=True)
class Composition:
    """How rows of labels are made from rows of their components.

    A component is described by its row of the table and, in a screen with doses, by log10 of its dose (0 without one).
    With ``combination='sum'`` these are summed, and a last column counts the components beyond the first, so that a
    single perturbation keeps its own row. With ``'learned'`` they are concatenated, each with a mark of presence,
    and the network encodes each and sums the results (Zaheer et al. 2017, *Deep Sets*, arXiv:1703.06114). Neither
    depends on the order of the components.
    """

    parser: LabelParser  #: reads the components of labels
    components: EmbeddingTable  #: rows of the components
    combination: Combination = "sum"  #: ``'sum'`` or ``'learned'``
    n_components: int = 1  #: most components of a label with ``'learned'``; 1 with ``'sum'``, which has no limit

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of the encoder's inputs where the components are one-hot; None for features."""
        return (*self.components.names, *self._number_columns) if self.components.one_hot else None

    @property
    def encoder_width(self) -> int:
        """Numbers that describe a component (``'learned'``) or a label (``'sum'``) to the network's encoder."""
        return self.components.width + len(self._number_columns)

    @property
    def _number_columns(self) -> tuple[str, ...]:
        counts = self.parser.combination_separator is not None and self.combination == "sum"
        return tuple(np.array(NUMBER_COLUMNS)[[self.parser.has_dose, counts]].tolist())

    def without_numbers(self, rows: np.ndarray) -> np.ndarray:
        """Sum the rows of the components in rows of labels, without doses and counts, whose size depends on a unit."""
        return rows.reshape(len(rows), self.n_components, -1)[:, :, : self.components.width].sum(1)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the rows, as plain values."""
        return {"reading": asdict(self.parser), "combination": self.combination, "n_parts": self.n_components}

    @classmethod
    def from_dict(cls, values: dict[str, Any], components: EmbeddingTable) -> Composition:
        """Restore what :meth:`to_dict` gave, with rows of the components."""
        parser, n_components = LabelParser(**values["reading"]), values["n_parts"]
        return cls(parser=parser, components=components, combination=values["combination"], n_components=n_components)

    def unknown_components(self, label: str) -> list[str]:
        """Components of a label without a row; ValueError if it cannot be read or has more than the network takes."""
        components = self.parser.components(label)
        if self.combination == "learned" and len(components) > self.n_components:
            raise ValueError(
                f"perturbation {label!r} has {len(components)} parts; the model was built for up to "
                f"{self.n_components}, as in its training data. combination='sum' has no such limit."
            )
        return [component.name for component in components if component.name not in self.components.row_of]

    def rows(self, labels: Iterable[tuple[Component, ...]]) -> np.ndarray:
        """Rows of labels given by their components: float32 ``[labels, P]``."""
        return np.stack([self._row(components) for components in labels])

    def rows_of(self, labels: Sequence[str]) -> np.ndarray:
        """Rows of labels that can be read and whose components have rows."""
        return self.rows(self.parser.components(label) for label in labels)

    def _row(self, components: tuple[Component, ...]) -> np.ndarray:
        described = self.components.matrix[[self.components.row_of[component.name] for component in components]]
        if self.parser.has_dose:
            doses = [0.0 if component.dose is None else np.log10(component.dose) for component in components]
            described = np.column_stack([described, doses]).astype(np.float32)
        if self.combination == "learned":
            slots = np.zeros((self.n_components, self.encoder_width + 1), dtype=np.float32)
            slots[: len(components)] = np.pad(described, ((0, 0), (0, 1)), constant_values=1)
            return slots.ravel()
        counted = [len(components) - 1] if self.parser.combination_separator is not None else []
        return np.concatenate([described.sum(0), counted]).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class TableFusion:
    """Tables side by side: every column standardised over its table, behind each table a mark of missing labels.

    A label that a table lacks has zeros there, which is the mean, and a one in the mark. The moments are kept for rows
    that come later: mean and standard deviation of every column, one float32 array a table; 1 for a constant column.
    """

    centers: tuple[np.ndarray, ...]
    scales: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, tables: Sequence[EmbeddingTable]) -> TableFusion:
        """Measure the moments of these tables."""
        deviations = [table.matrix.std(axis=0) for table in tables]
        scales = tuple(np.where(d > 0, d, 1).astype(np.float32) for d in deviations)
        return cls(centers=tuple(table.matrix.mean(axis=0) for table in tables), scales=scales)

    def apply(self, tables: Sequence[EmbeddingTable]) -> EmbeddingTable:
        """Join the tables, with a row for every label that any of them has."""
        names = tuple(dict.fromkeys(name for table in tables for name in table.names))
        blocks = []
        for table, center, scale in zip(tables, self.centers, self.scales, strict=True):
            _verify_width(table, len(center))
            row = np.array([table.row_of.get(name, -1) for name in names])
            block = np.zeros((len(names), table.width + 1), dtype=np.float32)
            block[row >= 0, :-1] = ((table.matrix - center) / scale)[row[row >= 0]]
            block[:, -1] = row < 0
            blocks.append(block)
        return EmbeddingTable(names, np.concatenate(blocks, axis=1), fusion=self)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists of arrays."""
        return {"centers": list(self.centers), "scales": list(self.scales)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TableFusion:
        """Restore what :meth:`to_dict` gave."""
        return cls(**{k: tuple(np.asarray(a, dtype=np.float32) for a in v) for k, v in values.items()})
