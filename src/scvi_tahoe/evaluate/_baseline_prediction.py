"""Baselines by name, as AnnData that can be evaluated, plotted and compared like a model's prediction."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from scvi_tahoe.evaluate import _baselines, _embedding_baselines
from scvi_tahoe.evaluate._alignment import align_genes
from scvi_tahoe.evaluate._baseline_task import baseline_task
from scvi_tahoe.evaluate._cells import cells_from_adata
from scvi_tahoe.evaluate._perturbation_embedding import embedding_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import ArrayLike

    from scvi_tahoe.evaluate._baseline_task import BaselineTask
    from scvi_tahoe.evaluate._cells import CellTable

__all__ = ["BASELINES", "EMBEDDING_BASELINES", "baseline_cells", "baseline_prediction"]

_BY_NAME: dict[str, Callable[[BaselineTask, int], CellTable]] = {
    "control": _baselines.no_change,
    "train_mean": _baselines.train_mean,
    "train_mean_pooled": _baselines.train_mean_pooled,
    "context_transfer": _baselines.context_transfer,
    "cells_shifted": _baselines.cells_shifted,
    "cells_quantile": _baselines.cells_quantile,
    "ridge": _embedding_baselines.ridge,
    "nearest": _embedding_baselines.nearest,
}
#: those that need perturbation embeddings
EMBEDDING_BASELINES = ("ridge", "nearest")
#: names that ``baseline=...`` and :func:`baseline_prediction` take
BASELINES: tuple[str, ...] = tuple(_BY_NAME)


def baseline_cells(name: str, task: BaselineTask, *, seed: int = 0) -> CellTable:
    """Cells that a baseline predicts for a task; :func:`baseline_prediction` is the same for AnnData.

    Raises
    ------
    ValueError
        If there is no baseline of that name, or it needs training data that the task does not have.
    """
    if name not in _BY_NAME:
        msg = f"There is no baseline {name!r}; choose one of {list(BASELINES)}."
        raise ValueError(msg)
    return _BY_NAME[name](task, seed)


def baseline_prediction(
    name: str,
    held_out: AnnData,
    train: AnnData | None = None,
    *,
    perturbation_key: str,
    control: str,
    context_key: str | None = None,
    perturbation_embedding: Mapping[str, ArrayLike] | pd.DataFrame | tuple[Sequence[str], ArrayLike] | None = None,
    layer: str | None = None,
    seed: int = 0,
) -> AnnData:
    """Return the cells that a simple baseline predicts for the held-out conditions.

    Of ``held_out`` only the control cells and the number of cells of each condition are used.

    Parameters
    ----------
    name
        One of :data:`BASELINES`:

        * ``"control"`` - control cells as they are
        * ``"train_mean"`` - control cells plus the mean training delta of their context
        * ``"train_mean_pooled"`` - plus the mean training delta of all contexts
        * ``"context_transfer"`` - plus the perturbation's own mean delta in other contexts
        * ``"cells_shifted"`` - its cells of other contexts, shifted by the control means
        * ``"cells_quantile"`` - its cells of other contexts, moved through the quantiles of the controls
        * ``"ridge"`` - plus a ridge regression of training deltas on perturbation embeddings
        * ``"nearest"`` - plus the mean delta of the five perturbations of most similar embedding
    held_out
        Cells with the conditions to predict and the controls of their contexts; log1p expression.
    train
        Training data; every baseline but ``"control"`` needs it.
    perturbation_key, context_key
        Columns of ``obs`` in both objects.
    control
        Label of control cells.
    perturbation_embedding
        Vector of each perturbation, for ``"ridge"`` and ``"nearest"``: ``{label: vector}``, a DataFrame with labels as
        index, or a pair of labels and matrix.
    layer
        Layer with the expression in both objects; ``None`` is ``X``.
    seed
        Seed of the cells drawn.

    Returns
    -------
    AnnData with float32 expression, ``[cells, genes]``, and the two label columns.
    """
    read = partial(cells_from_adata, perturbation_key=perturbation_key, context_key=context_key, layer=layer)
    cells = read(held_out, role="reference")
    known = None
    if train is not None:
        known = align_genes(read(train, role="training data"), cells.genes, role="training data")
    embeddings = None if perturbation_embedding is None else embedding_rows(perturbation_embedding)
    task = baseline_task(cells, known, control=control, embeddings=embeddings)
    predicted = baseline_cells(name, task, seed=seed)
    return predicted.to_adata(perturbation_key=perturbation_key, context_key=context_key)
