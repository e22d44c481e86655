"""Genes of cells as a State Embedding model reads them: matched by name, on a log scale, in its slots.

A cell has a fixed number of slots. They are filled with its most expressed genes; among genes of equal value, and among
genes without counts where too few are expressed, chance decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scvi_tahoe._constants import STREAMS
from scvi_tahoe._names import nearest_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    import scipy.sparse as sp

#: How values are read: counts, log1p of normalised counts, or decided for each cell from its largest value.
InputScale = Literal["counts", "log1p", "per_cell"]
#: Above the first a value is a count; below it, a cell is counts if its values undone would sum up to the second.
LARGEST_LOG, _LARGEST_TOTAL = 35.0, 5_000_000
_TOTAL = 100.0  # what the counts of a cell sum up to


@dataclass(frozen=True)
class GeneMatch:
    """Which columns of the data are genes that a model can read."""

    columns: np.ndarray  #: columns of the data, in the order of the table, int64 ``[G]``
    names: tuple[str, ...]  #: name of each of them in the table
    lender: int  #: position in ``columns`` of the gene that lends its count to the cell's own token
    place: str  #: where the names were: ``"var_names"`` or ``"var['symbol']"``
    missing: tuple[str, ...]  #: names in the data that the table lacks


def match_genes(
    var: pd.DataFrame,
    proteins: Mapping[str, object],
    *,
    lender: int,
    gene_key: str | None = None,
    aliases: Mapping[str, str] | None = None,
) -> GeneMatch:
    """Match columns of data to genes of a table by name, exactly; each column counts, also where names repeat.

    Raises
    ------
    KeyError
        If ``gene_key`` is not a column of ``var``.
    ValueError
        If fewer genes match than are needed to find the lender; the message shows names on both sides.
    """
    candidates: dict[str, Any] = {"var_names": var.index}
    candidates |= {f"var[{str(c)!r}]": var[c] for c in var if not pd.api.types.is_numeric_dtype(var[c])}
    if gene_key is not None:
        if gene_key not in var:
            known = [str(c) for c in var.columns]
            raise KeyError(
                f"gene_key={gene_key!r} is not a column of var{nearest_names(gene_key, known)}; it has {known}."
            )
        candidates = {f"var[{gene_key!r}]": var[gene_key]}
    spelled = {where: [_renamed(str(name), aliases) for name in values] for where, values in candidates.items()}
    n_known = {where: len(proteins.keys() & set(names)) for where, names in spelled.items()}
    place = max(n_known, key=lambda where: n_known[where])  # the first of equals, which is var_names
    names, row_of = spelled[place], {name: row for row, name in enumerate(proteins)}
    rows = np.array([row_of.get(name, -1) for name in names], dtype=np.int64)
    found = np.flatnonzero(rows >= 0)
    missing = tuple(dict.fromkeys(name for name in names if name not in row_of))
    if len(found) <= lender:
        known = list(proteins)
        raise ValueError(
            f"{len(found)} of {len(rows)} genes are in the table of protein embeddings, too few to embed cells: "
            f"{place} has e.g. {names[:3]}{nearest_names(missing[0], known) if missing else ''}, and the table "
            f"e.g. {known[:3]}. Names must be equal to the letter; give gene_key= for another column of var, or "
            "aliases=."
        )
    order = np.argsort(rows[found], kind="stable")
    columns = found[order]
    lends = int(np.flatnonzero(order == lender)[0])
    return GeneMatch(columns, tuple(names[c] for c in columns), lends, place, missing)


def _renamed(name: str, aliases: Mapping[str, str] | None) -> str:
    return name if aliases is None else aliases.get(name, name)


def taken_for_log(block: sp.csr_matrix) -> np.ndarray:
    """Return for each cell whether its values, judged by themselves, look like logarithms, bool ``[cells]``."""
    values = np.maximum(block.data.astype(np.float64), 0)
    largest = np.zeros(block.shape[0])
    rows = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    np.maximum.at(largest, rows, values)
    total = np.bincount(rows, np.expm1(np.minimum(values, LARGEST_LOG)), minlength=block.shape[0])
    return (largest <= LARGEST_LOG) & (np.floor(total) <= _LARGEST_TOTAL)


def log_values(block: sp.csr_matrix, genes: GeneMatch, scale: InputScale) -> np.ndarray:
    """Return the log values ``[cells, G]`` of the matched genes, float32."""
    values = np.maximum(block[:, genes.columns].toarray().astype(np.float32, copy=False), 0)
    if scale == "log1p":
        return values
    are_counts = np.ones(len(values), dtype=bool) if scale == "counts" else ~taken_for_log(block)
    values[are_counts] = np.log1p(values[are_counts])
    return values


def slot_shares(values_CG: np.ndarray) -> np.ndarray:
    """Return each gene's share of its cell's log values, times 100; equal shares in a cell without any."""
    total_C1 = values_CG.sum(1, keepdims=True)
    empty_C1 = total_C1 == 0
    return np.where(empty_C1, np.float32(_TOTAL / values_CG.shape[1]), values_CG / (total_C1 + empty_C1) * _TOTAL)


def cell_generator(name: str, seed: int, draw: int) -> np.random.Generator:
    """Return the source of randomness of one cell, which depends on its name, the seed and the number of the draw."""
    return np.random.default_rng([abs(seed), STREAMS.GENE_SLOTS, draw, *name.encode()])


def fill_slots(values_G: np.ndarray, n_slots: int, generator: np.random.Generator | None) -> tuple[np.ndarray, int]:
    """Choose the genes of one cell's slots.

    Returns
    -------
    Genes, int64 ``[n_slots]``, and how many of the slots were left to chance. Without a ``generator`` those are filled
    in the order of the table.
    """
    n_genes = len(values_G)
    if n_genes >= n_slots:
        smallest = np.partition(values_G, n_genes - n_slots)[n_genes - n_slots]
        sure, candidates = np.flatnonzero(values_G > smallest), np.flatnonzero(values_G == smallest)
        n_open = n_slots - len(sure)
        if n_open == len(candidates):
            return np.concatenate([sure, candidates]), 0
        drawn = candidates[:n_open] if generator is None else generator.choice(candidates, n_open, replace=False)
    else:  # a panel: every expressed gene, then others more than once
        sure, candidates = np.flatnonzero(values_G > 0), np.flatnonzero(values_G <= 0)
        candidates = candidates if len(candidates) else sure
        n_open = n_slots - len(sure)
        drawn = np.resize(candidates, n_open) if generator is None else generator.choice(candidates, n_open)
    return np.concatenate([sure, drawn]), n_open
