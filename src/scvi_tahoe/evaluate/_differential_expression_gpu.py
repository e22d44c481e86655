"""Differential expression on a GPU: gpudge's rank sums, with the fold changes of the CPU path."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import scipy.sparse as sp

from scvi_tahoe.evaluate._fold_changes import fold_changes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable

__all__ = ["BACKENDS", "Backend", "chosen_backend", "differential_expression_gpu", "fits_single_precision"]

Backend = Literal["auto", "cpu", "gpu"]
BACKENDS: tuple[Backend, ...] = ("auto", "cpu", "gpu")


def chosen_backend(wanted: Backend) -> Literal["cpu", "gpu"]:
    """Resolve where differential expression is tested.

    Parameters
    ----------
    wanted
        ``"cpu"`` (pdex), ``"gpu"`` (gpudge), or ``"auto"``: the GPU if gpudge is installed and there is a CUDA device.

    Raises
    ------
    ImportError
        If ``"gpu"`` is wanted and gpudge is not installed.
    RuntimeError
        If ``"gpu"`` is wanted and there is no CUDA device.
    ValueError
        If there is no such backend.
    """
    if wanted not in BACKENDS:
        msg = f"de_backend={wanted!r} is unknown; allowed are {', '.join(map(repr, BACKENDS))}."
        raise ValueError(msg)
    if wanted == "cpu":
        return "cpu"
    installed = find_spec("gpudge") is not None
    if installed and _has_device():
        return "gpu"
    if wanted == "auto":
        return "cpu"
    if not installed:
        msg = 'de_backend="gpu" runs on gpudge, which is not installed: pip install "scvi-tahoe[gpu]".'
        raise ImportError(msg)
    msg = 'de_backend="gpu" needs a CUDA device, and torch finds none here; use de_backend="cpu".'
    raise RuntimeError(msg)


def _has_device() -> bool:
    import torch  # what gpudge runs on; asked only where gpudge is installed

    return torch.cuda.is_available()


def fits_single_precision(cells: CellTable) -> bool:
    """Whether every value is a float32: gpudge ranks in that precision, where values close in float64 become ties."""
    matrix = cells.expression
    if matrix.dtype == np.float32:
        return True
    values = matrix.data if sp.issparse(matrix) else np.asarray(matrix)
    return bool(np.array_equal(values, values.astype(np.float32)))


def differential_expression_gpu(
    cells: CellTable, *, control: str, label_column: str, num_threads: int = 1
) -> pl.DataFrame:
    """Test every gene of every perturbation against the control cells of the same table, on the GPU.

    Parameters
    ----------
    cells
        Cells of one context, controls included, log1p expression that :func:`fits_single_precision`.
    control
        Label of the control cells.
    label_column
        Column of the labels in the object handed to gpudge.
    num_threads
        Threads of the fold changes, which are taken on the CPU.

    Returns
    -------
    One row a (perturbation, gene): ``target``, ``feature``, ``log2_fold_change``, ``p_value``, ``fdr``.

    Notes
    -----
    The same test as on the CPU: two-sided Mann-Whitney U with correction for ties and continuity, Benjamini-Hochberg
    over the genes of each perturbation. Fold changes are taken here, as pdex takes them, so that ranks by fold change
    do not depend on the backend; gpudge would take them for values without a logarithm.
    """
    import gpudge
    import polars as pl

    (context,) = cells.contexts
    targets = cells.perturbations(context, control=control)
    with (
        np.errstate(divide="ignore", invalid="ignore"),  # of gpudge's own fold changes, which nobody sees
        ThreadPoolExecutor(max_workers=1) as pool,
    ):
        # on some cores, while gpudge keeps the GPU busy with the others
        threads = max(1, num_threads // 4)
        changes = pool.submit(fold_changes, cells, targets, control=control, num_threads=threads)
        table = cast(
            "pl.DataFrame",
            gpudge.de(
                cells.to_adata(perturbation_key=label_column),
                groupby=label_column,
                reference=control,
                # all at once where memory allows; where it does not, gpudge halves the genes of a pass
                gpu_gene_chunk_size=len(cells.genes),
                output_columns={"target": "target", "feature": "feature", "p_value": "p_value", "p_adj": "fdr"},
            ),
        )
    found = changes.result()[_places(table, targets, cells.genes)]
    return table.with_columns(log2_fold_change=pl.Series(found, dtype=pl.Float64))


def _places(table: pl.DataFrame, targets: Sequence[str], genes: NDArray[np.str_]) -> Any:
    """Where each row of the table is in an array of targets by genes."""
    import polars as pl

    # as numbers: a join would make the strings once more
    return tuple(
        table[name].cast(pl.Enum(list(labels))).to_physical().to_numpy()
        for name, labels in (("target", targets), ("feature", genes))
    )
