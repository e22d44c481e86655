"""Differential expression of each perturbation against the control cells, exactly as cell-eval runs it."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from typing import TYPE_CHECKING, Literal, cast

from scvi_tahoe.evaluate._differential_expression_gpu import differential_expression_gpu, fits_single_precision

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

    from scvi_tahoe.evaluate._cells import CellTable

__all__ = ["FDR", "LABEL_COLUMN", "available_cores", "contained", "differential_expression", "usable_threads"]

#: genes below this false discovery rate count as differentially expressed, as in cell-eval
FDR = 0.05
#: name of the label column in the objects handed to cell-eval; never seen by users
LABEL_COLUMN = "perturbation"


def differential_expression(
    cells: CellTable,
    *,
    control: str,
    backend: Literal["cpu", "gpu"] = "cpu",
    num_threads: int | None = None,
    progress: bool = False,
) -> pl.DataFrame:
    """Test every gene of every perturbation against the control cells of the same table.

    Two-sided Mann-Whitney U, Benjamini-Hochberg over the genes of each perturbation, fold changes of geometric means:
    pdex with the settings that cell-eval 0.8.2 gives it.

    Parameters
    ----------
    cells
        Cells of one context, controls included, log1p expression.
    control
        Label of the control cells.
    backend
        ``"cpu"`` (pdex) or ``"gpu"`` (gpudge). Float64 values that float32 cannot hold are tested on the CPU in any
        case, with a warning: gpudge ranks float32.
    num_threads
        Threads of what runs on the CPU; ``None`` takes every core that the process may use.
    progress
        Show pdex's progress bar, which tells the time left.

    Returns
    -------
    One row a (perturbation, gene): ``target``, ``feature``, ``log2_fold_change``, ``p_value``, ``fdr`` and more.
    """
    if backend == "gpu" and fits_single_precision(cells):
        return differential_expression_gpu(
            cells, control=control, label_column=LABEL_COLUMN, num_threads=num_threads or available_cores()
        )
    if backend == "gpu":
        warnings.warn(
            "Differential expression runs on the CPU: the expression is float64 with values that float32 cannot hold, "
            "and the GPU ranks float32, where close values would tie. Cast prediction and reference to float32 first.",
            stacklevel=2,
        )
    from pdex import pdex

    adata = cells.to_adata(perturbation_key=LABEL_COLUMN)
    with contained(quiet=not progress):
        table = pdex(
            adata,
            groupby=LABEL_COLUMN,
            mode="ref",
            reference=control,
            threads=usable_threads(num_threads),
            is_log1p=True,  # stated, since pdex would otherwise guess it
            epsilon=0.0,  # cell-eval's choice; pdex's own default differs
        )
    return cast("pl.DataFrame", table)


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

    BLAS runs on one thread: cell-eval calls it once a perturbation on small blocks, where threads only fight.
    """
    import numba
    import scanpy  # noqa: F401  # its log keeps the stderr of its first import, which must not be the one below
    from threadpoolctl import threadpool_limits

    their_log = logging.getLogger("cell_eval")
    with contextlib.ExitStack() as stack:
        # first in, last out: numba's first parallel function sets the threads of OpenMP, and so of PyTorch, too
        stack.enter_context(threadpool_limits(limits=1, user_api="blas"))
        stack.callback(numba.set_num_threads, numba.get_num_threads())
        stack.callback(their_log.setLevel, their_log.level)
        their_log.setLevel(
            logging.ERROR
        )  # it warns of every infinite fold change, which one-sided zeros give as a rule
        if quiet:
            sink = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stderr(sink))
        yield
