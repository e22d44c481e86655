"""Files for the Virtual Cell Challenges: written, read back and verified before they take their name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scvi_tahoe.evaluate._submission_2025 import read_2025, table_2025, write_2025
from scvi_tahoe.evaluate._submission_2026 import Rules2026, read_2026, table_2026, write_2026
from scvi_tahoe.files import atomic_write

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from anndata import AnnData

__all__ = ["submission"]


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
    """Write the file that a Virtual Cell Challenge takes, and verify it.

    The file appears under its name only after it was read back and found equal; one that is there already is replaced.

    Parameters
    ----------
    prediction
        Predicted cells; stays as it is. 2025: log1p expression, with control cells (real ones may be used). 2026: raw
        counts, as from ``predict(output="counts")``; control cells are left out.
    path
        File to write: ``.vcc`` for 2025, ``.h5ad`` for 2026.
    year
        Challenge, 2025 or 2026.
    genes
        The challenge's genes in its order. Genes of the prediction are brought into it; each must be there, and no
        other.
    perturbation_key, context_key
        Columns of ``obs``; 2026 needs a context.
    control
        Label of control cells.
    n_cells
        Cells wanted of each perturbation; ``None`` does not check (2025 only; 2026 has one number for all).
    rules
        Sizes that 2026 demands, other than the published ones.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If the prediction breaks a rule of the challenge; the message says which.

    Notes
    -----
    2025: the contract of ``cell-eval prep`` 0.8.2, and what that leaves out: finite values on the log1p scale, no
    stored zeros, the perturbations and their numbers of cells. 2026: 18,533 genes in order, 400 cells for each of 300
    targets in each of 3 contexts, whole counts, at most 1,000,000 in a cell and 4.75e9 stored in all, columns
    ``target_gene`` and ``context``, no control rows.
    """
    if year == 2025:
        table = table_2025(prediction, genes, perturbation_key=perturbation_key, control=control, n_cells=n_cells)
        return _place(Path(path), lambda file: write_2025(table, file), lambda file: _verify(read_2025(file), table))
    if year == 2026:
        if context_key is None:
            msg = "The challenge of 2026 scores several contexts: name their column with context_key=..."
            raise ValueError(msg)
        table = table_2026(
            prediction,
            genes,
            perturbation_key=perturbation_key,
            context_key=context_key,
            control=control,
            rules=rules or Rules2026(),
        )
        return _place(Path(path), lambda file: write_2026(table, file), lambda file: _verify(read_2026(file), table))
    msg = f"There are challenges of 2025 and 2026, none of {year!r}."
    raise ValueError(msg)


def _place(path: Path, write: Callable[[Path], None], verify: Callable[[Path], None]) -> Path:
    """Write beside the final place, verify, rename; nothing is left behind on failure."""
    with atomic_write(path) as partial:
        write(partial)
        verify(partial)
    return path


def _verify(found: AnnData, wanted: AnnData) -> None:
    """Compare what was read back with what was to be written.

    Raises
    ------
    OSError
        If they differ: the disk is full or broken.
    """
    same = (
        found.shape == wanted.shape
        and list(found.var_names) == list(wanted.var_names)
        and found.obs.astype(str).equals(wanted.obs.astype(str))
        and abs(found.X - wanted.X).nnz == 0
    )
    if not same:
        msg = "The submission read back differs from what was written; check the disk and write it again."
        raise OSError(msg)
