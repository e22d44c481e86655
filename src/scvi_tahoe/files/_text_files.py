"""Files of text, and tables in them, that are what their name says."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
from typing import TYPE_CHECKING, Any

import pandas as pd

from scvi_tahoe.files._limits import MEGABYTE, UnsafeFileError, reading

if TYPE_CHECKING:
    from pathlib import Path

_LIMIT = 20_000 * MEGABYTE  # bytes, unpacked
_OPENS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def verify_text(path: Path) -> None:
    """Refuse a file that is not text in UTF-8; one named ``.gz``, ``.bz2`` or ``.xz`` is unpacked.

    Raises
    ------
    UnsafeFileError
        If it is empty, damaged, too large, or holds bytes that are no text.
    """
    with reading(path, _LIMIT):
        decoder, n_bytes = codecs.getincrementaldecoder("utf-8")(), 0
        with _OPENS.get(path.suffix, open)(path, "rb") as stream:
            while block := stream.read(MEGABYTE):
                n_bytes += len(block)
                if n_bytes > _LIMIT:
                    raise UnsafeFileError(f"unpacked, it has more than {_LIMIT:,} bytes.")
                if b"\0" in block or not _is_text(decoder, block):
                    raise UnsafeFileError(
                        "it holds bytes that are no text in UTF-8; save it as such, and unpack archives."
                    )
            decoder.decode(b"", final=True)


def _is_text(decoder: codecs.IncrementalDecoder, block: bytes) -> bool:
    try:
        decoder.decode(block)
    except UnicodeDecodeError:
        return False
    return True


def read_csv(path: Path, **options: Any) -> pd.DataFrame:
    """Return a table of text as :func:`pandas.read_csv` does.

    Raises
    ------
    UnsafeFileError
        If it is not text, or no table.
    """
    verify_text(path)
    with reading(path, _LIMIT):
        return pd.read_csv(path.absolute(), **options)  # pandas takes ~ and https: for something else
