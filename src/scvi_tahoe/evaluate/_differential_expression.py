"""Differential expression of each perturbation against the control cells, exactly as cell-eval runs it.

On the CPU by pdex, on a GPU by gpudge, with fold changes equal to those of pdex to the last bit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import scipy.sparse as sp

from scvi_tahoe._messages import progress_bar, warn
from scvi_tahoe.evaluate._cells import RowSelection, concatenate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeAlias

    import polars as pl
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable

    _Vector: TypeAlias = NDArray[np.floating[Any]]

Backend = Literal["auto", "cpu", "gpu"]
BACKENDS: tuple[Backend, ...] = ("auto", "cpu", "gpu")

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
        table = differential_expression_gpu(whole, control=control, num_threads=num_threads or available_cores())
        return table.select(DE_COLUMNS)
    if backend == "gpu":
        warn(
            "Differential expression runs on the CPU: the expression is float64 with values that float32 cannot hold, "
            "and the GPU ranks float32, where close values would tie. Cast prediction and reference to float32 first."
        )
    if controls is None and isinstance(cells.expression, RowSelection):
        (context,) = cells.contexts
        controls = cells.take(cells.rows[context, control])
    if controls is None:
        with contained(quiet=not progress):
            return _tested(cells.to_adata(perturbation_key=LABEL_COLUMN), control, num_threads)
    import polars as pl

    bar = progress_bar(
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
    """Rows of consecutive perturbations, sorted by label, and how many perturbations they are."""
    (context,) = cells.contexts
    # copying the controls costs next to nothing compared with ranking them for each perturbation anew
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


def chosen_backend(wanted: Backend) -> Literal["cpu", "gpu"]:
    """Resolve where differential expression is tested; ``"auto"`` is the GPU if there are gpudge and a CUDA device."""
    if wanted not in BACKENDS:
        raise ValueError(f"de_backend={wanted!r} is unknown; allowed are {', '.join(map(repr, BACKENDS))}.")
    if wanted == "cpu":
        return "cpu"
    installed = find_spec("gpudge") is not None
    if installed:
        import torch  # gpudge runs on it; imported only if gpudge is installed

        if torch.cuda.is_available():
            return "gpu"
    if wanted == "auto":
        return "cpu"
    if not installed:
        raise ImportError('de_backend="gpu" runs on gpudge, which is not installed: pip install "scvi-tahoe[gpu]".')
    raise RuntimeError('de_backend="gpu" needs a CUDA device, and torch finds none here; use de_backend="cpu".')


def fits_single_precision(cells: CellTable) -> bool:
    """Whether every value is a float32: gpudge ranks in that precision, where values close in float64 become ties."""
    single = cells.expression.dtype == np.float32
    return single or bool(np.array_equal(cells.values, cells.values.astype(np.float32)))


def differential_expression_gpu(cells: CellTable, *, control: str, num_threads: int = 1) -> pl.DataFrame:
    """Run the same test as on the CPU by gpudge, with the control cells in the same table.

    Fold changes are computed as pdex computes them; gpudge would take the values for ones without a logarithm.
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
                cells.to_adata(perturbation_key=LABEL_COLUMN),
                groupby=LABEL_COLUMN,
                reference=control,
                # all at once; if memory does not suffice, gpudge halves the genes of a pass
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


def fold_changes(
    cells: CellTable, targets: Sequence[str], *, control: str, num_threads: int = 1
) -> NDArray[np.float64]:
    """Log2 fold change of every gene, ``[P, G]``; infinite if only one side has the gene, 0 if neither has.

    Every step is in the precision in which pdex takes it (means and ``expm1`` in that of the matrix, ratios in float64)
    and in its compiled form: numpy's own ``expm1`` differs from it in the last bit on some processors.
    """
    (context,) = cells.contexts
    mean_of_rows, expm1, log2_ratio = _compiled()
    matrix = cells.expression
    is_csr = isinstance(matrix, sp.csr_matrix | sp.csr_array) and matrix.dtype.kind == "f"

    def geometric_mean(label: str) -> _Vector:
        rows = cells.rows[context, label]
        if not is_csr:
            # of a copy, as in pdex: the order of a sum depends on how the matrix lies in memory
            return expm1(np.asarray(matrix[rows].mean(axis=0)).ravel())
        # what scipy does, without its copies
        share = matrix.dtype.type(1.0 / len(rows))
        return expm1(mean_of_rows(matrix.data, matrix.indices, matrix.indptr, rows, len(cells.genes), share))

    reference = geometric_mean(control)
    with ThreadPoolExecutor(max_workers=max(num_threads, 1)) as pool:  # compiled code lets go of the interpreter
        changes = pool.map(lambda label: log2_ratio(geometric_mean(label), reference), targets)
        return np.stack([*changes]) if len(targets) else np.empty((0, len(cells.genes)))


@lru_cache(maxsize=1)
def _compiled() -> tuple[Callable[..., _Vector], ...]:
    import numba

    @numba.njit(nogil=True)
    def mean_of_rows(values, columns, ends, rows, n_columns, share):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        result = np.zeros(n_columns, values.dtype)
        for row in rows:
            for i in range(ends[row], ends[row + 1]):
                result[columns[i]] += values[i] * share
        return result

    @numba.njit(nogil=True)
    def expm1(values):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        result = np.empty_like(values)
        for i in range(len(values)):
            result[i] = np.expm1(values[i])
        return result

    @numba.njit(nogil=True, error_model="numpy")
    def log2_ratio(target, reference):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        result = np.empty(len(target), dtype=np.float64)
        for i in range(len(target)):
            ratio = np.log2(np.float64(target[i]) / np.float64(reference[i]))
            result[i] = 0.0 if np.isnan(ratio) else ratio
        return result

    return mean_of_rows, expm1, log2_ratio
