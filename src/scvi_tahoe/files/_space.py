"""Room on the disk: asked for before long writes, and one message where a disk refuses."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from scvi_tahoe._arguments import LONGEST_NAME, verify_path

if TYPE_CHECKING:
    from collections.abc import Iterator

_REFUSALS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file system or a limit of this process takes no file of this size",
    errno.EROFS: "the disk may only be read",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there",
    errno.EIO: "the disk reports an error",
}
_NO_FOLDER = {
    errno.EEXIST: "a part of the path is not a folder",
    errno.ENOTDIR: "a part of the path is not a folder",
    errno.ELOOP: "a part of the path is a link that leads to itself",
    errno.ENAMETOOLONG: "the path is too long",
    errno.ENOENT: "nothing can be made there",
}
_LONGEST_NAME = LONGEST_NAME - 35  #: less what is put in front of a name while its file is written
#: What the writers of PyTorch and HDF5 say of a disk that takes no more, in place of an OSError with its number.
_FOREIGN = ("PytorchStreamWriter failed", "inline_container", "No space left on device", "unable to write raw data")


def make_folder(folder: Path) -> None:
    """Make a folder and those around it, where they are missing.

    Raises
    ------
    ValueError
        If it is not a path that a folder can have.
    OSError
        If it cannot be made; the message says why.
    """
    verify_path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = {**_REFUSALS, **_NO_FOLDER}.get(error.errno or 0, error.strerror)
        raise OSError(error.errno, f"the folder {folder} cannot be made ({why}); give one that can.") from None


def make_place(path: Path, *, folder: bool) -> None:
    """Make the folder that a file or folder is to be written in, and refuse a path that it cannot have.

    Raises
    ------
    ValueError
        If the path is not the name of a file.
    FileExistsError
        If a folder is there where a file is to be written, a file in place of a folder, or a device or pipe.
    OSError
        If the folder cannot be made.
    """
    if path.name in ("", ".."):
        raise ValueError(f"{str(path)!r} is not a name; give that of a new {'folder' if folder else 'file'}.")
    if (length := len(path.name.encode(errors="replace"))) > _LONGEST_NAME:
        raise ValueError(f"the name {path.name[:40]}... has {length} bytes; give one of at most {_LONGEST_NAME}.")
    make_folder(path.parent)
    verify_path(path)
    if path.is_dir() and not folder:
        raise FileExistsError(f"{path} is a folder, and a file is to be written; give the name of a file.")
    if path.is_file() and folder:
        raise FileExistsError(f"{path} is a file, and a folder is to be written; give the name of a folder.")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FileExistsError(f"{path} is a device or a pipe and is not replaced; give the name of a file.")


@contextmanager
def explained_disk_errors(path: Path) -> Iterator[None]:
    """Turn what the disk refuses inside into an OSError of the same number that names the file and what became of it.

    Errors about other files pass unchanged.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = getattr(error, "errno", None)
        if number not in _REFUSALS:
            number = errno.ENOSPC if any(text in str(error) for text in _FOREIGN) else None
            if isinstance(error, FileNotFoundError) and f".partial-{os.getpid()}." in str(error):
                raise OSError(errno.EACCES, f"nothing can be made in {path.parent}; give another folder.") from None
        named = getattr(error, "filename", None)
        elsewhere = isinstance(named, str | os.PathLike) and not _is_beside(Path(named), path)
        if number is None or elsewhere or "was not written" in str(error):
            raise
        message = f"{_REFUSALS[number]}: {path} was not written, and what was there before is unchanged."
        raise (
            type(error)(number, message) if type(error) in (OSError, PermissionError) else OSError(number, message)
        ) from None


def _is_beside(named: Path, path: Path) -> bool:
    folder = os.path.abspath(path.parent)
    return os.path.abspath(named).startswith(folder)


def verify_space(path: str | Path, n_bytes: float, what: str) -> None:
    """Refuse a write that cannot end well, before it begins.

    Parameters
    ----------
    path
        File or folder to be written.
    n_bytes
        Bytes that it takes at least.
    what
        What it is, for the message.

    Raises
    ------
    OSError
        If the disk has less room; its message has the estimate and what is free.
    """
    folder = Path(os.path.abspath(path)).parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise OSError(
            errno.ENOSPC,
            f"{what} takes about {n_bytes / 1e9:,.2f} GB and {folder} has {free / 1e9:,.2f} GB left; make room, or "
            "give another place. Nothing was written",
        )
