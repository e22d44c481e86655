"""Folders that one process works in at a time."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvi_tahoe.files._limits import one_line
from scvi_tahoe.files._space import make_folder

try:
    import fcntl
except ImportError:  # not on Windows, where folders are not locked
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Name of the file that is locked while a process works in a folder.
LOCK = ".lock"
_MINE: dict[str, int] = {}  #: folders of this process, and the thread that works in each


class FolderInUseError(ValueError):
    """Another process works in the folder."""


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Keep other processes from working in a folder.

    The system takes the lock back when its process ends, however that happens, so no lock outlives its owner. Inside,
    the same thread may lock the folder again.

    Raises
    ------
    FolderInUseError
        If another process or thread has the folder; the message names host, process and how long.
    """
    folder = Path(folder)
    make_folder(folder)
    key, thread = os.path.realpath(folder), threading.get_ident()
    if fcntl is None or _MINE.get(key) == thread:
        yield
        return
    path = folder / LOCK
    descriptor = _acquire(path)
    _MINE[key] = thread
    try:
        yield
    finally:
        del _MINE[key]
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _acquire(path: Path) -> int | None:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:  # a folder that may only be read says so where something is written
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(descriptor)
            os.close(descriptor)
            raise FolderInUseError(
                f"{path.parent} is in use by {owner}; wait until it ends, or give another folder."
            ) from None
        except OSError:  # a file system without locks
            os.close(descriptor)
            return None
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            break
        os.close(descriptor)  # its owner removed it in between
    os.ftruncate(descriptor, 0)
    mine = {"host": socket.gethostname(), "process": os.getpid(), "since": time.time()}
    os.write(descriptor, json.dumps(mine).encode())
    return descriptor


def _owner(descriptor: int) -> str:
    try:
        found: dict[str, Any] = json.loads(os.pread(descriptor, 4096, 0))
        minutes = (time.time() - float(found["since"])) / 60
        return f"process {found['process']} on {found['host']}, for {minutes:.0f} minutes"
    except (ValueError, KeyError, TypeError, OSError) as error:
        return f"another process ({one_line(error)})"
