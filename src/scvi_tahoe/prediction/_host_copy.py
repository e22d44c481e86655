"""Predicted cells on their way from a device into main memory, while the next ones are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Arrivals"]

_N_BUFFERS = 2


@dataclass(frozen=True)
class _OnItsWay:
    memory: Tensor
    buffer: Tensor
    arrived: torch.cuda.Event
    target: Tensor


class Arrivals:
    """Puts blocks of rows into main memory.

    From a GPU they are copied into pinned memory, in the precision they have there, on a stream of their own; only
    when the block after next is ready are they moved on, by all cores. Neither the device nor the bus waits.
    """

    def __init__(self) -> None:
        self._waiting: list[_OnItsWay] = []
        self._free: list[Tensor] = []
        self._stream: torch.cuda.Stream | None = None

    def take(self, block: Tensor, target: Tensor) -> None:
        """Take some rows.

        Parameters
        ----------
        block
            ``[rows, G]`` on any device, in any precision.
        target
            float32 ``[rows, G]`` in main memory, where they are from the next :meth:`finish` on.
        """
        if not block.is_cuda:
            target.copy_(block)
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(block.device)
        if len(self._waiting) == _N_BUFFERS:
            self._land()
        memory = self._memory(block)
        buffer = memory[: block.numel()].view(block.shape)
        self._stream.wait_stream(torch.cuda.current_stream(block.device))
        with torch.cuda.stream(self._stream):
            buffer.copy_(block, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        block.record_stream(self._stream)
        self._waiting.append(_OnItsWay(memory, buffer, arrived, target))

    def finish(self) -> None:
        """Wait for the rest."""
        while self._waiting:
            self._land()

    def _memory(self, block: Tensor) -> Tensor:
        for i, memory in enumerate(self._free):
            if memory.dtype == block.dtype and memory.numel() >= block.numel():
                return self._free.pop(i)
        return torch.empty(block.numel(), dtype=block.dtype, pin_memory=True)

    def _land(self) -> None:
        block = self._waiting.pop(0)
        block.arrived.synchronize()
        block.target.copy_(block.buffer)
        self._free = [*self._free[-_N_BUFFERS:], block.memory]
