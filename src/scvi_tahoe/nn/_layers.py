"""Layers that know what a GPU computes fast in 16 bits: widths of its matrix units, and several operations in one pass.

What they return is what the plain operations return, up to the rounding of 16 bits.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

_RMS_EPSILON = 1e-6
#: the matrix units load 16 bytes at a time; a row of 16-bit numbers that does not start there is read several times
#: slower, and numbers of genes are rarely multiples of 8
_STEP = 8


def runs_in_16_bits(x: Tensor) -> bool:
    """Return whether products with ``x`` are computed by a GPU in 16 bits."""
    return x.is_cuda and torch.is_autocast_enabled("cuda")


def rounded_to_products(x: Tensor) -> Tensor:
    """Return data in the precision in which a GPU multiplies them now."""
    if not runs_in_16_bits(x):
        return x
    dtype = torch.get_autocast_dtype("cuda")
    if x.dtype == torch.float16 and dtype == torch.bfloat16 and _by_kernels(x) and not x.requires_grad:
        from scvi_tahoe.nn._fused_kernels import converted

        return converted(x, dtype)  # three times as fast as torch from one kind of 16 bits to the other
    return x.to(dtype)


def more_to_align(width: int) -> int:
    """Return the number of columns missing to the next multiple of 8, at which matrix units are fast."""
    return -width % _STEP


def widened(x: Tensor, width: int) -> Tensor:
    """Pad ``x`` with columns of zeros up to ``width``."""
    more = width - x.shape[-1]
    return F.pad(x, (0, more)) if more else x


class AlignedLinear(nn.Linear):
    """``nn.Linear``, whose 16-bit products on a GPU run on widths padded with zeros to multiples of 8.

    Parameters and results are those of ``nn.Linear``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` mapped to ``out_features``."""
        if not (more_to_align(self.in_features) or more_to_align(self.out_features)) or not runs_in_16_bits(x):
            return super().forward(x)
        weight, bias = self.aligned(torch.get_autocast_dtype(x.device.type))
        return F.linear(widened(x, weight.shape[1]), weight, bias)[..., : self.out_features]

    def aligned(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias in ``dtype``, both widths padded with zeros to multiples of 8."""
        more_in, more_out = more_to_align(self.in_features), more_to_align(self.out_features)
        # rounded before they are padded: half the bytes
        weight, bias = self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype)
        if more_out:  # joined to rows, whose gradient needs no copy then
            weight = torch.cat((weight, weight.new_zeros(more_out, self.in_features)))
            bias = None if bias is None else F.pad(bias, (0, more_out))
        return F.pad(weight, (0, more_in)) if more_in else weight, bias


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019), computed in float32 for inputs of any precision."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``weight * x / sqrt(mean(x**2) + 1e-6)`` over the last dimension."""
        if _by_kernels(x):
            from scvi_tahoe.nn._fused_kernels import RMSNormed

            return RMSNormed.apply(x, self.weight, _RMS_EPSILON)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + _RMS_EPSILON)
        return self.weight * wide.to(x.dtype)


def gated_silu(gate_up: Tensor) -> Tensor:
    """Return ``silu(gate) * up`` of what holds both side by side."""
    if _by_kernels(gate_up):
        from scvi_tahoe.nn._fused_kernels import GatedSilu

        return GatedSilu.apply(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def changed_cells(base: Tensor, change: Tensor, *, keeps_zeros: bool, rectifies: bool) -> Tensor:
    """Return ``base + change``, optionally with its zeros kept and negative values set to zero."""
    # bfloat16 and one of these add up to float32
    wide = change.dtype == torch.bfloat16 and base.dtype in (torch.float32, torch.float16)
    if wide and _by_kernels(change) and not base.requires_grad and base.shape == change.shape:
        from scvi_tahoe.nn._fused_kernels import ChangedCells

        return ChangedCells.apply(base, change, keeps_zeros, rectifies)
    changed = base + (change * (base > 0) if keeps_zeros else change)
    return rectified(changed) if rectifies else changed


def rectified(cells: Tensor) -> Tensor:
    """Set negative values to zero.

    Unlike relu, this passes the gradient on at exactly zero. An untrained delta head predicts exactly zero wherever
    the control is zero, and has to be able to switch such a gene on.
    """
    # clamp would do the same, in a backward pass of two operations
    number = torch.finfo(cells.dtype)
    return F.threshold(cells, -number.tiny * number.eps, 0.0)


def _by_kernels(x: Tensor) -> bool:
    """Return whether one Triton kernel takes the place of several operations on ``x``; compiling fuses them itself."""
    halved = x.dtype in (torch.bfloat16, torch.float16)
    return halved and runs_in_16_bits(x) and not torch.compiler.is_compiling() and have_triton()


@cache
def have_triton() -> bool:
    """Return whether Triton is installed, as it is with torch for CUDA on Linux."""
    return find_spec("triton") is not None
