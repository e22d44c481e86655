"""The 2026 contract: raw counts, one number of cells for every target in every context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scvi_tahoe.evaluate._cells import cells_from_adata
from scvi_tahoe.evaluate._counts import MAX_TOTAL, check_counts
from scvi_tahoe.evaluate._submission_genes import in_challenge_order

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

    from scvi_tahoe.evaluate._cells import CellTable

__all__ = ["Rules2026", "read_2026", "table_2026", "write_2026"]


@dataclass(frozen=True, kw_only=True)
class Rules2026:
    """Sizes that the challenge of 2026 demands.

    Attributes
    ----------
    n_genes, n_targets, n_contexts
        Genes, targets and contexts.
    cells_per_condition
        Cells of each target in each context.
    max_total
        Most counts of a cell.
    max_stored
        Most non-zero entries of the file.
    """

    n_genes: int = 18_533
    n_targets: int = 300
    n_contexts: int = 3
    cells_per_condition: int = 400
    max_total: int = MAX_TOTAL
    max_stored: int = 4_750_000_000

    def __post_init__(self) -> None:
        wrong = {name: value for name, value in vars(self).items() if value < 1}
        if wrong:
            msg = f"Rules must be positive whole numbers, got {wrong}."
            raise ValueError(msg)


def table_2026(
    prediction: AnnData,
    genes: Sequence[str],
    *,
    perturbation_key: str,
    context_key: str,
    control: str,
    rules: Rules2026,
) -> AnnData:
    """Return the minimal AnnData to submit: CSR counts, two columns, genes in order, no controls.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If a rule is broken.
    """
    from anndata import AnnData

    if len(genes) != rules.n_genes:
        msg = f"The challenge of 2026 has {rules.n_genes:,} genes; the list given has {len(genes):,}."
        raise ValueError(msg)
    cells = cells_from_adata(prediction, perturbation_key=perturbation_key, context_key=context_key, role="prediction")
    cells = in_challenge_order(cells.take(cells.perturbation != control), genes)
    _verify_conditions(cells, rules)
    check = check_counts(cells, role="prediction")
    if check.status == "error":
        msg = f"The submission of 2026 takes raw counts; {check.message}"
        raise ValueError(msg)
    matrix = sp.csr_matrix(cells.expression, dtype=np.float32)
    heaviest = float(matrix.sum(axis=1).max())
    if heaviest > rules.max_total or matrix.nnz > rules.max_stored:
        msg = (
            f"The challenge of 2026 takes at most {rules.max_total:,} counts a cell and {rules.max_stored:,} non-zero "
            f"entries; the prediction has up to {heaviest:,.0f} and {matrix.nnz:,}."
        )
        raise ValueError(msg)
    columns = {"target_gene": pd.Categorical(cells.perturbation), "context": pd.Categorical(cells.context)}
    obs = pd.DataFrame(columns, index=[str(i) for i in range(cells.n_cells)])
    return AnnData(matrix, obs=obs, var=pd.DataFrame(index=pd.Index(list(genes), dtype=object)))


def _verify_conditions(cells: CellTable, rules: Rules2026) -> None:
    targets, contexts = sorted({p for _, p in cells.rows}), cells.contexts
    if (len(targets), len(contexts)) != (rules.n_targets, rules.n_contexts):
        msg = (
            f"The challenge of 2026 has {rules.n_targets} targets in {rules.n_contexts} contexts; the prediction has "
            f"{len(targets)} and {len(contexts)}."
        )
        raise ValueError(msg)
    wrong = [
        (c, p, len(cells.rows.get((c, p), ())))
        for c in contexts
        for p in targets
        if len(cells.rows.get((c, p), ())) != rules.cells_per_condition
    ]
    if wrong:
        context, target, n = wrong[0]
        msg = (
            f"The challenge of 2026 takes {rules.cells_per_condition} cells of every target in every context; "
            f"{len(wrong)} conditions have another number (first: {target!r} in {context!r} has {n})."
        )
        raise ValueError(msg)


def write_2026(table: AnnData, path: Path) -> None:
    """Write the h5ad file."""
    table.write_h5ad(path, compression="gzip")


def read_2026(path: Path) -> AnnData:
    """Read the h5ad file."""
    import anndata

    return anndata.read_h5ad(path)
