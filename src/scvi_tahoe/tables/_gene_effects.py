"""Genes by what cell lines lose without them: a table of gene effects of DepMap."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe._arguments import checked
from scvi_tahoe.files import read_csv
from scvi_tahoe.tables._table import described, existing, largest_components

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

_SYMBOL = re.compile(r"(\S+) \(\d+\)")  # DepMap writes "STAT1 (6772)"
_MOST_MISSING = 0.2


@checked()
def gene_effects(
    path: str | Path, *, n_components: int = 64, licence: str | None = None, seed: int = 0
) -> pd.DataFrame:
    """Make a table of genes from the effects of their knock-out on the growth of many cell lines.

    Effects of each gene are standardised over cell lines, so that genes that matter in the same lines are similar,
    whatever the strength (co-essentiality, Wainberg et al. 2021). The mean of each line is removed; the largest
    components are kept.

    Parameters
    ----------
    path
        ``CRISPRGeneEffect.csv`` of DepMap or the like: a row for each cell line, named in the first column, and a
        column for each gene (``STAT1 (6772)`` or ``STAT1``).
    n_components
        Maximum number of columns.
    licence
        Licence of the effects, kept with the table.
    seed
        Random seed of the decomposition.

    Returns
    -------
    DataFrame ``[genes, components]``. Genes without a value in more than a fifth of the lines, or with the same in all,
    are left out.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it is no table of numbers.
    """
    path = existing(path, "a table of gene effects")
    effects = read_csv(path, index_col=0)
    try:
        effects = effects.astype(np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path.name} is not a table of gene effects, cell lines x genes of numbers: {error}"
        ) from None
    effects.columns = [match[1] if (match := _SYMBOL.fullmatch(str(c))) else str(c) for c in effects.columns]
    effects = effects.loc[:, ~effects.columns.duplicated()]
    known = (effects.isna().mean() <= _MOST_MISSING) & (effects.std() > 0)
    kept = effects.loc[:, known]
    if kept.shape[1] < 3 or len(kept) < 3:
        raise ValueError(
            f"{path.name} has {len(kept)} cell lines and {kept.shape[1]} usable genes; 3 of each are needed."
        )
    standard = ((kept - kept.mean()) / kept.std()).fillna(0).to_numpy().T
    standard -= standard.mean(0)
    return described(
        largest_components(standard, n_components, seed), list(kept.columns), kind="gene effects", source=path.name,
        licence=licence, detail=f"{len(kept):,} cell lines; {effects.shape[1] - kept.shape[1]:,} genes left out",
    )  # fmt: skip
