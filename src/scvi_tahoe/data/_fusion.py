"""Several perturbation-embedding tables as one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_tahoe.data._embedding_table import EmbeddingTable

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class TableFusion:
    """Tables side by side: every column standardised over its table, behind each table a mark of missing labels.

    A label that a table lacks has zeros there, which is the mean, and a one in the mark. The moments are kept, so that
    rows that come later are standardised as the first ones were.

    Attributes
    ----------
    centers, scales
        Mean and standard deviation of every column, one float32 array a table; a constant column has scale 1.
    """

    centers: tuple[np.ndarray, ...]
    scales: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, tables: Sequence[EmbeddingTable]) -> TableFusion:
        """Moments of these tables."""
        deviations = [table.matrix.std(axis=0) for table in tables]
        return cls(
            centers=tuple(table.matrix.mean(axis=0) for table in tables),
            scales=tuple(np.where(d > 0, d, 1).astype(np.float32) for d in deviations),
        )

    def apply(self, tables: Sequence[EmbeddingTable]) -> EmbeddingTable:
        """The tables as one, with a row for every label that any of them has.

        Raises
        ------
        ValueError
            If a table has another width than the one whose moments these are.
        """
        names = tuple(dict.fromkeys(name for table in tables for name in table.names))
        blocks = []
        for table, center, scale in zip(tables, self.centers, self.scales, strict=True):
            if table.width != len(center):
                raise ValueError(
                    f"a perturbation-embedding table is {table.width} wide, the model was trained with {len(center)}."
                )
            place = {name: i for i, name in enumerate(table.names)}
            standardised = (table.matrix - center) / scale
            block = np.zeros((len(names), table.width + 1), dtype=np.float32)
            for row, name in zip(block, names, strict=True):
                if name in place:
                    row[:-1] = standardised[place[name]]
                else:
                    row[-1] = 1
            blocks.append(block)
        return EmbeddingTable(names, np.concatenate(blocks, axis=1), fusion=self)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists of arrays."""
        return {"centers": list(self.centers), "scales": list(self.scales)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TableFusion:
        """What :meth:`to_dict` gave."""
        return cls(**{k: tuple(np.asarray(a, dtype=np.float32) for a in v) for k, v in values.items()})
