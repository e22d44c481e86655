"""The weight of the gene decoder that brings embedding and gene space to one scale."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from scipy.spatial.distance import pdist

from scvi_tahoe.data import read_screen

if TYPE_CHECKING:
    from scvi_tahoe._compat import AnnOrMuData
    from scvi_tahoe.data import Screen

__all__ = ["decoder_weight_of", "suggest_decoder_weight"]

logger = logging.getLogger(__name__)


def suggest_decoder_weight(adata: AnnOrMuData, *, n_cells: int = 500, seed: int = 0) -> float:
    r"""Weight of the gene decoder's loss at which both spaces count alike.

    .. math:: \frac{\mathrm{median}_{ij} \lVert e_i - e_j \rVert}{\mathrm{median}_{ij} \lVert x_i - x_j \rVert}

    over pairs of cells with embeddings *e* and expression *x*. The energy distance has the unit of a distance between
    cells, so without a weight the wider space is all that is trained. This is how the study that the package grew out
    of came to 0.0055 for a State embedding of 2,058 dimensions and 18,080 genes; Adduri et al. 2025 (bioRxiv
    2025.06.26.661135) use 0.1. The same ratio of the cells' lengths, its second opinion, is logged.

    Parameters
    ----------
    adata
        Data registered with ``TahoeST.setup_anndata(..., cell_embedding_key=...)`` or ``setup_mudata``.
    n_cells
        Cells to draw, whose pairs are looked at.
    seed
        Which.

    Returns
    -------
    The weight, for ``objective={"decoder_weight": ...}``; ``"auto"`` there takes it from the training cells.

    Raises
    ------
    ValueError
        If no cell embedding is registered, or all cells are the same.

    Examples
    --------
    >>> TahoeST.setup_anndata(adata, "target_gene", "non-targeting", cell_embedding_key="X_state")
    >>> suggest_decoder_weight(adata)
    """
    from scvi_tahoe._model import registered_keys

    if n_cells < 2:
        raise ValueError(f"n_cells={n_cells} must be 2 or more, to have pairs of them.")
    screen = read_screen(adata, registered_keys(adata))
    return decoder_weight_of(screen, np.arange(screen.n_cells), n_cells=n_cells, seed=seed)


def decoder_weight_of(screen: Screen, rows: np.ndarray, *, n_cells: int = 500, seed: int) -> float:
    """The weight by these rows of a screen; see :func:`suggest_decoder_weight`."""
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
