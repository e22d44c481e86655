"""Stand-ins for the two numpy names that occur in model folders: they yield plain values, whatever the file says.

Numbers and labels that went through pandas arrive as numpy scalars. Rebuilding them needs a dtype and a few bytes; the
stand-ins know numbers and strings only and never hand a file's dtype to numpy's own unpickling.
"""

from __future__ import annotations

import re

import numpy as np

from scvi_tahoe.files._limits import UnsafeFileError

__all__ = ["NUMPY_SCALAR_MODULES", "PlainDtype", "plain_bytes", "plain_scalar"]

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
    """Return the Python value of a numpy scalar.

    Raises
    ------
    UnsafeFileError
        If the bytes do not fit the dtype.
    """
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
