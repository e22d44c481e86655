"""Genes by the sets that they belong to: GO terms, Reactome pathways, Hallmarks, from ``.gmt`` files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from scvi_tahoe._arguments import checked
from scvi_tahoe.tables._table import described, existing, largest_components

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd


@checked()
def gene_sets(
    paths: str | Path | Sequence[str | Path],
    *,
    n_components: int = 128,
    min_size: int = 5,
    max_size: int = 500,
    licence: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Make a table of genes from gene sets.

    Membership is weighted by how few genes a set has (inverse document frequency), rows are scaled to length 1, and the
    largest components of the result are kept (latent semantic analysis, Deerwester et al. 1990):

    .. math:: x_{gs} \propto m_{gs} \log(G / n_s)

    where :math:`m_{gs}` is 1 if gene :math:`g` is in set :math:`s`, else 0, and the set has :math:`n_s` of :math:`G`
    genes.

    Parameters
    ----------
    paths
        One or more ``.gmt`` files: a line for each set, with its name, a description and its genes, between tabs.
    n_components
        Most columns of the table.
    min_size, max_size
        Sets with fewer or more genes are left out: the smallest tell genes apart only, the largest nothing.
    licence
        Licence of the sets, kept with the table.
    seed
        Random seed of the decomposition.

    Returns
    -------
    DataFrame ``[genes, components]``.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file does not exist, a line is no gene set, or too few sets are left.

    Examples
    --------
    >>> table = gene_sets("c5.go.bp.v2024.1.Hs.symbols.gmt", licence="CC BY 4.0")  # doctest: +SKIP
    """
    files = [existing(p, "a .gmt file") for p in ([paths] if isinstance(paths, str | Path) else paths)]
    sets = [members for path in files for members in _sets_of(path)]
    kept = [members for members in sets if min_size <= len(members) <= max_size]
    names = sorted(set().union(*kept)) if kept else []
    if len(kept) < 2:
        raise ValueError(
            f"{', '.join(p.name for p in files)}: {len(kept)} of {len(sets)} sets have {min_size} to {max_size} genes; "
            "two or more are needed, so change min_size or max_size."
        )
    row_of = {name: row for row, name in enumerate(names)}
    columns = np.repeat(np.arange(len(kept)), [len(members) for members in kept])
    rows = np.array([row_of[gene] for members in kept for gene in sorted(members)])
    weights = np.log(len(names) / np.array([len(members) for members in kept]))[columns]
    matrix = sp.csr_matrix((weights, (rows, columns)), shape=(len(names), len(kept)))
    length = np.sqrt(matrix.multiply(matrix).sum(1)).A1
    matrix = sp.diags(1 / np.maximum(length, 1e-12)) @ matrix
    return described(
        largest_components(matrix, n_components, seed), names, kind="gene sets", licence=licence,
        source=", ".join(path.name for path in files), detail=f"{len(kept):,} of {len(sets):,} sets, IDF and SVD",
    )  # fmt: skip


def _sets_of(path: Path) -> list[set[str]]:
    found = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if line.strip():
            _, *fields = line.rstrip().split("\t")
            if len(fields) < 2:
                raise ValueError(
                    f"line {number} of {path.name} is no gene set: name, description and genes are needed."
                )
            found.append({gene.strip() for gene in fields[1:] if gene.strip()})
    return found
