"""Counts from predicted log1p expression: the library sizes of control cells, and no more noise than is missing.

Shapes: **C** cells, **G** genes of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from scvi_tahoe._constants import STREAMS
from scvi_tahoe.data import DiskRows, expression_adata, infer_scale, is_sharded
from scvi_tahoe.prediction._file import csr_of

if TYPE_CHECKING:
    from scvi_tahoe.prediction._request import PredictionData, PredictionPlan

_CHUNK = 1024  # cells made dense in float64 at once


@dataclass(frozen=True)
class ControlCounts:
    """Library sizes of control cells, over the genes of the model; 0 for cells that no prediction starts from.

    Attributes
    ----------
    total_C
        Number of counts of each cell of the data.
    zeros_C
        Fraction of genes without a count in each cell.
    """

    total_C: np.ndarray
    zeros_C: np.ndarray

    @classmethod
    def read(cls, data: PredictionData, rows: np.ndarray, *, layer: str | None) -> ControlCounts:
        """Read the counts of some cells from a layer, or infer them from their log1p expression."""
        keys, screen = data.spec.keys, data.screen
        counts = screen.expression
        if layer is not None:
            layers = expression_adata(data.adata, keys).layers
            if layer not in layers:
                names = [name for name in layers if name is not None]  # anndata 0.13 keeps X among them, without a name
                raise ValueError(f"counts_layer={layer!r} is not in the data; there are the layers {names}.")
            counts = layers[layer]
        if layer is None and infer_scale(counts).scale != "log1p":
            raise ValueError(
                f"output='counts' needs the library sizes of the control cells, and {keys.expression_place} does not "
                "tell them: its values are no multiples of one count. Name the layer with their raw counts: "
                "predict(output='counts', counts_layer=...)."
            )
        if is_sharded(counts):
            counts = DiskRows(counts)
        rows = np.unique(rows)
        total_C, zeros_C = np.zeros(screen.n_cells), np.zeros(screen.n_cells)
        for some in np.array_split(rows, -(-len(rows) // _CHUNK)):
            block = data.alignment.apply(counts[some])
            values = (block.toarray() if sp.issparse(block) else np.asarray(block)).astype(np.float64)
            if layer is None:
                # the smallest non-zero value of a log1p-normalised cell stands for one
                linear = np.expm1(values)
                values = np.round(linear / np.where(linear > 0, linear, np.inf).min(axis=1, keepdims=True))
            elif (values < 0).any() or (values != np.round(values)).any():
                raise ValueError(
                    f"counts_layer={layer!r} holds values that are no counts (e.g. "
                    f"{values[(values < 0) | (values != np.round(values))][0]:.4g}); name the layer with raw counts."
                )
            total_C[some], zeros_C[some] = values.sum(axis=1), (values == 0).mean(axis=1)
        return cls(total_C, zeros_C)


def counts_of_prediction(
    predicted_CG: np.ndarray, plan: PredictionPlan, controls: ControlCounts
) -> tuple[sp.csr_matrix, dict[str, int]]:
    """Turn predicted log1p expression into counts.

    Each predicted cell gets the library size of the control cell that it started from. Where the prediction was built
    on other cells than its control (``prior="cells"``), whose depth is not that of the control, the library sizes of
    the condition are handed out in the order of the number of expressed genes, so that shallow cells stay shallow.

    Predicted cells that look like cells are rounded at random, up with the probability of the fraction: means are kept
    and next to no noise is added. Cells that look like means, without the zeros of real ones, are drawn from a Poisson
    distribution. Of the two, each condition takes the one after which its share of zeros is nearer to that of the
    control cells.

    Returns
    -------
    Counts, int32, and how many conditions were ``"rounded"`` and how many drawn (``"poisson"``).
    """
    blocks, sampling, start = [], {"rounded": 0, "poisson": 0}, 0
    for request in plan.requests:
        cells_CG = predicted_CG[start : start + len(request.controls)]
        start += len(request.controls)
        total_C = controls.total_C[request.controls]
        if request.residual_input is not None:
            order = np.lexsort((total_C, np.count_nonzero(cells_CG > 0, axis=1)))
            total_C = np.sort(total_C)[np.argsort(order)]
        rng = np.random.default_rng((*request.seed, STREAMS.PREDICTED_CELLS))
        zeros = float(controls.zeros_C[request.controls].mean())
        poisson = _lacks_noise(_rates(cells_CG[:_CHUNK], total_C[:_CHUNK]), zeros)
        sampling["poisson" if poisson else "rounded"] += 1
        for first in range(0, len(cells_CG), _CHUNK):
            rate_CG = _rates(cells_CG[first : first + _CHUNK], total_C[first : first + _CHUNK])
            if poisson:
                counts_CG = rng.poisson(rate_CG)
            else:
                whole_CG = np.floor(rate_CG)
                counts_CG = whole_CG + (rng.random(rate_CG.shape) < rate_CG - whole_CG)
            blocks.append(csr_of(counts_CG.astype(np.int32)))
    return sp.vstack(blocks, format="csr"), sampling


def _rates(expression_CG: np.ndarray, total_C: np.ndarray) -> np.ndarray:
    """Return expected counts: the composition of each predicted cell times its library size."""
    linear_CG = np.expm1(np.maximum(expression_CG, 0).astype(np.float64))
    sum_C = linear_CG.sum(axis=1)
    return linear_CG * (total_C / np.where(sum_C > 0, sum_C, 1))[:, None]


def _lacks_noise(rate_CG: np.ndarray, zeros: float) -> bool:
    """Return whether Poisson draws give a share of zeros nearer to the wanted one than rounding does."""
    after_rounding, after_poisson = np.maximum(1 - rate_CG, 0).mean(), np.exp(-rate_CG).mean()
    return bool(abs(after_poisson - zeros) < abs(after_rounding - zeros))
