"""Plain values out of files from strangers: containers that end when written out, and numpy scalars as Python's.

Pickle and YAML let a container refer to another one many times. Nested, a file of a kilobyte then holds a value that no
machine can print, compare or hash. Numbers and labels that went through pandas arrive as numpy scalars; the stand-ins
for the two numpy names that rebuild them know numbers and strings only.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_tahoe.files._limits import UnsafeFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_VALUES = 2_000_000
_MAX_DEPTH = 100
#: Attribute that torch puts on a state dict.
_HARMLESS = {"_metadata"}


def verify_expanded(content: Any, *, limit: int = _MAX_VALUES) -> None:
    """Look at every container once and refuse those that are endless when written out."""
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
            if sizes[id(item)] > limit:
                raise UnsafeFileError(f"with its references followed, it stands for more than {limit:,} values.")
        elif getattr(item, "__dict__", {}).keys() - _HARMLESS:
            raise UnsafeFileError("it holds a mapping whose own methods it replaces.")
        elif id(item) in around:
            raise UnsafeFileError("it holds a list or mapping that contains itself.")
        elif id(item) not in sizes:
            n_seen += len(item)
            if n_seen > limit:
                raise UnsafeFileError(f"it holds more than {limit:,} values.")
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


NUMPY_SCALAR_MODULES = ("numpy._core.multiarray", "numpy.core.multiarray")

_CODE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|U\d{1,5}|S\d{1,5})")


class PlainDtype:
    """A dtype as a file describes it: a code such as ``i8`` or ``U12``, and a byte order."""

    def __init__(self, code: str, *_: object) -> None:
        if not isinstance(code, str) or _CODE.fullmatch(code) is None:
            raise UnsafeFileError(f"numpy dtype {str(code)[:40]!r} is neither a number nor a string.")
        self.code = code.lstrip("<>|=")
        self.order = code[0] if code[0] in "<>" else "<"

    def __setstate__(self, state: tuple[object, ...]) -> None:
        """Take the byte order from the state numpy writes, and nothing else."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.order = ">"


def plain_scalar(dtype: PlainDtype, raw: bytes | str) -> bool | int | float | str:
    """Return the Python value of a numpy scalar."""
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(dtype, PlainDtype) or not isinstance(raw, bytes):
        raise UnsafeFileError("a numpy scalar is not made of a plain dtype and bytes.")
    if len(raw) == 0 and dtype.code in ("U0", "S0"):
        return ""
    numpy_dtype = np.dtype(dtype.order + dtype.code)
    if len(raw) != numpy_dtype.itemsize or len(raw) == 0:
        raise UnsafeFileError(f"a numpy scalar of dtype {dtype.code} comes with {len(raw)} bytes.")
    value = np.frombuffer(raw, dtype=numpy_dtype)[0].item()
    return value.decode("latin1") if isinstance(value, bytes) else value


def plain_bytes(text: str, encoding: str) -> bytes:
    """Return the bytes that old pickle protocols write as latin-1 text."""
    if not isinstance(text, str) or encoding != "latin1":
        raise UnsafeFileError("a pickle encodes text in another way than pickled bytes do.")
    return text.encode("latin1")
