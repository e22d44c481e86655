"""Files and folders that appear complete or not at all, whatever interrupts their writing.

A temporary name in the same folder is used until everything is written and synchronised; the file then takes its name
in one step: by a rename, or by swapping two folders (``renameat2``, Linux 3.15 and later). Where a file system has no
swap, the earlier folder is put aside first; a process killed in between leaves it there, and whoever reads or
writes the name next puts it back.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import logging
import os
import shutil
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from scvi_tahoe._arguments import verify_path
from scvi_tahoe.files._space import explained_disk_errors, make_place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

logger = logging.getLogger(__name__)
_PARTIAL = ".partial-"
#: Files by which a folder is known to be a model folder, which may be replaced.
_MODEL_FILES = ("config.json", "config.yaml")
_SWAP = 2  # RENAME_EXCHANGE of renameat2(2)
_HERE = -100  # AT_FDCWD
_SYNC_THREADS = 16


@contextmanager
def atomic_write(
    path: str | Path, *, folder: bool = False, replace: bool = True, durable: bool = True
) -> Iterator[Path]:
    """Yield a temporary path next to ``path`` that takes its place when the block ends without an error.

    The name keeps its ending. Whatever interrupts the block, ``path`` is complete or what it was before, and nothing
    else is left.

    Parameters
    ----------
    path
        File or folder.
    folder
        Whether a folder is written. A file never takes the place of a folder, which may hold anything.
    replace
        Whether something that has the name by the end of the block is replaced; a FileExistsError otherwise.
    durable
        Whether it is on the disk before it takes its name, so that it also survives a power failure.
    """
    path = Path(path)
    make_place(path, folder=folder)
    restore(path)
    _remove_leftovers(path)
    mark = f"{os.getpid()}.{uuid.uuid4().hex[:8]}"
    # absolute, as pandas takes names that begin with ~ or https: for something else
    partial, old = (path.absolute().with_name(f"{_PARTIAL}{mark}{what}-{path.name}") for what in ("", "-old"))
    try:
        with explained_disk_errors(path):
            yield partial
            if durable:
                _sync(partial)
            if not replace and os.path.lexists(path):
                raise FileExistsError(f"{path} exists by now, written by another process; it is not replaced.")
            _take_place(partial, path, old)
            if durable:
                _sync_entry(path.parent)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        for leftover in (partial, old):
            remove_path(leftover, ignore_errors=True)


def _take_place(partial: Path, path: Path, old: Path) -> None:
    """Give ``partial`` the name ``path``; an earlier folder of the name is at ``partial`` or ``old`` afterwards."""
    if not (partial.is_dir() and os.path.lexists(path)):
        os.replace(partial, path)
    elif not _swap(partial, path):
        os.replace(path, old)
        os.replace(partial, path)


@cache
def _renameat2() -> Callable[..., int] | None:
    try:
        return ctypes.CDLL(None, use_errno=True).renameat2 if sys.platform == "linux" else None
    except (OSError, AttributeError):
        return None


def _swap(first: Path, second: Path) -> bool:
    """Let two names change places in one step; False where the system or the file system cannot do that."""
    if (rename := _renameat2()) is None:
        return False
    if rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _SWAP) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(second))


def _sync(path: Path) -> None:
    """Wait until a file, or every file of a folder, is on the disk."""
    if path.is_dir():
        with ThreadPoolExecutor(_SYNC_THREADS) as pool:  # the file system writes what waits together in one go
            list(pool.map(_sync_entry, path.rglob("*")))
    _sync_entry(path)


def _sync_entry(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # a link to nothing, or a folder where folders cannot be opened
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # what cannot be synchronised
            raise
    finally:
        os.close(descriptor)


def restore(path: str | Path) -> None:
    """Put back a folder that a process killed while replacing it had put aside, and say so.

    Does nothing where something has the name, as always where folders are swapped in one step.
    """
    path = Path(path)
    verify_path(path)
    if os.path.lexists(path) or not path.parent.is_dir():
        return
    aside = sorted(path.parent.glob(f"{_PARTIAL}*-old-{glob.escape(path.name)}"))
    if aside:
        os.replace(aside[-1], path)
        logger.warning(f"{path} was being replaced when the process was killed; its earlier version is back in place.")


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of earlier attempts to write the same name."""
    for leftover in path.parent.glob(f"{_PARTIAL}*-{glob.escape(path.name)}"):
        owner = leftover.name.removeprefix(_PARTIAL).partition(".")[0]
        if owner.isdecimal() and not is_alive(int(owner)):
            logger.info(f"removing {leftover.name}, which process {owner} did not finish writing.")
            remove_path(leftover, ignore_errors=True)


def is_alive(process: int) -> bool:
    """Return whether a process of this machine is running."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is somebody else's
        return True
    return True


def atomic_write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, complete or not at all."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(
    target: str | os.PathLike[str],
    *,
    overwrite: bool,
    kind: str = "model folder",
    signatures: Sequence[str] = _MODEL_FILES,
) -> Iterator[Path]:
    """Yield a temporary folder next to ``target`` that takes its place when the block ends without an error.

    A folder that is there is replaced with ``overwrite`` only, and if it has one of the files ``signatures``, by which
    a folder of this ``kind`` is known; a FileExistsError otherwise.
    """
    target = Path(target)
    restore(target)
    if is_empty := not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
        pass
    elif not overwrite:
        raise FileExistsError(f"{target} exists; give overwrite=True to replace it, or another name.")
    elif not any((target / name).is_file() for name in signatures):
        raise FileExistsError(f"{target} exists and is no {kind}; it is not replaced. Give another name.")
    with atomic_write(target, folder=True, replace=overwrite or (is_empty and target.is_dir())) as partial:
        partial.mkdir()
        yield partial


@contextmanager
def updated_folder(folder: Path, *, written: Sequence[str]) -> Iterator[Path]:
    """Yield a temporary copy of a folder that takes its place in one step when the block ends without an error.

    The copy lacks the files ``written``, which are to be made anew; the others are linked, and must not be changed.
    """
    with atomic_write(folder, folder=True) as partial:
        if folder.is_dir():
            ignore = shutil.ignore_patterns(*map(glob.escape, written), f"{_PARTIAL}*")
            shutil.copytree(folder, partial, copy_function=_link, symlinks=True, ignore=ignore)
        else:
            partial.mkdir()
        yield partial


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def remove_path(path: Path, *, ignore_errors: bool = False) -> None:
    """Remove a file or a folder, if there is one."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors)
        else:
            path.unlink(missing_ok=True)
    except OSError:
        if not ignore_errors:
            raise


def remove_partial(folder: Path, *, recursive: bool = False) -> None:
    """Remove what :func:`atomic_write` of killed processes left in a folder; put back what they had put aside."""
    pattern = f"{_PARTIAL}*"
    for leftover in list(folder.rglob(pattern) if recursive else folder.glob(pattern)):
        _, is_old, name = leftover.name.partition("-old-")
        if is_old:
            restore(leftover.with_name(name))
        owner = leftover.name.removeprefix(_PARTIAL).partition(".")[0]
        if not owner.isdecimal() or not is_alive(int(owner)):
            remove_path(leftover)
