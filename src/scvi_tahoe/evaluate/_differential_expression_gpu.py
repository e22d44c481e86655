"""Differential expression on a GPU: gpudge's rank sums, with the fold changes of the CPU path."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable

__all__ = ["BACKENDS", "Backend", "chosen_backend", "differential_expression_gpu"]

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


def differential_expression_gpu(cells: CellTable, *, control: str, label_column: str) -> pl.DataFrame:
    """Test every gene of every perturbation against the control cells of the same table, on the GPU.

    Parameters
    ----------
    cells
        Cells of one context, controls included, log1p expression.
    control
        Label of the control cells.
    label_column
        Column of the labels in the object handed to gpudge.

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

    table = cast(
        "pl.DataFrame",
        gpudge.de(
            cells.to_adata(perturbation_key=label_column),
            groupby=label_column,
            reference=control,
            output_columns={"target": "target", "feature": "feature", "p_value": "p_value", "p_adj": "fdr"},
        ),
    )
    (context,) = cells.contexts
    reference = _geometric_mean(cells, context, control)
    targets = table["target"].unique(maintain_order=True).to_list()
    changes = [_log2_ratio(_geometric_mean(cells, context, target), reference) for target in targets]
    folds = pl.DataFrame(
        {
            "target": np.repeat(targets, cells.n_genes),
            "feature": np.tile(cells.genes, len(targets)),
            "log2_fold_change": np.concatenate(changes),
        }
    )
    return table.join(folds, on=["target", "feature"], how="left", maintain_order="left")


def _geometric_mean(cells: CellTable, context: str, label: str) -> NDArray[np.float64]:
    """Mean in the precision of the matrix, as pdex takes it; everything after it in float64."""
    return np.expm1(np.asarray(cells.block(context, label).mean(axis=0)).ravel().astype(np.float64))


def _log2_ratio(target: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Infinite where only one side has the gene, 0 where neither has."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(np.log2(target / reference), nan=0.0, posinf=np.inf, neginf=-np.inf)
