"""AdamW (Loshchilov & Hutter 2019) with clipping and rounding, one pass over a weight on a GPU, and norms before it.

Imported only where a GPU runs it.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_BLOCK, _LONG_BLOCK = 2048, 8192


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the norm of all numbers of several tensors, in float32; torch rounds that of 16-bit tensors."""
    ends = [*accumulate(triton.cdiv(x.numel(), _LONG_BLOCK) for x in tensors)]
    squares = torch.empty(ends[-1], dtype=torch.float32, device=tensors[0].device)
    with torch.cuda.device(squares.device):
        for first, end, x in zip([0, *ends], ends, tensors, strict=False):
            _squares[(end - first,)](x.contiguous(), squares[first:], x.numel(), BLOCK=_LONG_BLOCK, num_warps=8)
    return squares.sum().sqrt()


def adamw(
    weight: Tensor,
    rounded: Tensor,
    gradient: Tensor,
    average: Tensor,
    square: Tensor,
    step: Tensor,
    factor: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Update a float32 weight, its averages and its rounded copy in place, on the current device.

    Parameters
    ----------
    weight, rounded
        The weight, and its copy in the precision of products.
    gradient
        Its gradient, in any precision.
    average, square
        Averages of the gradient and of its square, float32.
    step
        Number of this step, from 1, a float32 scalar on the device.
    factor
        What the gradient is multiplied with, a float32 scalar on the device.
    lr, betas, eps, weight_decay
        As in :class:`torch.optim.AdamW`.
    """
    n = weight.numel()
    _adamw[(triton.cdiv(n, _BLOCK),)](
        weight, rounded, gradient.contiguous(), average, square, step, factor, n,
        float(lr), float(betas[0]), float(betas[1]), float(eps), float(weight_decay), BLOCK=_BLOCK, num_warps=8,
    )  # fmt: skip


# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: ANN001, ANN202, PLR0913


@triton.jit
def _squares(x, squares, n, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + place, mask=place < n, other=0.0).to(tl.float32)
    tl.store(squares + tl.program_id(0), tl.sum(value * value, 0))


@triton.jit
def _adamw(
    weight, rounded, gradient, average, square, step, factor, n, lr, beta1, beta2, eps, weight_decay,
    BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = place < n
    pull = tl.load(gradient + place, mask=here, other=0.0).to(tl.float32) * tl.load(factor)
    mean = tl.load(average + place, mask=here, other=0.0)
    mean += (1.0 - beta1) * (pull - mean)
    spread = beta2 * tl.load(square + place, mask=here, other=0.0) + (1.0 - beta2) * pull * pull
    time = tl.load(step)
    correction1 = 1.0 - tl.exp(time * tl.log(beta1))
    correction2 = 1.0 - tl.exp(time * tl.log(beta2))
    value = tl.load(weight + place, mask=here, other=0.0) * (1.0 - lr * weight_decay)
    value -= (lr / correction1) * mean / (tl.sqrt(spread) / tl.sqrt(correction2) + eps)
    tl.store(average + place, mean, mask=here)
    tl.store(square + place, spread, mask=here)
    tl.store(weight + place, value, mask=here)
    tl.store(rounded + place, value.to(rounded.dtype.element_ty), mask=here)
