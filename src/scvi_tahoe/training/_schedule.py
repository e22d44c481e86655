"""The learning rate as a function of the optimizer step."""

from __future__ import annotations

import math
from typing import Literal

__all__ = ["SCHEDULES", "Schedule", "learning_rate_share"]

Schedule = Literal["cosine", "constant", "one_cycle"]
SCHEDULES: tuple[Schedule, ...] = ("cosine", "constant", "one_cycle")


def learning_rate_share(step: int, *, schedule: Schedule, start: int, end: int, warmup: float, floor: float) -> float:
    """Share of the peak rate at a step.

    Parameters
    ----------
    step
        Optimizer step, from 0.
    schedule
        One of:

        * ``'cosine'`` - linear warm-up, then half a cosine down to ``floor`` (Loshchilov & Hutter 2017, SGDR)
        * ``'one_cycle'`` - cosine up over the warm-up, cosine down to ``floor`` (Smith & Topin 2019)
        * ``'constant'`` - linear warm-up, then the peak
    start, end
        First step of this part of the network, and last step of the run.
    warmup
        Length of the warm-up, as a fraction of ``end - start``.
    floor
        Share of the peak at the end.

    Returns
    -------
    A number from 0 to 1; 0 before ``start``, never 0 from there on.
    """
    if step < start:
        return 0.0
    length = max(1, end - start)
    n_warmup = max(1, round(warmup * length))
    position = step - start
    if position < n_warmup:
        rise = (position + 1) / n_warmup
        return 0.5 * (1 - math.cos(math.pi * rise)) if schedule == "one_cycle" else rise
    if schedule == "constant":
        return 1.0
    fall = min(1.0, (position - n_warmup) / max(1, length - n_warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * fall))
