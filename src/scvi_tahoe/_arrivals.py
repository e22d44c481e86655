"""Predicted cells on their way from a device into main memory, while the next ones are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = ["Arrivals"]

_N_BUFFERS = 2


@dataclass(frozen=True)
class _OnItsWay:
    buffer: Tensor
    arrived: torch.cuda.Event
    first_row: int


class Arrivals:
    """Puts blocks of rows one after the other into an array.

    From a GPU they are copied into pinned memory, in the precision they have there, on a stream of their own; only
    when the block after next is ready are they moved on, by all cores. Neither the device nor the bus waits.

    Parameters
    ----------
    target
        float32 ``[rows, G]``.
    """

    def __init__(self, target: np.ndarray) -> None:
        self._target = torch.from_numpy(target)
        self._n_taken = 0
        self._waiting: list[_OnItsWay] = []
        self._free: list[Tensor] = []
        self._stream: torch.cuda.Stream | None = None

    def take(self, block: Tensor) -> None:
        """Take the next rows."""
        first_row, self._n_taken = self._n_taken, self._n_taken + len(block)
        if not block.is_cuda:
            self._target[first_row : self._n_taken] = block
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(block.device)
        if len(self._waiting) == _N_BUFFERS:
            self._land()
        buffer = self._buffer(block)
        self._stream.wait_stream(torch.cuda.current_stream(block.device))
        with torch.cuda.stream(self._stream):
            buffer.copy_(block, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        block.record_stream(self._stream)
        self._waiting.append(_OnItsWay(buffer, arrived, first_row))

    def finish(self) -> None:
        """Wait for the rest."""
        while self._waiting:
            self._land()

    def _buffer(self, block: Tensor) -> Tensor:
        for i, memory in enumerate(self._free):
            if memory.dtype == block.dtype and memory.numel() >= block.numel():
                return self._free.pop(i)[: block.numel()].view(block.shape)
        return torch.empty(block.numel(), dtype=block.dtype, pin_memory=True).view(block.shape)

    def _land(self) -> None:
        block = self._waiting.pop(0)
        block.arrived.synchronize()
        self._target[block.first_row : block.first_row + len(block.buffer)] = block.buffer
        self._free = [*self._free[-_N_BUFFERS:], block.buffer.view(-1)]
