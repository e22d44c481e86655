"""The energy distance's passes over cells and distances on a GPU, each in one Triton kernel.

Imported only where a GPU runs it. What plain torch operations do one after the other is bound by memory: at 18,080
genes they read and write the cells three times as often.

Shapes: **S** sets, **N** predicted and **M** observed cells of a set, **C** = M + N, **G** genes, **P** = G rounded up
to what the matrix units load at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from scvi_tahoe.nn._layers import more_to_align

if TYPE_CHECKING:
    from torch import Tensor

#: any centre does, as distances do not change when both sets are moved; the mean of a few cells is close enough to all
_CENTRE_OF = 32
_BLOCK = 2048


def centred_cells(x_SNG: Tensor, y_SMG: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """Observed, then predicted cells less a centre of their set, float16 ``[S, C, P]``; squared lengths ``[S, C]``."""
    (n_sets, n, n_genes), m = x_SNG.shape, y_SMG.shape[1]
    width = n_genes + more_to_align(n_genes)
    centre_SG = y_SMG[:, :_CENTRE_OF].mean(1, dtype=torch.float32)
    cells_SCP = torch.empty(n_sets, m + n, width, dtype=torch.float16, device=y_SMG.device)
    square_SC = torch.empty(n_sets, m + n, dtype=torch.float32, device=y_SMG.device)
    with torch.cuda.device(y_SMG.device):
        for cells, first in ((y_SMG.contiguous(), 0), (x_SNG.contiguous(), m)):
            rows = cells.shape[1]
            _centre[(n_sets * rows,)](
                cells, centre_SG, cells_SCP, square_SC, rows, m + n, first, n_genes, width, limit,
                BLOCK=_BLOCK, num_warps=8,
            )  # fmt: skip
    return cells_SCP, square_SC


def distances(product_SRC: Tensor, square_SC: Tensor, *, first: int, split: int, rounding: float, keep: bool) -> Tensor:
    """Euclidean distances in the memory of the products, and their sums over each row.

    Returns
    -------
    float32 ``[S, R, 2]``: sums over the columns before ``split`` and from there on.
    """
    n_sets, n_rows, n_columns = product_SRC.shape
    sums_SR2 = torch.empty(n_sets, n_rows, 2, dtype=torch.float32, device=product_SRC.device)
    with torch.cuda.device(product_SRC.device):
        _distance[(n_sets * n_rows,)](
            product_SRC, square_SC, sums_SR2, n_rows, n_columns, square_SC.shape[1], first, split, rounding,
            KEEP=keep, BLOCK=triton.next_power_of_2(n_columns), num_warps=4,
        )  # fmt: skip
    return sums_SR2


def pull_weights(distance_SNC: Tensor, *, n_observed: int, across: float, within: float) -> tuple[Tensor, Tensor]:
    """How strongly every cell pulls on each predicted one, float16 ``[S, N, C]``, and a scale of each row, ``[S, N]``.

    Half of a row's scale is the sum of its absolute weights: what is pulled then fits into float16 wherever cells do.
    """
    n_sets, n, c = distance_SNC.shape
    weight_SNC = torch.empty(n_sets, n, c, dtype=torch.float16, device=distance_SNC.device)
    scale_SN = torch.empty(n_sets, n, dtype=torch.float32, device=distance_SNC.device)
    with torch.cuda.device(distance_SNC.device):
        _pull[(n_sets * n,)](
            distance_SNC, weight_SNC, scale_SN, n, c, n_observed, across, within,
            BLOCK=triton.next_power_of_2(c), num_warps=4,
        )  # fmt: skip
    return weight_SNC, scale_SN


def scaled_rows(
    pulled_SNP: Tensor, scale_SN: Tensor, n_genes: int, dtype: torch.dtype, *, shift_SG: Tensor | None = None
) -> Tensor:
    """Rows times their scale, plus the shift of their set: ``[S, N, G]`` of another type.

    Columns that only fill up are left out. The rows are overwritten where their memory suffices.
    """
    n_sets, n, width = pulled_SNP.shape
    if width == n_genes and pulled_SNP.element_size() == dtype.itemsize:
        out_SNG = pulled_SNP.view(dtype)  # in place
    else:
        out_SNG = torch.empty(n_sets, n, n_genes, dtype=dtype, device=pulled_SNP.device)
    shift = scale_SN if shift_SG is None else shift_SG.contiguous()
    with torch.cuda.device(pulled_SNP.device):
        _scale[(n_sets * n,)](
            pulled_SNP, scale_SN.contiguous(), shift, out_SNG, n, n_genes, width, SHIFTS=shift_SG is not None,
            BLOCK=_BLOCK, num_warps=8,
        )  # fmt: skip
    return out_SNG


# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: ANN001, ANN202


@triton.jit
def _centre(
    cells, centre, out, square, n_rows, n_cells, first, n_genes, width, limit, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    set_number = row // n_rows
    target = set_number * n_cells + first + row % n_rows
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, width, BLOCK):
        gene = begin + lane
        real = gene < n_genes
        value = tl.load(cells + row * n_genes + gene, mask=real, other=0.0).to(tl.float32)
        value -= tl.load(centre + set_number * n_genes + gene, mask=real, other=0.0)
        # comparisons, which let NaN pass
        value = tl.where(value > limit, limit, tl.where(value < -limit, -limit, value))
        rounded = value.to(tl.float16)
        tl.store(out + target * width + gene, rounded, mask=gene < width)
        wide = rounded.to(tl.float32)
        total += wide * wide
    tl.store(square + target, tl.sum(total, 0))


@triton.jit
def _distance(
    product, square, sums, n_rows, n_columns, n_cells, first, split, rounding, KEEP: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    set_number, cell = row // n_rows, first + row % n_rows
    column = tl.arange(0, BLOCK)
    here = column < n_columns
    length = tl.load(square + set_number * n_cells + cell)
    length += tl.load(square + set_number * n_cells + column, mask=here, other=0.0)
    place = product + row * n_columns + column
    squared = length - 2.0 * tl.load(place, mask=here, other=0.0)
    distance = tl.sqrt(tl.where(squared <= rounding * length, 0.0, squared))
    distance = tl.where(here & (column != cell), distance, 0.0)
    if KEEP:
        tl.store(place, distance, mask=here)
    tl.store(sums + 2 * row, tl.sum(tl.where(column < split, distance, 0.0), 0))
    tl.store(sums + 2 * row + 1, tl.sum(tl.where(column < split, 0.0, distance), 0))


@triton.jit
def _pull(distance, weight, scale, n, c, n_observed, across, within, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    here = column < c
    d = tl.load(distance + row * c + column, mask=here, other=0.0)
    # nothing pulls on a cell where the distance is zero
    pull = tl.where(d > 0, 1.0 / d, 0.0) * tl.where(column < n_observed, -across, within)
    row_scale = 2.0 * tl.sum(tl.abs(pull), 0)
    row_scale = tl.where(row_scale > 0, row_scale, 1.0)
    rounded = (pull / row_scale).to(tl.float16)
    # from the rounded weights, so that moving all cells still changes nothing
    own = -tl.sum(rounded.to(tl.float32), 0)
    rounded = tl.where(column == n_observed + row % n, own.to(tl.float16), rounded)
    tl.store(weight + row * c + column, rounded, mask=here)
    tl.store(scale + row, row_scale)


@triton.jit
def _scale(pulled, scale, shift, out, n, n_genes, width, SHIFTS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(scale + row)
    lane = tl.arange(0, BLOCK)
    for begin in range(0, n_genes, BLOCK):
        gene = begin + lane
        real = gene < n_genes
        value = tl.load(pulled + row * width + gene, mask=real, other=0.0).to(tl.float32) * factor
        if SHIFTS:
            value += tl.load(shift + row // n * n_genes + gene, mask=real, other=0.0)
        tl.store(out + row * n_genes + gene, value.to(out.dtype.element_ty), mask=real)
