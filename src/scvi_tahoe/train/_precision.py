"""In which precision a network runs on a device."""

from __future__ import annotations

import torch

__all__ = ["autocast_dtype", "resolve_precision"]


def resolve_precision(precision: str | int, device: torch.device) -> str:
    """Precision in Lightning's words.

    Parameters
    ----------
    precision
        ``'auto'``: ``'bf16-mixed'`` on a CUDA device that computes in bfloat16, ``'32-true'`` elsewhere; anything
        else is returned as it is.
    device
        Where the network runs.
    """
    if precision != "auto":
        return str(precision)
    # older cards emulate bfloat16, slower than float32
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return "bf16-mixed"
    return "32-true"


def autocast_dtype(precision: str | int, device: torch.device) -> torch.dtype | None:
    """What matrix products are computed in outside a trainer; None for the precision of the weights.

    Raises
    ------
    ValueError
        If the precision is unknown.
    """
    name = resolve_precision(precision, device)
    known = {"32": None, "32-true": None, "bf16": torch.bfloat16, "bf16-mixed": torch.bfloat16, "16": torch.float16,
             "16-mixed": torch.float16}  # fmt: skip
    if name not in known:
        raise ValueError(f"precision={precision!r} is unknown; allowed are 'auto', {', '.join(map(repr, known))}.")
    return known[name]
