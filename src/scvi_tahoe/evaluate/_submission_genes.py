"""The genes of a challenge: all of them, no other, in its order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.evaluate._alignment import align_genes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi_tahoe.evaluate._cells import CellTable

__all__ = ["in_challenge_order"]


def in_challenge_order(cells: CellTable, genes: Sequence[str]) -> CellTable:
    """Return the cells over exactly the challenge's genes.

    Parameters
    ----------
    cells
        Predicted cells.
    genes
        Genes in the challenge's order.

    Raises
    ------
    ValueError
        If the list repeats a gene, or the prediction lacks one or has another.
    """
    wanted = np.asarray(genes, dtype=str)
    if len(np.unique(wanted)) != len(wanted):
        msg = "The list of genes names some more than once."
        raise ValueError(msg)
    lacking, surplus = np.setdiff1d(wanted, cells.genes), np.setdiff1d(cells.genes, wanted)
    if len(lacking) or len(surplus):
        msg = (
            f"The challenge has {len(wanted)} genes; the prediction lacks {len(lacking)} of them "
            f"(first {list(lacking[:3])}) and has {len(surplus)} others (first {list(surplus[:3])})."
        )
        raise ValueError(msg)
    return align_genes(cells, wanted, role="prediction")
