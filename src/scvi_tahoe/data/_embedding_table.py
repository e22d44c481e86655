"""A table of perturbation embeddings: one row a label, never one a cell."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["EmbeddingTable", "nearest_names"]


def nearest_names(name: str, known: Sequence[str], n: int = 3) -> str:
    """The most similar known names, for messages: ``"did you mean 'STAT1', 'STAT2'?"`` (empty if none is near)."""
    near = difflib.get_close_matches(str(name), known, n=n, cutoff=0.5)
    return f" (did you mean {', '.join(map(repr, near))}?)" if near else ""


def _from_mapping(table: Mapping[Any, Any]) -> tuple[list[str], np.ndarray]:
    if set(table) == {"names", "matrix"}:  # how (names, matrix) survives writing to h5ad
        return [str(n) for n in np.asarray(table["names"]).ravel()], np.asarray(table["matrix"])
    rows = [np.asarray(v).ravel() for v in table.values()]
    widths = {len(r) for r in rows}
    if len(widths) > 1:
        raise ValueError(f"rows have different widths: {sorted(widths)}; one width is needed.")
    return [str(n) for n in table], np.stack(rows) if rows else np.zeros((0, 0))


@dataclass(frozen=True)
class EmbeddingTable:
    """Names and one embedding row for each.

    Attributes
    ----------
    names
        Perturbation labels, unique.
    matrix
        float32 ``[len(names), P]``.
    one_hot
        Whether the rows are the identity made from the labels of the screen, rather than a table of the user's.
    """

    names: tuple[str, ...]
    matrix: np.ndarray
    one_hot: bool = False

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
    def from_user(cls, table: object, where: str) -> EmbeddingTable:
        """Read what users keep in ``uns``.

        Parameters
        ----------
        table
            A mapping of label to vector, a DataFrame with labels as index, a pair ``(names, matrix)``, or the mapping
            ``{"names": ..., "matrix": ...}``.
        where
            How to call the table in messages, e.g. ``"adata.uns['esm2']"``.

        Raises
        ------
        TypeError
            If it is none of these.
        ValueError
            If rows differ in width, are not finite, or a label occurs twice.
        """
        try:
            if isinstance(table, pd.DataFrame):
                names, matrix = [str(n) for n in table.index], table.to_numpy()
            elif isinstance(table, Mapping):
                names, matrix = _from_mapping(table)
            elif isinstance(table, tuple | list) and len(table) == 2:
                names, matrix = [str(n) for n in table[0]], np.asarray(table[1])
            else:
                raise TypeError(
                    f"{where} is a {type(table).__name__}; a perturbation-embedding table is a mapping of label to "
                    "vector, a DataFrame with labels as index, or a pair (names, matrix)."
                )
            matrix = np.asarray(matrix, dtype=np.float32)
        except ValueError as error:
            raise ValueError(f"{where} is no perturbation-embedding table: {error}") from None
        if matrix.ndim != 2 or matrix.shape[0] != len(names) or matrix.shape[1] == 0:
            raise ValueError(
                f"{where} has {len(names)} names and a matrix of shape {matrix.shape}; one row a name is needed."
            )
        if len(set(names)) < len(names):
            twice = sorted({n for n in names if names.count(n) > 1})[:5]
            raise ValueError(f"{where} names these labels more than once: {twice}; keep one row each.")
        bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
        if bad.size:
            raise ValueError(f"{where} has NaN or infinite values in the rows of {[names[i] for i in bad[:5]]}.")
        return cls(tuple(names), matrix)

    @property
    def width(self) -> int:
        """P, the width of a row."""
        return int(self.matrix.shape[1])

    def position(self, name: str) -> int:
        """Row of a label.

        Raises
        ------
        KeyError
            If the table has none; the message lists the nearest labels.
        """
        if name not in self.names:
            raise KeyError(
                f"perturbation {name!r} is unknown to the model{nearest_names(name, self.names)}: it has rows for "
                f"{len(self.names)} labels" + (" (one-hot, those of its training data)." if self.one_hot else ".")
            )
        return self.names.index(name)

    def extended(self, new: EmbeddingTable) -> EmbeddingTable:
        """The same table with rows of labels that it lacks.

        Raises
        ------
        ValueError
            If the new table has another width, or another row for a label that is known already.
        """
        if new.width != self.width:
            raise ValueError(
                f"the new perturbation-embedding table is {new.width} wide, the model was trained with {self.width}."
            )
        known = {n: i for i, n in enumerate(self.names)}
        shared = [(known[n], i) for i, n in enumerate(new.names) if n in known]
        changed = [new.names[i] for k, i in shared if not np.array_equal(self.matrix[k], new.matrix[i])]
        if changed:
            raise ValueError(
                f"the new perturbation-embedding table has other rows for labels that the model knows: {changed[:5]}; "
                "give the table that it was trained with, plus new rows."
            )
        fresh = [i for i, n in enumerate(new.names) if n not in known]
        return EmbeddingTable(
            (*self.names, *(new.names[i] for i in fresh)), np.concatenate([self.matrix, new.matrix[fresh]])
        )
