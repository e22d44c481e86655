"""Conditions of a screen, the cells of each, and the controls that each cell may be matched with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from scvi_tahoe.data._label_parser import LabelParser


@dataclass(frozen=True)
class CellLabels:
    """One categorical column: ``codes[i]`` is the position in ``names`` of cell i's label.

    ``names`` are sorted, as strings, and each occurs in at least one cell.
    """

    codes: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def from_values(cls, values: Any) -> CellLabels:
        """Encode any column; unused categories are left out."""
        code_of_cell, found = pd.factorize(values if hasattr(values, "dtype") else np.asarray(values))
        if len(code_of_cell) and code_of_cell.min() >= 0:
            # text is made of each label, not of each cell
            names, code = np.unique(np.asarray(found).astype(str), return_inverse=True)
            return cls(codes=code.astype(np.int64)[code_of_cell], names=tuple(str(n) for n in names))
        names, codes = np.unique(np.asarray(values).astype(str), return_inverse=True)
        return cls(codes=codes.astype(np.int64), names=tuple(str(n) for n in names))

    def code(self, name: str) -> int:
        """Position of a label; KeyError if no cell has it."""
        try:
            return self.names.index(name)
        except ValueError:
            raise KeyError(name) from None


class Condition(NamedTuple):
    """One perturbation in one context."""

    context: str
    perturbation: str

    def __str__(self) -> str:
        return f"{self.perturbation} in {self.context}"


@dataclass(frozen=True)
class ControlPools:
    """Control cells in pools; each cell of the screen points to the pool it draws controls from.

    With batches a pool is the controls of one batch in one context; cells of a batch without controls draw from their
    whole context. Pools lie one after the other in ``rows``.
    """

    rows: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    pool_of_cell: np.ndarray

    def draw(self, cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One control row for each given cell, uniformly from its pool; the shape is kept."""
        pool = self.pool_of_cell[cells]
        offset = np.floor(rng.random(cells.shape) * self.sizes[pool]).astype(np.int64)
        return self.rows[self.starts[pool] + offset]


@dataclass(frozen=True)
class ConditionIndex:
    """Rows of every condition, and of the controls of every context.

    Attributes
    ----------
    conditions
        Conditions with at least one perturbed cell, sorted.
    condition_of_cell
        Position in ``conditions`` for each cell; -1 for controls.
    context, perturbation, batch
        Labels of each cell.
    control
        The control label.
    """

    conditions: tuple[Condition, ...]
    condition_of_cell: np.ndarray
    context: CellLabels
    perturbation: CellLabels
    batch: CellLabels | None
    control: str

    @classmethod
    def from_screen(cls, screen: Any) -> ConditionIndex:
        """Index a :class:`Screen`; its ``index`` is made once."""
        context, perturbation, control = screen.context, screen.perturbation, screen.control
        is_control = np.asarray([n == control for n in perturbation.names])[perturbation.codes]
        joint = context.codes * len(perturbation.names) + perturbation.codes
        present, position = np.unique(joint[~is_control], return_inverse=True)
        condition_of_cell = np.full(len(joint), -1, dtype=np.int64)
        condition_of_cell[~is_control] = position
        conditions = tuple(
            Condition(context.names[j // len(perturbation.names)], perturbation.names[j % len(perturbation.names)])
            for j in present
        )
        return cls(conditions, condition_of_cell, context, perturbation, screen.batch, control)

    @property
    def is_control(self) -> np.ndarray:
        """Whether each cell is a control."""
        return self.condition_of_cell < 0

    @property
    def contexts(self) -> tuple[str, ...]:
        """All contexts, those with controls only included."""
        return self.context.names

    @property
    def perturbations(self) -> tuple[str, ...]:
        """All perturbations but the control."""
        return tuple(n for n in self.perturbation.names if n != self.control)

    @property
    def perturbations_recur(self) -> bool:
        """Whether a perturbation is in more than one context."""
        return len(self.conditions) > len(self.perturbations)

    def controls(self, context: str) -> np.ndarray:
        """Rows of the control cells of a context, in the order of the data."""
        return np.flatnonzero(self.is_control & (self.context.codes == self.context.code(context)))

    def rows(self, condition: Condition) -> np.ndarray:
        """Rows of the perturbed cells of a condition; empty if there are none."""
        if condition not in self.conditions:
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(self.condition_of_cell == self.conditions.index(condition))

    def by_condition(self, rows: np.ndarray) -> dict[int, np.ndarray]:
        """Group rows by the position of their condition in ``conditions``, each group in the order of ``rows``."""
        condition = self.condition_of_cell[rows]
        order = np.argsort(condition, kind="stable")
        present, starts = np.unique(condition[order], return_index=True)
        return dict(zip(present.tolist(), np.split(rows[order], starts[1:]), strict=True))

    def control_pools(self) -> ControlPools:
        """Pools of control cells, matched by context and, where the screen has batches, by batch."""
        control_rows = np.flatnonzero(self.is_control)
        n_batches = 1 if self.batch is None else len(self.batch.names)
        batch = np.zeros(len(self.context.codes), np.int64) if self.batch is None else self.batch.codes
        # pools 0 .. n_contexts-1 hold whole contexts; then one pool for each (context, batch)
        fine = len(self.contexts) + self.context.codes * n_batches + batch
        n_pools = len(self.contexts) * (1 + n_batches)
        member = np.concatenate([self.context.codes[control_rows], fine[control_rows]])
        order = np.argsort(member, kind="stable")
        sizes = np.bincount(member, minlength=n_pools)
        pool_of_cell = np.where(sizes[fine] > 0, fine, self.context.codes)
        return ControlPools(
            rows=np.concatenate([control_rows, control_rows])[order],
            starts=np.concatenate([[0], np.cumsum(sizes)[:-1]]),
            sizes=sizes,
            pool_of_cell=pool_of_cell,
        )


def combines_measured_components(index: ConditionIndex, parser: LabelParser) -> bool:
    """Whether at least half of the combinations of a screen have components that were all measured alone."""
    components = [parser.components(label) for label in index.perturbations]
    alone = {of_label[0] for of_label in components if len(of_label) == 1}
    measured = [alone.issuperset(of_label) for of_label in components if len(of_label) > 1]
    return bool(measured) and 2 * sum(measured) >= len(measured)
