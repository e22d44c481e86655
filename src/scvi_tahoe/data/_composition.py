"""Embedding rows of combinations and doses, made from the rows of their components."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scvi_tahoe.data._label_parser import Component, LabelParser

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scvi_tahoe.data._embedding_table import EmbeddingTable

Combination = Literal["sum", "learned"]
COMBINATIONS: tuple[Combination, ...] = ("sum", "learned")

#: Names of the columns beside those of the parts' table.
NUMBER_COLUMNS = ("log10 dose", "further parts")


@dataclass(frozen=True, kw_only=True)
class Composition:
    """How rows of labels are made from rows of their components.

    A part is described by its row of the table and, in a screen with doses, by log10 of its dose (0 without one). With
    ``combination='sum'`` these are summed, and a last column counts the parts beyond the first, so that a single
    perturbation keeps its own row. With ``'learned'`` they stay beside each other, each with a mark of presence, and
    the network encodes every part and sums what it makes of them (Zaheer et al. 2017, *Deep Sets*, arXiv:1703.06114).
    Neither depends on the order of the components.

    Attributes
    ----------
    parser
        How labels name their components.
    parts
        Rows of the components.
    combination
        ``'sum'`` or ``'learned'``.
    n_components
        Most parts of a label with ``'learned'``; 1 with ``'sum'``, which has no limit.
    """

    parser: LabelParser
    components: EmbeddingTable
    combination: Combination = "sum"
    n_components: int = 1

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of the encoder's inputs where the parts are one-hot; None for features."""
        return (*self.components.names, *self._number_columns) if self.components.one_hot else None

    @property
    def encoder_width(self) -> int:
        """Numbers that describe a part (``'learned'``) or a label (``'sum'``) to the network's encoder."""
        return self.components.width + len(self._number_columns)

    @property
    def _number_columns(self) -> tuple[str, ...]:
        counts = self.parser.combination_separator is not None and self.combination == "sum"
        return tuple(np.array(NUMBER_COLUMNS)[[self.parser.has_dose, counts]].tolist())

    def without_numbers(self, rows: np.ndarray) -> np.ndarray:
        """What rows of labels say of their perturbations: summed rows of the components, without doses and counts.

        How large a dose is as a number depends on its unit, and so would every likeness in which it counts.

        Parameters
        ----------
        rows
            Of :meth:`rows`.
        """
        return rows.reshape(len(rows), self.n_components, -1)[:, :, : self.components.width].sum(1)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the rows, as plain values."""
        return {"reading": asdict(self.parser), "combination": self.combination, "n_parts": self.n_components}

    @classmethod
    def from_dict(cls, values: dict[str, Any], components: EmbeddingTable) -> Composition:
        """What :meth:`to_dict` gave, with rows of the components."""
        return cls(
            parser=LabelParser(**values["reading"]),
            components=components,
            combination=values["combination"],
            n_components=values["n_parts"],
        )

    def unknown_components(self, label: str) -> list[str]:
        """Parts of a label without a row.

        Raises
        ------
        ValueError
            If the label cannot be read, or has more parts than the network takes.
        """
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
        """Rows of labels that can be read and whose parts have rows."""
        return self.rows(self.parser.components(label) for label in labels)

    def _row(self, components: tuple[Component, ...]) -> np.ndarray:
        described = np.stack([self._described(component) for component in components])
        if self.combination == "learned":
            slots = np.zeros((self.n_components, self.encoder_width + 1), dtype=np.float32)
            slots[: len(components)] = np.pad(described, ((0, 0), (0, 1)), constant_values=1)
            return slots.ravel()
        counted = [len(components) - 1] if self.parser.combination_separator is not None else []
        return np.concatenate([described.sum(0), counted]).astype(np.float32)

    def _described(self, component: Component) -> np.ndarray:
        row = self.components.matrix[self.components.row_of[component.name]]
        dose = [0.0 if component.dose is None else np.log10(component.dose)] if self.parser.has_dose else []
        return np.concatenate([row, dose]).astype(np.float32)
