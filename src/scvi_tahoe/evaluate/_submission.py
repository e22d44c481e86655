"""The file for the Virtual Cell Challenge 2026: written, read back and verified before it is moved into place."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scvi_tahoe._arguments import checked
from scvi_tahoe.evaluate._cells import align_genes, cells_from_adata
from scvi_tahoe.evaluate._input_checks import MAX_TOTAL, PREDICTION_RECORD, check_counts
from scvi_tahoe.files import atomic_write

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from scvi_tahoe.evaluate._cells import CellTable


@dataclass(frozen=True, kw_only=True)
class Rules2026:
    """Sizes that the challenge of 2026 requires."""

    #: genes, targets and contexts
    n_genes: int = 18_533
    n_targets: int = 300
    n_contexts: int = 3
    #: cells of each target in each context
    cells_per_condition: int = 400
    #: most counts of a cell
    max_total: int = MAX_TOTAL
    #: most non-zero entries of the file
    max_stored: int = 4_750_000_000

    def __post_init__(self) -> None:
        wrong = {name: value for name, value in vars(self).items() if value < 1}
        if wrong:
            raise ValueError(f"Rules must be positive whole numbers, got {wrong}.")


@checked()
def submission(
    prediction: AnnData,
    path: str | os.PathLike[str],
    *,
    year: int,
    genes: Sequence[str],
    perturbation_key: str = "target_gene",
    control: str = "non-targeting",
    context_key: str | None = None,
    n_cells: Mapping[str, int] | None = None,
    rules: Rules2026 | None = None,
) -> Path:
    """Write and verify a submission file for the Virtual Cell Challenge 2026.

    The file holds integer counts, columns ``target_gene`` and ``context`` and no control cells, in the sizes of
    :class:`Rules2026`. It is read back and compared before it gets its final name; an existing file is replaced.

    Parameters
    ----------
    prediction
        Predicted cells, raw counts, as from ``predict(output="counts")``; control cells are left out.
    path
        File to write, ``.h5ad``.
    year
        Challenge: 2026. ``cell-eval prep`` writes the file of 2025.
    genes
        The challenge's genes in its order. Genes of the prediction are reordered; none may be missing or surplus.
    perturbation_key, context_key, control
        Columns of ``obs``, and label of control cells.
    n_cells
        Cells of each perturbation, for 2025 only: 2026 has one number for all, see ``rules``.
    rules
        Sizes required in 2026, if they differ from the published ones.

    Warns
    -----
    UserWarning
        If cells of the prediction are measured ones of other conditions that were moved (``prior="cells"``).

    Raises
    ------
    ValueError
        If the prediction breaks a rule of the challenge, or the year is not 2026; the message says what to do.
    """
    if year == 2025:
        raise ValueError(
            "The file of the challenge of 2025 is written by cell-eval: save the prediction, log1p expression with "
            "control cells, by write_h5ad and run `cell-eval prep -i prediction.h5ad -g genes.csv`."
        )
    if year != 2026:
        raise ValueError(f"There are challenges of 2025 and 2026, none of {year!r}.")
    if context_key is None:
        raise ValueError("The challenge of 2026 scores several contexts: name their column with context_key=...")
    import anndata

    _warn_of_moved_cells(prediction)
    path, rules = Path(path), rules or Rules2026()
    cells = cells_from_adata(prediction, perturbation_key=perturbation_key, context_key=context_key, role="prediction")
    table = _table(cells.take(cells.perturbation != control), genes, rules)
    with atomic_write(path) as partial:
        table.write_h5ad(partial, compression="gzip")
        _verify(anndata.read_h5ad(partial), table)
    return path


def _warn_of_moved_cells(prediction: AnnData) -> None:
    """Warn of cells that are measured ones of another condition, moved: measured data may train, not be submitted."""
    record = prediction.uns.get(PREDICTION_RECORD, {})
    if record.get("cells_from") == "measured":
        warnings.warn(
            "The prediction holds measured cells of other conditions that were moved (prior='cells'). The challenge of "
            "2026 takes predictions of a trained model; read its rules, and predict with prior='response' or 'mean'.",
            UserWarning, stacklevel=3,
        )  # fmt: skip


def _verify(found: AnnData, wanted: AnnData) -> None:
    """Raise an OSError if what was read back differs from what was to be written: the disk is full or broken."""
    same = found.var_names.equals(wanted.var_names) and found.obs.astype(str).equals(wanted.obs.astype(str))
    if not same or abs(found.X - wanted.X).nnz:
        raise OSError("The submission read back differs from what was written; check the disk and write it again.")


def _table(cells: CellTable, genes: Sequence[str], rules: Rules2026) -> AnnData:
    """Return the minimal AnnData to submit: CSR counts over the challenge's genes in its order, two columns."""
    from anndata import AnnData

    if len(genes) != rules.n_genes:
        raise ValueError(f"The challenge of 2026 has {rules.n_genes:,} genes; the list given has {len(genes):,}.")
    wanted = np.asarray(genes, dtype=str)
    if len(np.unique(wanted)) != len(wanted):
        raise ValueError("The list of genes names some more than once.")
    lacking, surplus = np.setdiff1d(wanted, cells.genes), np.setdiff1d(cells.genes, wanted)
    if len(lacking) or len(surplus):
        raise ValueError(
            f"The challenge has {len(wanted)} genes; the prediction lacks {len(lacking)} of them "
            f"(first {list(lacking[:3])}) and has {len(surplus)} others (first {list(surplus[:3])})."
        )
    cells = align_genes(cells, wanted, role="prediction")
    targets, contexts = sorted({p for _, p in cells.rows}), cells.contexts
    if (len(targets), len(contexts)) != (rules.n_targets, rules.n_contexts):
        raise ValueError(
            f"The challenge of 2026 has {rules.n_targets} targets in {rules.n_contexts} contexts; the prediction has "
            f"{len(targets)} and {len(contexts)}."
        )
    n_cells = {(c, p): len(cells.rows.get((c, p), ())) for c in contexts for p in targets}
    wrong = [(c, p, n) for (c, p), n in n_cells.items() if n != rules.cells_per_condition]
    if wrong:
        context, target, n = wrong[0]
        raise ValueError(
            f"The challenge of 2026 takes {rules.cells_per_condition} cells of every target in every context; "
            f"{len(wrong)} conditions have another number (first: {target!r} in {context!r} has {n})."
        )
    check = check_counts(cells, role="prediction")
    if check.status == "error":
        raise ValueError(f"The submission of 2026 takes raw counts; {check.message}")
    matrix = sp.csr_matrix(cells.expression, dtype=np.float32)
    heaviest = float(matrix.sum(axis=1).max())
    if heaviest > rules.max_total or matrix.nnz > rules.max_stored:
        raise ValueError(
            f"The challenge of 2026 takes at most {rules.max_total:,} counts a cell and {rules.max_stored:,} non-zero "
            f"entries; the prediction has up to {heaviest:,.0f} and {matrix.nnz:,}."
        )
    columns = {"target_gene": pd.Categorical(cells.perturbation), "context": pd.Categorical(cells.context)}
    obs = pd.DataFrame(columns, index=[str(i) for i in range(cells.n_cells)])
    return AnnData(matrix, obs=obs, var=pd.DataFrame(index=pd.Index(cells.genes.astype(object))))
