"""What makes training steps fast without changing what they compute: compiled parts, products of 16-bit numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from scvi_tahoe._module import TahoeSTModule

#: what compiling takes and saves of a step, and how fast an eager step computes, as seen on an H100
_COMPILE_SECONDS, _SAVED_SHARE, _OPERATIONS_PER_SECOND = 25.0, 0.2, 2.5e14
#: compiling must save this many times what it takes
_WORTH = 2.0


def compiling_pays(device: torch.device, *, n_parameters: int, cells_per_step: int, n_steps: int) -> bool:
    """Return whether a run is so long that compiling the network saves more time than it takes.

    A step computes about six operations for each parameter and cell (two forwards, four backwards).
    """
    if device.type != "cuda":
        return False
    seconds = 6.0 * n_parameters * cells_per_step * n_steps / _OPERATIONS_PER_SECOND
    return seconds * _SAVED_SHARE > _WORTH * _COMPILE_SECONDS


class Acceleration:
    """Makes a module fast for the steps of a training run, and restores it.

    Parameters
    ----------
    module
        What is trained.
    compiles
        Compile blocks, encoders and head for training steps. Validation stays as it is: its last minibatch has
        another shape.
    """

    def __init__(self, module: TahoeSTModule, *, compiles: bool) -> None:
        self._module = module
        parts = self._parts() if compiles else ()
        self._compiled = [(part, torch.compile(part.forward, dynamic=False)) for part in parts]
        self._splits_for_ddp: Any = None

    def _parts(self) -> Iterator[nn.Module]:
        network = self._module.network
        yield from network.backbone.blocks
        yield from (part for part in (network.control_encoder, network.base_encoder, network.head) if part is not None)

    def begin(self, precision: str, device: torch.device) -> None:
        """Start a run in one of Lightning's precisions."""
        in_16_bits = precision.startswith(("bf16", "16"))
        self._module.objective.matmul_dtype = torch.float16 if in_16_bits and device.type == "cuda" else torch.float32
        if self._compiled:
            # several devices exchange the gradients of a part while the next is computed; torch would also split each
            # part for that, which costs more than it brings: see the two cards in benchmarks/README.md
            self._splits_for_ddp = torch._dynamo.config.optimize_ddp
            torch._dynamo.config.optimize_ddp = False
        self.resume()

    def pause(self) -> None:
        """Run eagerly for a while."""
        for part, _ in self._compiled:
            part.__dict__.pop("forward", None)

    def resume(self) -> None:
        """Run compiled again."""
        for part, forward in self._compiled:
            part.forward = forward

    def end(self) -> None:
        """Restore the module."""
        self.pause()
        if self._splits_for_ddp is not None:
            torch._dynamo.config.optimize_ddp, self._splits_for_ddp = self._splits_for_ddp, None
        self._module.objective.matmul_dtype = torch.float32


class AsyncScalar:
    """A number being copied from the device; reading it later does not make the device wait."""

    def __init__(self, value: Tensor) -> None:
        self._value, self._arrived = value.detach(), None
        if value.is_cuda:
            self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value.copy_(value.detach(), non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def __float__(self) -> float:
        if self._arrived is not None:
            self._arrived.synchronize()
        return float(self._value)
