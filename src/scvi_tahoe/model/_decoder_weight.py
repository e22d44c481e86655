"""The weight of the gene decoder that brings embedding and gene space to one scale, from registered data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.data import read_screen
from scvi_tahoe.model._fitted import keys_of_registry
from scvi_tahoe.model._tahoe_st import TahoeST
from scvi_tahoe.training import decoder_weight_of

if TYPE_CHECKING:
    from scvi_tahoe._compat import AnnOrMuData


def suggest_decoder_weight(adata: AnnOrMuData, *, n_cells: int = 500, seed: int = 0) -> float:
    r"""Return the weight of the gene decoder's loss that balances both spaces.

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
        Number of cells to draw, whose pairs are compared.
    seed
        Random seed for drawing the cells.

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
    if n_cells < 2:
        raise ValueError(f"n_cells={n_cells} must be 2 or more, to have pairs of them.")
    screen = read_screen(adata, keys_of_registry(TahoeST._registered(adata)))
    return decoder_weight_of(screen, np.arange(screen.n_cells), n_cells=n_cells, seed=seed)
