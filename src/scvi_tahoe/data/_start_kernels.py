"""Start cells of a minibatch on a GPU, in two Triton kernels. Imported only where a GPU runs them.

S sets, N cells, G genes, K contexts, L levels, C conditions. At 18,080 genes, plain torch operations read and write the
cells of a step some fifteen times, which takes a sixth of a training step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

_ROWS, _GENES = 8, 128
#: seeds of 31 bits: with others, Triton would compile the kernel anew in the middle of a run
_SEEDS = 2**31 - 1
LARGEST_HALF = tl.constexpr(6e4)


def moved_cells(
    control_SNG: Tensor,
    condition_S: Tensor,
    context_S: Tensor,
    *,
    change_CG: Tensor,
    ratio_CG: Tensor,
    levels_KLG: Tensor,
    seed: int,
    out: Tensor,
) -> Tensor:
    """Let cells begin or cease to express genes, and scale the values.

    Parameters
    ----------
    control_SNG
        Control cells.
    condition_S, context_S
        Condition and context of each set.
    change_CG
        Where positive, share of the cells without the gene that begin to express it; where negative, share of the
        others that cease.
    ratio_CG
        What all values are scaled by.
    levels_KLG
        Values that a cell may begin with.
    seed
        Random seed.
    out
        Where the cells go, of the shape of the controls.

    Returns
    -------
    Sums of ``expm1`` over some genes of each cell, ``(S, N, blocks)``.
    """
    control_SNG = control_SNG.contiguous()
    n_sets, n_cells, n_genes = control_SNG.shape
    n_blocks = triton.cdiv(n_genes, _GENES)
    sums_SNB = torch.empty(n_sets, n_cells, n_blocks, dtype=torch.float32, device=control_SNG.device)
    with torch.cuda.device(control_SNG.device):
        _move[(n_blocks, n_sets)](
            control_SNG, condition_S, context_S, change_CG, ratio_CG, levels_KLG, out, sums_SNB, seed & _SEEDS, n_cells,
            n_genes, N_LEVELS=levels_KLG.shape[1], ROWS=_ROWS, GENES=_GENES, num_warps=4,
        )  # fmt: skip
    return sums_SNB


def scaled_to_totals(cells_SNG: Tensor, factor_SN: Tensor) -> Tensor:
    """Scale cells, of which values are ``log1p``, by factors, and genes back to their means in a set; in place."""
    n_sets, n_cells, n_genes = cells_SNG.shape
    with torch.cuda.device(cells_SNG.device):
        _rescale[(triton.cdiv(n_genes, _GENES), n_sets)](
            cells_SNG, factor_SN.contiguous(), n_cells, n_genes, ROWS=4 * _ROWS, GENES=_GENES, num_warps=4
        )
    return cells_SNG


# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: ANN001, ANN202, PLR0913


@triton.jit(do_not_specialize=["seed"])
def _move(
    control, condition, context, change, ratio, levels, out, sums, seed, n_cells, n_genes,
    N_LEVELS: tl.constexpr, ROWS: tl.constexpr, GENES: tl.constexpr,
):  # fmt: skip
    of_set = tl.program_id(1)
    gene = tl.program_id(0) * GENES + tl.arange(0, GENES)
    real = gene < n_genes
    row_of_condition = tl.load(condition + of_set).to(tl.int64) * n_genes
    levels += tl.load(context + of_set).to(tl.int64) * N_LEVELS * n_genes
    share = tl.load(change + row_of_condition + gene, mask=real, other=0.0)
    scale = tl.load(ratio + row_of_condition + gene, mask=real, other=0.0)
    begins, ceases = tl.maximum(share, 0.0)[None, :], tl.maximum(-share, 0.0)[None, :]
    first = of_set.to(tl.int64) * n_cells
    for begin in range(0, n_cells, 4 * ROWS):
        cell = begin + tl.arange(0, ROWS)
        # four numbers a call, for four rows
        draws = tl.rand4x(seed + of_set, cell[:, None] * n_genes + gene[None, :])
        for k in tl.static_range(4):
            row = cell + k * ROWS
            here = (row < n_cells)[:, None] & real[None, :]
            place = (first + row)[:, None] * n_genes + gene[None, :]
            draw = draws[k]
            value = tl.load(control + place, mask=here, other=0.0).to(tl.float32)
            enters = (value <= 0) & (draw < begins) & here
            # below that share the draw is uniform: it also chooses the level
            level = tl.minimum((draw / tl.maximum(begins, 1e-9) * N_LEVELS).to(tl.int32), N_LEVELS - 1)
            new = tl.load(levels + level * n_genes + gene[None, :], mask=enters, other=0.0)
            value = tl.where(value > 0, tl.where(draw < ceases, 0.0, value), new) * scale[None, :]
            if out.dtype.element_ty == tl.float16:
                value = tl.minimum(value, LARGEST_HALF)
            tl.store(out + place, value.to(out.dtype.element_ty), mask=here)
            counts = tl.where(here, tl.exp(value) - 1.0, 0.0)
            block = (first + row) * tl.num_programs(0) + tl.program_id(0)
            tl.store(sums + block, tl.sum(counts, 1), mask=row < n_cells)


@triton.jit
def _rescale(cells, factor, n_cells, n_genes, ROWS: tl.constexpr, GENES: tl.constexpr):
    of_set = tl.program_id(1)
    gene = tl.program_id(0) * GENES + tl.arange(0, GENES)
    first = of_set.to(tl.int64) * n_cells
    before, after = tl.zeros((GENES,), tl.float32), tl.zeros((GENES,), tl.float32)
    for begin in range(0, n_cells, ROWS):
        row = begin + tl.arange(0, ROWS)
        here = (row < n_cells)[:, None] & (gene < n_genes)[None, :]
        place = (first + row)[:, None] * n_genes + gene[None, :]
        value = tl.load(cells + place, mask=here, other=0.0).to(tl.float32)
        scale = tl.load(factor + first + row, mask=row < n_cells, other=1.0)
        before += tl.sum(value, 0)
        after += tl.sum(tl.log(1.0 + (tl.exp(value) - 1.0) * scale[:, None]), 0)
    back = tl.where(after > 0, before / tl.maximum(after, 1e-9), 0.0)
    for begin in range(0, n_cells, ROWS):
        row = begin + tl.arange(0, ROWS)
        here = (row < n_cells)[:, None] & (gene < n_genes)[None, :]
        place = (first + row)[:, None] * n_genes + gene[None, :]
        value = tl.load(cells + place, mask=here, other=0.0).to(tl.float32)
        scale = tl.load(factor + first + row, mask=row < n_cells, other=1.0)
        value = tl.log(1.0 + (tl.exp(value) - 1.0) * scale[:, None]) * back[None, :]
        tl.store(cells + place, value.to(cells.dtype.element_ty), mask=here)
