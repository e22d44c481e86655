"""The 2025 contract: log1p expression in a compressed archive, as cell-eval's ``prep`` makes it."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scvi_tahoe.evaluate._cell_profile import cell_profile
from scvi_tahoe.evaluate._cells import cells_from_adata
from scvi_tahoe.evaluate._check import EvaluationWarning
from scvi_tahoe.evaluate._submission_genes import in_challenge_order
from scvi_tahoe.evaluate._value_checks import check_integers, check_range, clipped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

__all__ = ["MAX_CELLS", "read_2025", "table_2025", "write_2025"]

#: most cells that the challenge takes
MAX_CELLS = 200_000
#: genes of its panel; as for cell-eval's ``prep``, another number is told and not refused
N_GENES = 18_080
#: column that it expects
_COLUMN = "target_gene"
#: content of the file by which it knows a prepared submission
_WATERMARK = "vcc-prep"


def table_2025(
    prediction: AnnData,
    genes: Sequence[str],
    *,
    perturbation_key: str,
    control: str,
    n_cells: Mapping[str, int] | None,
) -> AnnData:
    """Return the minimal AnnData to submit: CSR float32 expression, one column, genes in order.

    Raises
    ------
    KeyError
        If the column is missing.
    ValueError
        If a rule is broken.
    """
    from anndata import AnnData

    cells = cells_from_adata(prediction, perturbation_key=perturbation_key, role="prediction")
    cells = in_challenge_order(cells, genes)
    for check in (check_range(cells, role="prediction"), check_integers(cell_profile(cells), role="prediction")):
        if check.status == "error":
            msg = f"The submission of 2025 takes log1p expression; {check.message}"
            raise ValueError(msg)
    if cells.n_cells > MAX_CELLS:
        msg = f"The challenge of 2025 takes at most {MAX_CELLS:,} cells; the prediction has {cells.n_cells:,}."
        raise ValueError(msg)
    if cells.n_genes != N_GENES:
        message = f"the challenge of 2025 scores {N_GENES:,} genes, and this file has {cells.n_genes:,}."
        warnings.warn(message, EvaluationWarning, stacklevel=3)
    labels, numbers = np.unique(cells.perturbation, return_counts=True)
    found = dict(zip(map(str, labels), map(int, numbers)))
    if control not in found:
        msg = (
            f"The submission of 2025 needs control cells labelled {control!r}; append the real ones to the prediction."
        )
        raise ValueError(msg)
    if n_cells is not None:
        _verify_numbers(*({p: n for p, n in side.items() if p != control} for side in (found, n_cells)))
    matrix = sp.csr_matrix(clipped(cells).expression, dtype=np.float32)
    obs = pd.DataFrame({_COLUMN: pd.Categorical(cells.perturbation)}, index=[str(i) for i in range(cells.n_cells)])
    return AnnData(matrix, obs=obs, var=pd.DataFrame(index=pd.Index(list(genes), dtype=object)))


def _verify_numbers(found: Mapping[str, int], wanted: Mapping[str, int]) -> None:
    wrong = sorted(p for p in {*found, *wanted} if found.get(p, 0) != wanted.get(p, 0))
    if wrong:
        first = wrong[0]
        msg = (
            f"{len(wrong)} perturbations have another number of cells than wanted; the first, {first!r}, has "
            f"{found.get(first, 0)} instead of {wanted.get(first, 0)}."
        )
        raise ValueError(msg)


def write_2025(table: AnnData, path: Path) -> None:
    """Write a ``.vcc`` archive: the h5ad, compressed by zstandard, and a watermark, in a tar file."""
    import pyarrow as pa

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        h5ad, compressed, mark = (Path(folder) / name for name in ("pred.h5ad", "pred.h5ad.zst", "watermark.txt"))
        table.write_h5ad(h5ad)
        with open(h5ad, "rb") as source, pa.CompressedOutputStream(str(compressed), "zstd") as sink:
            shutil.copyfileobj(source, sink)
        mark.write_text(_WATERMARK)
        with tarfile.open(path, "w") as archive:
            for part in (compressed, mark):
                archive.add(part, arcname=part.name)


def read_2025(path: Path) -> AnnData:
    """Read a ``.vcc`` archive.

    Raises
    ------
    ValueError
        If it is no prepared submission.
    """
    import anndata
    import pyarrow as pa

    with tempfile.TemporaryDirectory() as folder, tarfile.open(path) as archive:
        names = sorted(archive.getnames())
        if names != ["pred.h5ad.zst", "watermark.txt"]:
            msg = f"{path} is no submission of 2025: it holds {names}."
            raise ValueError(msg)
        archive.extractall(folder, filter="data")
        h5ad = Path(folder) / "pred.h5ad"
        with pa.CompressedInputStream(f"{h5ad}.zst", "zstd") as source, open(h5ad, "wb") as sink:
            shutil.copyfileobj(source, sink)
        return anndata.read_h5ad(h5ad)
