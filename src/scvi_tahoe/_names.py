"""Names that are nearly right, for messages."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["nearest_names"]


def nearest_names(name: str, known: Sequence[str], n: int = 3) -> str:
    """The most similar known names, for messages: ``"did you mean 'STAT1', 'STAT2'?"`` (empty if none is near)."""
    same = [other for other in known if str(other).casefold() == str(name).casefold()]
    near = same or difflib.get_close_matches(str(name), known, n=n, cutoff=0.5)
    return f" (did you mean {', '.join(map(repr, near))}?)" if near else ""
