"""How large plain containers are when each reference in them is followed: a few bytes can stand for billions.

Pickle and YAML let a container refer to another one many times. Nested, a file of a kilobyte then holds a value that no
machine can print, compare or hash. Real folders refer back a handful of times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvi_tahoe.files._limits import UnsafeFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["verify_expanded"]

_MAX_VALUES = 2_000_000
_MAX_DEPTH = 100
#: Attribute that torch puts on a state dict.
_HARMLESS = {"_metadata"}


def verify_expanded(content: Any) -> None:
    """Look at every container once and refuse those that are endless when written out.

    Parameters
    ----------
    content
        Dicts, lists, tuples and sets of anything.

    Raises
    ------
    UnsafeFileError
        If a container holds itself, is nested too deep, or stands for too many values.
    """
    sizes: dict[int, int] = {}
    around: set[int] = set()
    n_seen = 0
    to_do = [(content, False)]
    while to_do:
        item, seen = to_do.pop()
        if not isinstance(item, dict | list | tuple | set | frozenset):
            continue
        if seen:
            sizes[id(item)] = 1 + sum(sizes.get(id(child), 1) for child in _children(item))
            around.discard(id(item))
            if sizes[id(item)] > _MAX_VALUES:
                raise UnsafeFileError(
                    f"it stands for more than {_MAX_VALUES:,} values when its references are followed."
                )
        elif getattr(item, "__dict__", {}).keys() - _HARMLESS:
            raise UnsafeFileError("it holds a mapping whose own methods it replaces.")
        elif id(item) in around:
            raise UnsafeFileError("it holds a list or mapping that contains itself.")
        elif id(item) not in sizes:
            n_seen += len(item)
            if n_seen > _MAX_VALUES:
                raise UnsafeFileError(f"it holds more than {_MAX_VALUES:,} values.")
            around.add(id(item))
            if len(around) > _MAX_DEPTH:
                raise UnsafeFileError(f"it is nested more than {_MAX_DEPTH} deep.")
            to_do.append((item, True))
            to_do.extend((child, False) for child in _children(item))


def _children(item: Any) -> Iterator[Any]:
    if isinstance(item, dict):
        yield from dict.keys(item)
        yield from dict.values(item)
    else:
        yield from item
