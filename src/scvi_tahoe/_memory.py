"""Main memory: what is left of it, and sizes that do not fit refused with the largest that does."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

_MOST = 10**18  # whole numbers may be larger than any float
_PAGE = "SC_AVPHYS_PAGES"


def free_memory() -> float:
    """Return the bytes of main memory that this process can still take; infinity where the system does not say."""
    found = [float("inf")]
    if sys.platform == "linux":
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        found += [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        found += _of_group()
    elif _PAGE in os.sysconf_names:
        found.append(float(os.sysconf(_PAGE) * os.sysconf("SC_PAGE_SIZE")))
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return min(*found, float("inf") if limit == resource.RLIM_INFINITY else float(limit))


def _of_group() -> list[float]:
    """Return what is left of the limit of a container."""
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text("ascii").strip() for name in ("max", "current"))
    except OSError:
        return []
    return [] if limit == "max" else [max(0.0, float(limit) - float(used))]


def verify_memory(what: str, n: int, bytes_of_one: float, remedy: str) -> None:
    """Refuse a size that does not fit into main memory, before anything of it is made.

    Parameters
    ----------
    what
        What there is so many of, for the message, e.g. ``"cells to predict"``.
    n
        How many.
    bytes_of_one
        Bytes that each takes at least.
    remedy
        What to do, for the message.

    Raises
    ------
    ValueError
        With the estimate, what is free, and the largest number that fits.
    """
    free, n = free_memory(), min(n, _MOST)
    if n * bytes_of_one > free:
        raise ValueError(
            f"{n:,} {what} take about {n * bytes_of_one / 1e9:,.1f} GB and {free / 1e9:,.1f} GB of memory are left: at "
            f"most {int(free // bytes_of_one):,} fit. {remedy}"
        )
