"""Passes over cells on a GPU in 16 bits, each in one Triton kernel per direction.

Imported only where a GPU runs it. Between the matrix products of a network, plain torch operations read and write the
same cells many times; compiling the network would avoid that too, after a wait of seconds.

Shapes: **R** rows (cells of all sets), **D** hidden width, **I** width of the feed-forward, **G** genes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from torch import Tensor

#: programs that share the rows of a backward norm; each adds up the gradient of the weight over its rows
_PROGRAMS = 528
_BLOCK = 1024


class RMSNormed(torch.autograd.Function):
    """Root-mean-square norm of ``(..., D)`` in 16 bits times a float32 weight ``(D,)``; sums in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:  # type: ignore[override]
        """Return ``weight * x / sqrt(mean(x**2) + epsilon)`` in the precision of ``x``."""
        x, width = x.contiguous(), x.shape[-1]
        y, scale_R = torch.empty_like(x), torch.empty(x.numel() // width, dtype=torch.float32, device=x.device)
        with torch.cuda.device(x.device):
            _norm[(len(scale_R),)](
                x, weight_D, y, scale_R, width, epsilon, BLOCK=triton.next_power_of_2(width), num_warps=8
            )
        ctx.save_for_backward(x, weight_D, scale_R)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """Return the gradients of the cells, and of the weight if it trains."""
        x, weight_D, scale_R = ctx.saved_tensors
        trains, n = bool(ctx.needs_input_grad[1]), min(_PROGRAMS, len(scale_R))
        down = torch.empty_like(x)
        parts = torch.empty(n if trains else 1, x.shape[-1], dtype=torch.float32, device=x.device)
        with torch.cuda.device(x.device):
            _norm_backward[(n,)](
                gradient.contiguous(), x, weight_D, scale_R, down, parts, len(scale_R), x.shape[-1],
                TRAINS=trains, BLOCK=triton.next_power_of_2(x.shape[-1]), num_warps=8,
            )  # fmt: skip
        return down, parts.sum(0).to(weight_D.dtype) if trains else None, None


class GatedSilu(torch.autograd.Function):
    """``silu(gate) * up`` of ``(..., 2 I)`` in 16 bits, which holds gate and up side by side."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:  # type: ignore[override]
        """Return the product, ``(..., I)``."""
        gate_up, width = gate_up.contiguous(), gate_up.shape[-1] // 2
        y = gate_up.new_empty(*gate_up.shape[:-1], width)
        with torch.cuda.device(y.device):
            _gate[(y.numel() // width, triton.cdiv(width, _BLOCK))](gate_up, y, width, BLOCK=_BLOCK, num_warps=4)
        ctx.save_for_backward(gate_up)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradients of gate and up, side by side."""
        (gate_up,) = ctx.saved_tensors
        width, down = gate_up.shape[-1] // 2, torch.empty_like(gate_up)
        with torch.cuda.device(down.device):
            _gate_backward[(gradient.numel() // width, triton.cdiv(width, _BLOCK))](
                gradient.contiguous(), gate_up, down, width, BLOCK=_BLOCK, num_warps=4
            )
        return down


class ChangedCells(torch.autograd.Function):
    """Cells ``(..., G)`` plus a change in 16 bits, optionally of expressed genes only and rectified; in float32."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, change: Tensor, keeps_zeros: bool, rectifies: bool) -> Tensor:  # type: ignore[override]
        """Return the changed cells in float32."""
        base, change = base.contiguous(), change.contiguous()
        ctx.options = {"KEEPS": keeps_zeros, "RECTIFIES": rectifies, "BLOCK": _BLOCK, "num_warps": 4}
        y = torch.empty_like(base, dtype=torch.float32)
        with torch.cuda.device(y.device):
            _change[(triton.cdiv(y.numel(), _BLOCK),)](base, change, y, y.numel(), **ctx.options)
        ctx.save_for_backward(base, change)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None]:
        """Return the gradient of the change; that of the cells, which nothing trains, is not computed."""
        base, change = ctx.saved_tensors
        down = torch.empty_like(change)
        with torch.cuda.device(down.device):
            _change_backward[(triton.cdiv(down.numel(), _BLOCK),)](
                gradient.contiguous(), base, change, down, down.numel(), **ctx.options
            )
        return None, down, None, None


def converted(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return numbers in another precision."""
    x = x.contiguous()
    y = torch.empty_like(x, dtype=dtype)
    with torch.cuda.device(y.device):
        _convert[(triton.cdiv(y.numel(), 4 * _BLOCK),)](x, y, y.numel(), BLOCK=4 * _BLOCK, num_warps=8)
    return y


# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: ANN001, ANN202


@triton.jit
def _convert(x, y, n, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + place, mask=place < n, other=0.0).to(tl.float32)
    tl.store(y + place, value.to(y.dtype.element_ty), mask=place < n)


@triton.jit
def _norm(x, weight, y, scale, width, epsilon, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    here = column < width
    value = tl.load(x + row * width + column, mask=here, other=0.0)
    wide = value.to(tl.float32)
    factor = tl.rsqrt(tl.sum(wide * wide, 0) / width + epsilon)
    # rounded before the weight is applied, as torch operations do it
    normed = (wide * factor).to(value.dtype).to(tl.float32) * tl.load(weight + column, mask=here, other=0.0)
    tl.store(y + row * width + column, normed.to(value.dtype), mask=here)
    tl.store(scale + row, factor)


@triton.jit
def _norm_backward(
    gradient, x, weight, scale, down, parts, n_rows, width, TRAINS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    column = tl.arange(0, BLOCK)
    here = column < width
    of_weight = tl.load(weight + column, mask=here, other=0.0)
    total = tl.zeros((BLOCK,), tl.float32)
    for number in range(tl.program_id(0), n_rows, tl.num_programs(0)):
        row = number.to(tl.int64)  # type: ignore[attr-defined]
        value = tl.load(x + row * width + column, mask=here, other=0.0)
        factor = tl.load(scale + row)
        normed = value.to(tl.float32) * factor
        pull = tl.load(gradient + row * width + column, mask=here, other=0.0).to(tl.float32)
        if TRAINS:
            total += pull * normed
        pull *= of_weight
        pull = factor * (pull - normed * (tl.sum(pull * normed, 0) / width))
        tl.store(down + row * width + column, pull.to(value.dtype), mask=here)
    if TRAINS:
        tl.store(parts + tl.program_id(0).to(tl.int64) * width + column, total, mask=here)


@triton.jit
def _gate(gate_up, y, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = column < width
    first = tl.load(gate_up + row * 2 * width + column, mask=here, other=0.0)
    gate = first.to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, mask=here, other=0.0).to(tl.float32)
    opened = (gate * tl.sigmoid(gate)).to(first.dtype).to(tl.float32)
    tl.store(y + row * width + column, (opened * up).to(first.dtype), mask=here)


@triton.jit
def _gate_backward(gradient, gate_up, down, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = column < width
    first = tl.load(gate_up + row * 2 * width + column, mask=here, other=0.0)
    gate = first.to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, mask=here, other=0.0).to(tl.float32)
    pull = tl.load(gradient + row * width + column, mask=here, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    of_gate = pull * up * share * (1.0 + gate * (1.0 - share))
    tl.store(down + row * 2 * width + column, of_gate.to(first.dtype), mask=here)
    tl.store(down + row * 2 * width + width + column, (pull * gate * share).to(first.dtype), mask=here)


@triton.jit
def _change(base, change, y, n, KEEPS: tl.constexpr, RECTIFIES: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = place < n
    start = tl.load(base + place, mask=here, other=0.0).to(tl.float32)
    moved = tl.load(change + place, mask=here, other=0.0).to(tl.float32)
    if KEEPS:
        moved = tl.where(start > 0, moved, 0.0)
    value = start + moved
    if RECTIFIES:
        value = tl.where(value < 0, 0.0, value)  # a comparison, which lets NaN pass
    tl.store(y + place, value, mask=here)


@triton.jit
def _change_backward(
    gradient, base, change, down, n, KEEPS: tl.constexpr, RECTIFIES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = place < n
    pull = tl.load(gradient + place, mask=here, other=0.0).to(tl.float32)
    start = tl.load(base + place, mask=here, other=0.0).to(tl.float32)
    moved = tl.load(change + place, mask=here, other=0.0)
    if KEEPS:
        pull = tl.where(start > 0, pull, 0.0)
        value = start + tl.where(start > 0, moved.to(tl.float32), 0.0)
    else:
        value = start + moved.to(tl.float32)
    if RECTIFIES:
        pull = tl.where(value < 0, 0.0, pull)
    tl.store(down + place, pull.to(moved.dtype), mask=here)
