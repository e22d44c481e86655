"""On which devices a prediction runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import distributed

if TYPE_CHECKING:
    from typing import Any

__all__ = ["Devices", "prediction_devices"]

Devices: TypeAlias = int | Sequence[int] | Literal["auto"] | None


def prediction_devices(devices: Devices, own: torch.device) -> tuple[torch.device, ...]:
    """Devices of this process, the first of which also does what is done once.

    Parameters
    ----------
    devices
        One of:

        * None or 1 - the model's own device
        * a number - so many CUDA devices, beginning with the model's own if that is one
        * a list of numbers - these CUDA devices
        * ``'auto'`` - all CUDA devices if the model is on one, else its own
    own
        Where the model is.

    Raises
    ------
    ValueError
        If there are not so many devices, or this process is one of several that were started together.
    """
    n_known = torch.cuda.device_count()
    if devices is None or (_is_number(devices) and devices == 1):
        return (own,)
    if devices == "auto":
        return (own,) if own.type != "cuda" or _n_processes() > 1 else _beginning_with(own, n_known)
    if _is_number(devices) and 1 < int(devices) <= n_known:  # type: ignore[call-overload]
        chosen = _beginning_with(own, n_known)[: int(devices)]  # type: ignore[call-overload]
    elif _is_list(devices) and all(0 <= i < n_known for i in devices):  # type: ignore[union-attr]
        chosen = tuple(torch.device("cuda", int(i)) for i in devices)  # type: ignore[union-attr]
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    is_list = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return is_list and all(map(_is_number, value)) and len(set(value)) == len(value)


def _n_processes() -> int:
    is_one_of_many = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if is_one_of_many else 1


def _beginning_with(own: torch.device, n: int) -> tuple[torch.device, ...]:
    every = [torch.device("cuda", i) for i in range(n)]
    return tuple(sorted(every, key=lambda device: device != own))
