"""Differential expression of each perturbation against the control cells, exactly as cell-eval runs it."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from tqdm.auto import tqdm

from scvi_tahoe.evaluate._cells import SelectedRows, concatenate
from scvi_tahoe.evaluate._differential_expression_gpu import differential_expression_gpu, fits_single_precision

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable

#: genes below this false discovery rate count as differentially expressed, as in cell-eval
FDR = 0.05
#: label column of the objects passed to cell-eval; users do not see it
LABEL_COLUMN = "perturbation"
#: columns that are kept; the others would take half of the memory of the table
DE_COLUMNS = ("target", "feature", "log2_fold_change", "p_value", "fdr")
#: cells that are tested at once if the controls come from another table
_BLOCK = 1024


def differential_expression(
    cells: CellTable,
    *,
    control: str,
    controls: CellTable | None = None,
    backend: Literal["cpu", "gpu"] = "cpu",
    num_threads: int | None = None,
    progress: bool = False,
) -> pl.DataFrame:
    """Test every gene of every perturbation of one context against the control cells.

    Two-sided Mann-Whitney U, Benjamini-Hochberg over the genes of each perturbation, fold changes of geometric means:
    pdex with the settings that cell-eval 0.8.2 gives it, on the CPU, or gpudge on the GPU. Float64 values that float32
    cannot hold are tested on the CPU in any case, with a warning: gpudge ranks float32.
    """
    if backend == "gpu" and all(fits_single_precision(side) for side in (cells, controls) if side is not None):
        whole = cells if controls is None else concatenate(controls, cells, cells.perturbation != control)
        table = differential_expression_gpu(
            whole, control=control, label_column=LABEL_COLUMN, num_threads=num_threads or available_cores()
        )
        return table.select(DE_COLUMNS)
    if backend == "gpu":
        warnings.warn(
            "Differential expression runs on the CPU: the expression is float64 with values that float32 cannot hold, "
            "and the GPU ranks float32, where close values would tie. Cast prediction and reference to float32 first.",
            stacklevel=2,
        )
    if controls is None and isinstance(cells.expression, SelectedRows):
        (context,) = cells.contexts
        controls = cells.take(cells.rows[context, control])
    if controls is None:
        with contained(quiet=not progress):
            return _tested(cells.to_adata(perturbation_key=LABEL_COLUMN), control, num_threads)
    import polars as pl

    bar = tqdm(
        total=len(np.unique(cells.perturbation[cells.perturbation != control])),
        desc="Differential expression",
        unit="perturbation",
        file=sys.stderr,  # as it is outside of what keeps pdex quiet
        disable=not progress,
    )
    tables = []
    with bar, contained():
        for rows, n_perturbations in _blocks(cells, control=control, n_controls=controls.n_cells):
            block = concatenate(controls, cells, rows).to_adata(perturbation_key=LABEL_COLUMN)
            tables.append(_tested(block, control, num_threads))
            del block  # before the next one is made
            bar.update(n_perturbations)
    return pl.concat(tables)


def _tested(adata: AnnData, control: str, num_threads: int | None) -> pl.DataFrame:
    """Run pdex with cell-eval's settings."""
    from pdex import pdex

    table = pdex(
        adata,
        groupby=LABEL_COLUMN,
        mode="ref",
        reference=control,
        threads=usable_threads(num_threads),
        is_log1p=True,  # stated, since pdex would otherwise guess it
        epsilon=0.0,  # cell-eval's choice; pdex's own default differs
    )
    return cast("pl.DataFrame", table).select(DE_COLUMNS)


def _blocks(cells: CellTable, *, control: str, n_controls: int) -> Iterator[tuple[NDArray[np.intp], int]]:
    """Rows of consecutive perturbations, sorted by label, and how many perturbations they are.

    Large enough that copying the controls costs next to nothing compared with ranking them for each perturbation anew.
    """
    (context,) = cells.contexts
    enough = max(_BLOCK, n_controls // 4)
    waiting: list[NDArray[np.intp]] = []
    for perturbation in cells.perturbations(context, control=control):
        waiting.append(cells.rows[context, perturbation])
        if sum(map(len, waiting)) >= enough:
            yield np.concatenate(waiting), len(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting), len(waiting)


def available_cores() -> int:
    """Cores that this process may use, which a scheduler can limit below the machine's number."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_threads(wanted: int | None) -> int:
    """Threads for numba: those wanted or every core, at most what it was started with, beyond which it raises."""
    from numba import config

    started_with: int = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    return min(wanted or available_cores(), started_with)


@contextlib.contextmanager
def contained(*, quiet: bool = True) -> Iterator[None]:
    """Run third-party evaluation code without leaving traces: thread settings are restored, progress bars kept quiet.

    BLAS runs on one thread: cell-eval calls it once per perturbation on small blocks, where threads only fight.
    """
    import numba
    import scanpy  # noqa: F401  # its log keeps the stderr of its first import, which must not be the one below
    from threadpoolctl import threadpool_limits

    with contextlib.ExitStack() as stack:
        # first in, last out: numba's first parallel function sets the threads of OpenMP, and so of PyTorch, too
        stack.enter_context(threadpool_limits(limits=1, user_api="blas"))
        stack.callback(numba.set_num_threads, numba.get_num_threads())
        # they warn of every infinite fold change, which one-sided zeros give as a rule, and of what is in our checks
        for log in (logging.getLogger("cell_eval"), logging.getLogger("cell_eval2")):
            stack.callback(log.setLevel, log.level)
            log.setLevel(logging.ERROR)
        if quiet:
            sink = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stderr(sink))
        yield
