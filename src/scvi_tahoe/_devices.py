"""Devices: where to train and predict, in which precision, their memory, and copies from it to the host."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import distributed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from torch import Tensor

_N_BUFFERS = 2  # blocks of a HostCopy on their way

Devices: TypeAlias = int | Sequence[int] | Literal["auto"] | None


def prediction_devices(devices: Devices, own: torch.device) -> tuple[torch.device, ...]:
    """Return the devices to predict on, the first of which also does what is done once.

    None and 1 are the model's ``own`` device, another number so many CUDA devices, beginning with the model's own, a
    list these CUDA devices, and ``'auto'`` all CUDA devices if the model is on one, else its own.
    """
    n_known = torch.cuda.device_count()
    every = tuple(sorted((torch.device("cuda", i) for i in range(n_known)), key=lambda device: device != own))
    if devices is None or (_is_number(devices) and devices == 1):
        chosen: tuple[torch.device, ...] = (own,)
    elif devices == "auto":
        chosen = (own,) if own.type != "cuda" or _n_processes() > 1 else every
    elif _is_number(devices) and 1 < devices <= n_known:  # type: ignore[operator]
        chosen = every[:devices]  # type: ignore[index]
    elif _is_list_below(devices, n_known):
        chosen = tuple(torch.device("cuda", i) for i in devices)  # type: ignore[union-attr]
    else:
        have = f"{n_known} CUDA device{'' if n_known == 1 else 's'}"
        raise ValueError(
            f"devices={devices!r} must be 'auto', a number of CUDA devices or a list of different ones; this machine "
            f"has {have}. None predicts on the model's own device ({own})."
        )
    if len(chosen) > 1 and _n_processes() > 1:
        raise ValueError(
            f"devices={devices!r} in one of {_n_processes()} processes that were started together: each predicts on "
            "its own device (devices=None). To use several devices, predict from a process that was started alone."
        )
    return chosen


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list_below(value: Any, n_known: int) -> bool:
    """Return whether this is a list of different numbers of devices."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return False
    return all(_is_number(i) and 0 <= i < n_known for i in value) and len(set(value)) == len(value)


def _n_processes() -> int:
    is_one_of_many = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if is_one_of_many else 1


def device_of(device: Any, *, kinds: tuple[str, ...] = ("cpu", "cuda")) -> torch.device:
    """Return the device that an argument names; a ValueError for one that is not there, or none of the ``kinds``."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device={device!r} is unknown; give 'auto', 'cpu' or 'cuda'.") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r} was requested, but this machine has no CUDA device.")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={device!r} is not there; CUDA devices are 0 to {torch.cuda.device_count() - 1}.")
    if found.type not in kinds:
        raise ValueError(f"device={device!r} cannot compute this; give 'auto', 'cpu' or 'cuda'.")
    return found


def training_device(options: Mapping[str, Any]) -> torch.device:
    """Return where the network of a process is trained, given the options of Lightning's trainer."""
    accelerator = options.get("accelerator", "auto")
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        devices = options.get("devices", "auto")
        # of several processes on one machine each has a card of its own: torchrun and Lightning say which, and SLURM,
        # which may show a process that card alone
        local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
        local %= torch.cuda.device_count()
        return torch.device("cuda", devices[local] if isinstance(devices, list | tuple) else local)
    if accelerator in ("gpu", "cuda"):
        raise ValueError(f"accelerator={accelerator!r} was requested, but this machine has no CUDA device.")
    return torch.device(accelerator if accelerator == "mps" else "cpu")


def n_devices_asked(devices: Any) -> int:
    """Return how many devices of a machine are asked for; ``'auto'`` is one, as in scvi-tools."""
    if isinstance(devices, list | tuple):
        return len(devices)
    if isinstance(devices, str) and "," in devices:
        return len([part for part in devices.split(",") if part.strip()])
    if devices in (-1, "-1"):
        return max(1, torch.cuda.device_count())
    return int(devices) if str(devices).isdigit() else 1


def resolve_precision(precision: str | int, device: torch.device) -> str:
    """Return Lightning's name of a precision; 'auto' is bfloat16 on a CUDA device that computes in it, else float32."""
    if precision != "auto":
        return str(precision)
    # older cards emulate bfloat16, slower than float32
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return "bf16-mixed"
    return "32-true"


def autocast_dtype(precision: str | int, device: torch.device) -> torch.dtype | None:
    """Return the type of matrix products outside a trainer; None for the precision of the weights."""
    name = resolve_precision(precision, device)
    known = {"32": None, "32-true": None, "bf16": torch.bfloat16, "bf16-mixed": torch.bfloat16, "16": torch.float16,
             "16-mixed": torch.float16}  # fmt: skip
    if name not in known:
        raise ValueError(f"precision={precision!r} is unknown; allowed are 'auto', {', '.join(map(repr, known))}.")
    return known[name]


@contextmanager
def explained_out_of_memory(*, batch_size: int, set_size: int, doing: str) -> Iterator[None]:
    """Raise a MemoryError that says which argument to lower when a device runs out of memory."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        smaller = (
            f"lower batch_size (now {batch_size}), e.g. batch_size={max(1, batch_size // 2)}"
            if batch_size > 1
            else f"build the model with fewer cells a set (set_size is {set_size}) or a smaller size"
        )
        raise MemoryError(
            f"{doing} ran out of the memory of the device: {smaller}, or keep expression in main memory with "
            "store='host'. What training takes is estimated by model.memory_plan(batch_size=...). "
            f"({str(error).splitlines()[0]})"
        ) from error


class HostCopy:
    """Copies blocks of rows into main memory while the next ones are computed.

    From a GPU they are copied into pinned memory, in the precision they have there, on a stream of their own; only
    when the block after next is ready are they moved on, by all cores. Neither the device nor the bus waits.
    """

    def __init__(self) -> None:
        self._copying: list[tuple[Tensor, Tensor, torch.cuda.Event, Tensor]] = []  # memory, its part, arrival, target
        self._free: list[Tensor] = []
        self._stream: torch.cuda.Stream | None = None

    def start(self, block: Tensor, target: Tensor) -> None:
        """Copy ``[rows, G]`` of any device and precision into float32 main memory; it is there after :meth:`finish`."""
        if not block.is_cuda:
            target.copy_(block)
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(block.device)
        if len(self._copying) == _N_BUFFERS:
            self._finish_first()
        memory = self._memory(block)
        buffer = memory[: block.numel()].view(block.shape)
        self._stream.wait_stream(torch.cuda.current_stream(block.device))
        with torch.cuda.stream(self._stream):
            buffer.copy_(block, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        block.record_stream(self._stream)
        self._copying.append((memory, buffer, arrived, target))

    def finish(self) -> None:
        """Wait for all copies."""
        while self._copying:
            self._finish_first()

    def _memory(self, block: Tensor) -> Tensor:
        for i, memory in enumerate(self._free):
            if memory.dtype == block.dtype and memory.numel() >= block.numel():
                return self._free.pop(i)
        return torch.empty(block.numel(), dtype=block.dtype, pin_memory=True)

    def _finish_first(self) -> None:
        memory, buffer, arrived, target = self._copying.pop(0)
        arrived.synchronize()
        target.copy_(buffer)
        self._free = [*self._free[-_N_BUFFERS:], memory]
