"""A vector for each perturbation, as the baselines on embeddings need it.

Shapes: **P** width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["embedding_rows"]


def embedding_rows(
    embedding: Mapping[str, ArrayLike] | pd.DataFrame | tuple[Sequence[str], ArrayLike],
) -> dict[str, NDArray[np.float64]]:
    """Read a table of perturbation embeddings.

    Parameters
    ----------
    embedding
        ``{label: vector}``, ``{"names": labels, "matrix": rows}``, a DataFrame with labels as index, or a pair of
        labels and matrix.

    Raises
    ------
    ValueError
        If vectors differ in length, a value is not finite, or a label occurs twice.
    """
    if isinstance(embedding, pd.DataFrame):
        names, matrix = embedding.index.astype(str), embedding.to_numpy(float)
    elif isinstance(embedding, Mapping) and set(embedding) == {"names", "matrix"}:
        names, matrix = pd.Index(np.ravel(embedding["names"])).astype(str), np.asarray(embedding["matrix"], dtype=float)
    elif isinstance(embedding, Mapping):
        names, rows = pd.Index(list(embedding)).astype(str), [np.ravel(vector) for vector in embedding.values()]
        if len({len(row) for row in rows}) > 1:
            msg = f"Perturbation embeddings have different lengths: {sorted({len(row) for row in rows})}."
            raise ValueError(msg)
        matrix = np.asarray(rows, dtype=float)
    else:
        names, matrix = pd.Index(embedding[0]).astype(str), np.asarray(embedding[1], dtype=float)
    if len(names) != len(matrix) or names.has_duplicates:
        msg = f"Perturbation embeddings need one row a label; got {names.nunique()} labels and {len(matrix)} rows."
        raise ValueError(msg)
    if not np.isfinite(matrix).all():
        bad = list(names[~np.isfinite(matrix).all(axis=1)][:3])
        msg = f"Perturbation embeddings must be finite; rows {bad} are not."
        raise ValueError(msg)
    return dict(zip(names, matrix))
