"""Differential expression on a GPU: gpudge's rank sums, with fold changes equal to those of pdex to the last bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    import polars as pl
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable

    _Vector: TypeAlias = NDArray[np.floating[Any]]

Backend = Literal["auto", "cpu", "gpu"]
BACKENDS: tuple[Backend, ...] = ("auto", "cpu", "gpu")


def chosen_backend(wanted: Backend) -> Literal["cpu", "gpu"]:
    """Resolve where differential expression is tested: by pdex on the CPU, or by gpudge on the GPU.

    ``"auto"`` is the GPU if gpudge is installed and there is a CUDA device.
    """
    if wanted not in BACKENDS:
        raise ValueError(f"de_backend={wanted!r} is unknown; allowed are {', '.join(map(repr, BACKENDS))}.")
    if wanted == "cpu":
        return "cpu"
    installed = find_spec("gpudge") is not None
    if installed and _has_device():
        return "gpu"
    if wanted == "auto":
        return "cpu"
    if not installed:
        raise ImportError('de_backend="gpu" runs on gpudge, which is not installed: pip install "scvi-tahoe[gpu]".')
    raise RuntimeError('de_backend="gpu" needs a CUDA device, and torch finds none here; use de_backend="cpu".')


def _has_device() -> bool:
    import torch  # gpudge runs on it; imported only if gpudge is installed

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
    """Test every gene of every perturbation of one context against the control cells of the same table, on the GPU.

    The same test as on the CPU: two-sided Mann-Whitney U with correction for ties and continuity, Benjamini-Hochberg
    over the genes of each perturbation. Fold changes are computed here on the CPU, as pdex computes them, so that ranks
    by fold change do not depend on the backend; gpudge would take the values for ones without a logarithm.
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
    and in its compiled form: numpy's own ``expm1`` differs from it in the last bit on some processors. Genes that are
    close would otherwise swap ranks between backends.
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
        return expm1(mean_of_rows(matrix.data, matrix.indices, matrix.indptr, rows, cells.n_genes, share))

    reference = geometric_mean(control)
    with ThreadPoolExecutor(max_workers=max(num_threads, 1)) as pool:  # compiled code lets go of the interpreter
        changes = pool.map(lambda label: log2_ratio(geometric_mean(label), reference), targets)
        return np.stack([*changes]) if len(targets) else np.empty((0, cells.n_genes))


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
