"""Genes by the proteins that theirs interact with: a links file of STRING."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scvi_tahoe._arguments import checked
from scvi_tahoe.files import one_line, read_csv, verify_text
from scvi_tahoe.tables._table import described, existing, largest_components

if TYPE_CHECKING:
    from pathlib import Path

_AT_ONCE = 1_000_000  # lines


@checked()
def string_links(
    path: str | Path,
    *,
    info: str | Path | None = None,
    min_score: int = 400,
    n_components: int = 128,
    licence: str | None = "CC BY 4.0 (STRING)",
    seed: int = 0,
) -> pd.DataFrame:
    r"""Make a table of genes from protein interactions.

    The largest components of the symmetrically normalised network with loops (the adjacency of graph convolutions, Kipf
    and Welling 2017):

    .. math:: D^{-1/2} (A + I) D^{-1/2}, \quad A_{ij} = \text{combined score} / 1000

    Parameters
    ----------
    path
        ``9606.protein.links.v12.0.txt.gz`` or the like: columns ``protein1``, ``protein2`` and ``combined_score``.
    info
        ``9606.protein.info.v12.0.txt.gz``, with the gene symbol of each protein. If None, names are the identifiers of
        the proteins without the species, such as ``ENSP00000354394``.
    min_score
        Links below are left out; STRING calls 400 medium and 700 high confidence.
    n_components
        Maximum number of columns.
    licence
        Licence of the links, kept with the table.
    seed
        Random seed of the decomposition.

    Returns
    -------
    DataFrame ``[genes, components]``.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file does not exist or lacks columns, or no link is left.
    """
    path = existing(path, "a links file of STRING")
    links = _links(path, min_score)
    symbols = {} if info is None else _symbols(existing(info, "an info file of STRING"))
    proteins = links[["protein1", "protein2"]].to_numpy().ravel().tolist()
    ends = np.array([symbols.get(name, name.partition(".")[2] or name) for name in proteins], dtype=object)
    code, names = pd.factorize(ends, sort=True)
    pairs = code.reshape(-1, 2)
    n = len(names)
    weights = links["combined_score"].to_numpy(np.float64) / 1000
    one_way = sp.coo_matrix((weights, (pairs.min(1), pairs.max(1))), shape=(n, n))
    count = sp.coo_matrix((np.ones(len(weights)), (pairs.min(1), pairs.max(1))), shape=(n, n)).tocsr()
    mean = one_way.tocsr().multiply(count.power(-1))  # the file has each link twice
    upper = sp.triu(mean, k=1)
    adjacency = (upper + upper.T + sp.identity(n)).tocsr()
    scale = sp.diags(1 / np.sqrt(adjacency.sum(1).A1))
    return described(
        largest_components(scale @ adjacency @ scale, n_components, seed), [str(name) for name in names],
        kind="protein links", source=path.name, licence=licence, detail=f"{upper.nnz:,} links from score {min_score}",
    )  # fmt: skip


def _links(path: Path, min_score: int) -> pd.DataFrame:
    columns = ["protein1", "protein2", "combined_score"]
    verify_text(path)
    try:
        chunks = pd.read_csv(
            path.absolute(),
            sep=" ",
            usecols=columns,
            chunksize=_AT_ONCE,
            na_filter=False,
            dtype=dict(zip(columns, (str, str, np.float64), strict=True)),
        )
        links = pd.concat([chunk[~(chunk["combined_score"] < min_score)] for chunk in chunks], ignore_index=True)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path.name} is not a links file of STRING with columns {columns}: {one_line(error)}."
        ) from None
    if not np.isfinite(links["combined_score"]).all() or (links[columns[:2]] == "").any(axis=None):
        raise ValueError(f"{path.name} has links without a finite score, or without a protein.")
    if links.empty:
        raise ValueError(f"{path.name} has no link with a score of {min_score} or more.")
    return links


def _symbols(path: Path) -> dict[str, str]:
    info = read_csv(path, sep="\t", dtype=str, na_filter=False)
    if "preferred_name" not in info:
        raise ValueError(f"{path.name} is not an info file of STRING: it has no column preferred_name.")
    return dict(zip(info.iloc[:, 0], info["preferred_name"], strict=True))
