"""How long a prediction will take, measured on a part of it and said before the rest."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from scvi_tahoe._messages import duration

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

#: parts from which on two more hardly count, and seconds that are worth a line
_MANY, _LONG = 40, 20.0


def announce_cost(n_parts: float, part: Callable[[], None]) -> None:
    """Log how long all parts will take, if that is long.

    Parameters
    ----------
    n_parts
        How many parts there are.
    part
        Carries out one of them. It is called twice, as the first call in a process takes longer.
    """
    if n_parts < _MANY:
        return
    part()
    start = time.perf_counter()
    part()
    seconds = n_parts * (time.perf_counter() - start)
    if seconds >= _LONG:
        logger.info(f"this takes about {duration(seconds)}; fewer perturbations=[...] or n_cells=... take less.")
