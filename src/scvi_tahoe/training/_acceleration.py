"""Compiled parts of a network and products in 16 bits, for the steps of a training run only."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from scvi_tahoe._module import TahoeSTModule

logger = logging.getLogger(__name__)

#: seconds that compiling takes and share of a step that it saves, and how fast an eager step computes, as seen on an
#: H200 (benchmarks/README.md)
_COMPILE_SECONDS, _SAVED_SHARE, _OPERATIONS_PER_SECOND = 19.0, 0.2, 3.5e14
#: compiling must save this many times what it takes
_WORTH = 1.2


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

    Blocks, encoders and head can be compiled for training steps. Validation stays as it is: its last minibatch has
    another shape.
    """

    def __init__(self, module: TahoeSTModule, *, compiles: bool) -> None:
        self._module = module
        net = module.network
        parts = [*net.backbone.blocks, net.control_encoder, net.base_encoder, net.head] if compiles else []
        self._compiled = [(part, self._or_eagerly(part)) for part in parts if part is not None]
        self._fails = False
        self._splits_for_ddp: Any = None

    @property
    def compiles(self) -> bool:
        """Whether parts of the module are compiled."""
        return bool(self._compiled)

    def _or_eagerly(self, part: nn.Module) -> Callable[..., Any]:
        """Return the compiled forward of a part, which runs eagerly from the first error of the compiler on."""
        eager = part.forward
        # blocks are alike, and one compilation serves all
        compiled = torch.compile(eager, dynamic=False)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self._fails:
                try:
                    return compiled(*args, **kwargs)
                except torch._dynamo.exc.TorchDynamoException as error:
                    self._fails = True
                    logger.warning(f"compiling failed, and training continues without it: {_first_line(error)}")
            return eager(*args, **kwargs)

        return forward

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


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
