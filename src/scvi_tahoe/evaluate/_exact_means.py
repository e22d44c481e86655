"""Cells with an exact mean: chosen cells, each gene scaled to the wanted mean, so that zeros and spread stay.

Shapes: **C** cells, **G** genes.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from scvi_tahoe._constants import LOG1P_LIMIT
from scvi_tahoe.evaluate._cells import CellTable, dense

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import Matrix


def column_mean(matrix: Matrix) -> NDArray[np.float64]:
    """Mean over cells in float64, ``[G]``."""
    return np.asarray((matrix if sp.issparse(matrix) else np.asarray(matrix)).mean(axis=0, dtype=np.float64)).ravel()


def generator(seed: int, context: str, perturbation: str) -> np.random.Generator:
    """Random stream of a condition, which does not depend on the others that are scored."""
    return np.random.default_rng([abs(seed), zlib.crc32(f"{context}\x1f{perturbation}".encode())])


def chosen_rows(n_available: int, n: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Choose so many of the available rows, each as often as any other or once more."""
    times, rest = divmod(n, n_available)
    some = np.sort(rng.choice(n_available, rest, replace=False))
    return np.concatenate([np.tile(np.arange(n_available), times), some]).astype(np.intp)


def scaled_to_mean(cells: Matrix, mean_G: NDArray[np.floating], rng: np.random.Generator) -> Matrix:
    """Scale each gene of the cells to a mean; negative means count as 0.

    A gene that no cell expresses, or whose values would leave the range of log1p expression, is given to as few cells
    as its mean allows with values up to 1.
    """
    n, own, wanted = cells.shape[0], column_mean(cells), np.maximum(mean_G, 0)
    factor = np.divide(wanted, own, out=np.zeros_like(own), where=own > 0)
    largest = cells.max(axis=0).toarray().ravel() if sp.issparse(cells) else dense(cells).max(axis=0)
    given = (wanted > 0) & ((own <= 0) | ((factor > 1) & (largest * factor >= LOG1P_LIMIT)))
    factor[given] = 0
    columns = np.flatnonzero(given)
    n_cells = np.clip(np.ceil(n * wanted[columns]), 1, n).astype(np.intp)
    rows = [rng.choice(n, k, replace=False) if k > 1 else rng.integers(n, size=1) for k in n_cells]
    where = (np.concatenate(rows) if rows else np.empty(0, dtype=np.intp), np.repeat(columns, n_cells))
    values = np.repeat(n * wanted[columns] / n_cells, n_cells)
    if not sp.issparse(cells):
        scaled = dense(cells) * factor.astype(cells.dtype)
        scaled[where] = values
        return scaled
    scaled = sp.csr_matrix(cells, copy=True)
    scaled.data *= factor[scaled.indices].astype(scaled.dtype)
    if len(values):
        scaled = sp.csr_matrix(scaled + sp.csr_matrix((values.astype(scaled.dtype), where), shape=scaled.shape))
    scaled.eliminate_zeros()
    return scaled


def with_n_cells(cells: CellTable, n_cells: Mapping[tuple[str, str], int], *, seed: int) -> CellTable:
    """Match the number of cells of each condition named, and keep its mean; the table itself if all numbers match.

    Cells are drawn without replacement, or all repeated and the rest drawn; then genes are scaled to the mean of all.
    """
    other = {key for key, n in n_cells.items() if key in cells.rows and len(cells.rows[key]) != n}
    if not other:
        return cells
    parts, rows = [], []
    for key, available in cells.rows.items():
        if key not in other:
            rows.append(available)
            parts.append(cells.expression[available])
            continue
        rng, block = generator(seed, *key), cells.block(*key)
        chosen = chosen_rows(len(available), n_cells[key], rng)
        rows.append(available[chosen])
        parts.append(scaled_to_mean(block[chosen], column_mean(block), rng))
    places = np.concatenate(rows)
    expression = sp.vstack(parts, format="csr") if sp.issparse(cells.expression) else np.concatenate(parts)
    names = np.array([f"cell_{i}" for i in range(len(places))])
    return CellTable(expression, cells.perturbation[places], cells.context[places], cells.genes, names)
