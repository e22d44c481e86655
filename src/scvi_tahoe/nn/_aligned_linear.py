"""A linear layer that keeps a GPU's matrix units fast at any width."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AlignedLinear"]

#: the matrix units load 16 bytes at a time; a row of 16-bit numbers that does not start there is read several times
#: slower, and numbers of genes are rarely multiples of 8
_STEP = 8


class AlignedLinear(nn.Linear):
    """``nn.Linear``, whose 16-bit products on a GPU run on widths padded with zeros to multiples of 8.

    Parameters and results are those of ``nn.Linear``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` mapped to ``out_features``."""
        more_in, more_out = -self.in_features % _STEP, -self.out_features % _STEP
        if not (more_in or more_out) or not (x.is_cuda and torch.is_autocast_enabled("cuda")):
            return super().forward(x)
        weight = F.pad(self.weight, (0, more_in, 0, more_out))
        bias = None if self.bias is None else F.pad(self.bias, (0, more_out))
        return F.linear(F.pad(x, (0, more_in)), weight, bias)[..., : self.out_features]
