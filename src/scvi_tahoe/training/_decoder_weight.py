"""The weight of the gene decoder that brings embedding and gene space to one scale."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from scipy.spatial.distance import pdist

if TYPE_CHECKING:
    from scvi_tahoe.data import Screen

__all__ = ["decoder_weight_of"]

logger = logging.getLogger(__name__)


def decoder_weight_of(screen: Screen, rows: np.ndarray, *, n_cells: int = 500, seed: int) -> float:
    """The weight by these rows of a screen; see :func:`~scvi_tahoe.suggest_decoder_weight`."""
    if screen.cell_embedding is None:
        raise ValueError("the decoder's weight compares genes with a cell embedding; register one: cell_embedding_key.")
    chosen = np.sort(np.random.default_rng(seed).choice(rows, min(n_cells, len(rows)), replace=False))
    spaces = {"cell embedding": _dense(screen.cell_embedding, chosen), "expression": _dense(screen.expression, chosen)}
    distances = {name: float(np.median(pdist(cells))) for name, cells in spaces.items()}
    if same := [name for name, distance in distances.items() if not distance > 0]:
        raise ValueError(f"most of {len(chosen)} cells have the same {same[0]}; a scale cannot be read from them.")
    embedding, genes = distances.values()
    lengths = [float(np.median(np.linalg.norm(cells, axis=1))) for cells in spaces.values()]
    logger.info(
        f"distances between cells: {embedding:.4g} in the cell embedding, {genes:.4g} in expression, ratio "
        f"{embedding / genes:.4g}; ratio of their lengths {lengths[0] / lengths[1]:.4g}."
    )
    return embedding / genes


def _dense(matrix: Any, rows: np.ndarray) -> np.ndarray:
    block = (matrix.to_numpy() if hasattr(matrix, "to_numpy") else matrix)[rows]
    return np.asarray(block.toarray() if sp.issparse(block) else block, dtype=np.float64)
