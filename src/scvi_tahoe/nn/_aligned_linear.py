"""A linear layer that keeps a GPU's matrix units fast at any width."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

#: the matrix units load 16 bytes at a time; a row of 16-bit numbers that does not start there is read several times
#: slower, and numbers of genes are rarely multiples of 8
_STEP = 8


def runs_in_16_bits(x: Tensor) -> bool:
    """Return whether products with ``x`` are computed by a GPU in 16 bits."""
    return x.is_cuda and torch.is_autocast_enabled("cuda")


def more_to_align(width: int) -> int:
    """Return how many columns are missing to the next multiple of 8."""
    return -width % _STEP


def widened(x: Tensor, width: int) -> Tensor:
    """Return ``x`` with columns of zeros up to ``width``."""
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
        if not (more_in or more_out):
            return weight, bias
        return F.pad(weight, (0, more_in, 0, more_out)), None if bias is None else F.pad(bias, (0, more_out))
