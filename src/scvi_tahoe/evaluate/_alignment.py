"""Bringing a prediction to the genes, contexts and perturbations of the reference, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_tahoe.evaluate._cells import CellTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["align_genes", "shared_conditions"]


_RENAMED = " Not one name is shared: are they of another kind (Ensembl, symbols)?"


def align_genes(cells: CellTable, genes: NDArray[np.str_], *, role: str) -> CellTable:
    """Return the cells over ``genes`` in that order; the cells themselves where nothing changes.

    Parameters
    ----------
    cells
        Cells over genes in any order, surplus ones allowed.
    genes
        Genes wanted.
    role
        What the cells are, for messages.

    Raises
    ------
    ValueError
        If a gene is missing.
    """
    if np.array_equal(cells.genes, genes):
        return cells
    columns = pd.Index(cells.genes).get_indexer(pd.Index(genes))
    missing = genes[columns < 0]
    if len(missing):
        guess = ""
        if len(missing) == len(genes):
            as_many = cells.n_genes == len(genes)
            guess = _RENAMED if as_many else " It looks like a cell embedding: pass the gene output."
        first = [*map(str, missing[:3])]
        msg = (
            f"The {role} lacks {len(missing)} of the {len(genes)} genes of the reference (first {first}); "
            f"it has {cells.n_genes} columns.{guess} Scores need the same genes: predict them, or subset the "
            "reference to the genes that you want scored."
        )
        raise ValueError(msg)
    return CellTable(cells.expression[:, columns], cells.perturbation, cells.context, genes, cells.names)


def shared_conditions(predicted: CellTable, observed: CellTable, *, control: str) -> dict[str, tuple[str, ...]]:
    """Perturbations of each context that both sides have, contexts without any left out.

    Raises
    ------
    ValueError
        If there is none at all.
    """
    shared: dict[str, tuple[str, ...]] = {}
    for context in observed.contexts:
        there = set(predicted.perturbations(context, control=control))
        both = tuple(p for p in observed.perturbations(context, control=control) if p in there)
        if both:
            shared[context] = both
    if not shared:
        msg = (
            "The prediction and the reference share no condition. The prediction has contexts "
            f"{_some(predicted.contexts)} and perturbations {_some(np.unique(predicted.perturbation))}; the reference "
            f"has {_some(observed.contexts)} and {_some(np.unique(observed.perturbation))}."
        )
        raise ValueError(msg)
    return shared


def _some(names: NDArray[np.str_] | tuple[str, ...]) -> str:
    shown = ", ".join(map(str, names[:5]))
    return f"[{shown}{', ...' if len(names) > 5 else ''}]"
