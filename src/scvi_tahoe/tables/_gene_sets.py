"""Genes by the sets that they belong to: GO terms, Reactome pathways, Hallmarks, from ``.gmt`` files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scvi_tahoe._arguments import checked
from scvi_tahoe.files import verify_text
from scvi_tahoe.tables._table import components_of_sets, described, existing

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
        Maximum number of columns.
    min_size, max_size
        Sets with fewer or more genes are left out: the smallest merely distinguish genes, and the largest carry no
        information.
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
        If a file does not exist, a line is not a gene set, or too few sets are left.

    Examples
    --------
    >>> table = gene_sets("c5.go.bp.v2024.1.Hs.symbols.gmt", licence="CC BY 4.0")  # doctest: +SKIP
    """
    files = [existing(p, "a .gmt file") for p in ([paths] if isinstance(paths, str | Path) else paths)]
    sets = [set(members) for path in files for members in _sets_of(path).values()]
    kept = [members for members in sets if min_size <= len(members) <= max_size]
    names = sorted(set().union(*kept)) if kept else []
    if len(kept) < 2:
        raise ValueError(
            f"{', '.join(p.name for p in files)}: {len(kept)} of {len(sets)} sets have {min_size} to {max_size} genes; "
            "two or more are needed, so change min_size or max_size."
        )
    return described(
        components_of_sets(kept, names, n_components, seed), names, kind="gene sets", licence=licence,
        source=", ".join(path.name for path in files), detail=f"{len(kept):,} of {len(sets):,} sets, IDF and SVD",
    )  # fmt: skip


@checked()
def read_gene_sets(path: str | Path) -> dict[str, list[str]]:
    """Read the gene sets of a ``.gmt`` file.

    Parameters
    ----------
    path
        A line for each set, with its name, a description and its genes, between tabs.

    Returns
    -------
    Genes by the name of the set.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or a line is not a gene set.
    """
    return _sets_of(existing(path, "a .gmt file"))


def _sets_of(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    verify_text(path)
    for number, line in enumerate(path.read_text("utf-8-sig").splitlines(), 1):
        if line.strip():
            name, *fields = line.rstrip().split("\t")
            if len(fields) < 2:
                raise ValueError(
                    f"line {number} of {path.name} is not a gene set: name, description and genes are needed."
                )
            members = [gene.strip() for gene in fields[1:] if gene.strip()]
            found[name] = list(dict.fromkeys([*found.get(name, []), *members]))
    if not found:
        raise ValueError(f"{path.name} holds no gene set.")
    return found
