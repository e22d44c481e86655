"""What a file from a stranger may be: inside its folder, of a plausible size. One error for all that is not."""

from __future__ import annotations

import errno
import lzma
import os
import struct
import zipfile
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import yaml
from safetensors import SafetensorError

if TYPE_CHECKING:
    from collections.abc import Iterator

MEGABYTE = 1_000_000
_LONGEST = 600
_REFUSAL = ("GLOBAL", "Unsupported", "allow_pickle")

#: What readers raise on damaged or forged input. Turned into one :class:`UnsafeFileError` at the border.
MALFORMED = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError),
    *(RuntimeError, TypeError, ValueError, SafetensorError, UnpicklingError, struct.error, yaml.YAMLError),
    zipfile.BadZipFile,
    lzma.LZMAError,
)


class UnsafeFileError(ValueError):
    """A file of a model folder is damaged, forged, or holds more than weights need. Nothing of it was run.

    The message is one line of bounded length, whatever names and values of the file are in it.
    """

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else " " for c in message[:_LONGEST])
        super().__init__(line + (" ..." if len(message) > _LONGEST else ""))


def _file_root(folder: Path) -> Path:
    """Return the folder that links may not leave: the folder itself, or a hub cache's ``models--<name>`` around it."""
    folder = folder.resolve()
    caches = (place.parent.parent for place in (folder, *folder.parents) if place.parent.name == "snapshots")
    return next((cache for cache in caches if cache.name.startswith("models--")), folder)


def member(folder: Path, name: str) -> Path:
    """Return the path of a file of a folder, after checking that it lies inside and is an ordinary, readable file."""
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise UnsafeFileError(f"{name!r} is not a name inside the model folder; give a plain file name.")
    path = folder / relative
    if not path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if _leads_to_itself(path):
        raise UnsafeFileError(f"{path} is a link that leads to itself.")
    target = path.resolve()
    if not target.is_relative_to(_file_root(folder)):
        raise UnsafeFileError(f"{path} is a link that leads out of the model folder; copy the file itself there.")
    if not target.exists():
        raise FileNotFoundError(f"{path} is a link to a file that does not exist.")
    if not target.is_file():
        raise UnsafeFileError(f"{path} is not an ordinary file.")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{path} may not be read by this user.")
    return path


def _leads_to_itself(path: Path) -> bool:
    try:
        path.resolve(strict=True)  # a circle is an error from Python 3.13 on only if strict
    except RuntimeError:
        return True
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def verify_size(path: Path, limit: int) -> None:
    """Raise :class:`UnsafeFileError` if a file is larger than ``limit`` bytes or empty."""
    size = path.stat().st_size
    if size > limit:
        raise UnsafeFileError(f"{path.name} has {size:,} bytes; a file of this kind has at most {limit:,}.")
    if size == 0:
        raise UnsafeFileError(f"{path.name} is empty; the download or copy was probably cut short.")


@contextmanager
def reading(path: Path, limit: int) -> Iterator[None]:
    """Check the size of a file; inside, turn whatever a reader raises on it into one :class:`UnsafeFileError`."""
    verify_size(path, limit)
    try:
        yield
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{path.name} was refused: {error}") from None
    except MALFORMED as error:
        # torch and numpy say what they refused somewhere in a long message
        named = [line for line in str(error).splitlines() if any(word in line for word in _REFUSAL)]
        what = f"was refused: {named[0].strip()[:200]}" if named else f"is damaged: {one_line(error)}"
        raise UnsafeFileError(f"{path.name} {what}") from None


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message, for use inside another message."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
