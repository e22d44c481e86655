"""Names that are nearly right, for messages."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

T = TypeVar("T")

__all__ = ["look_up", "nearest_names"]


def nearest_names(name: str, known: Sequence[str], n: int = 3) -> str:
    """The most similar known names, for messages: ``"did you mean 'STAT1', 'STAT2'?"`` (empty if none is near)."""
    same = [other for other in known if str(other).casefold() == str(name).casefold()]
    near = same or difflib.get_close_matches(str(name), known, n=n, cutoff=0.5)
    return f" (did you mean {', '.join(map(repr, near))}?)" if near else ""


def look_up(registry: Mapping[str, T], name: str, what: str) -> T:
    """Return the entry of a registry, or raise ``ValueError`` naming those there are and the nearest."""
    if name not in registry:
        known = ", ".join(map(repr, registry))
        raise ValueError(f"{what}={name!r} is unknown{nearest_names(name, [*registry])}; allowed are {known}.")
    return registry[name]
