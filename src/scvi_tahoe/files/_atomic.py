"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PARTIAL = ".partial-"
#: Files by which a folder is known to be a model folder, which may be replaced.
_MODEL_FILES = ("config.json", "config.yaml")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path`` that takes its place when the block ends without an error.

    What is written there may be a file or a folder; the name keeps its ending. Whatever interrupts the block, ``path``
    is complete or what it was before, and nothing else is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:8]
    partial, old = (path.with_name(f"{_PARTIAL}{mark}{what}-{path.name}") for what in ("", "-old"))
    try:
        yield partial
        if path.is_dir():  # a folder cannot be renamed to one that exists
            os.replace(path, old)
        os.replace(partial, path)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        for leftover in (partial, old):
            remove_path(leftover, ignore_errors=True)


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
    """Yield a temporary folder beside ``target`` that takes its place when the block ends without an error.

    A folder that is there is replaced with ``overwrite`` only, and if it has one of the files ``signatures``, by which
    a folder of this ``kind`` (in words) is known; a FileExistsError otherwise.
    """
    target = Path(target)
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        if not overwrite:
            raise FileExistsError(f"{target} exists; give overwrite=True to replace it, or another name.")
        if not any((target / name).is_file() for name in signatures):
            raise FileExistsError(f"{target} exists and is no {kind}; it is not replaced. Give another name.")
    with atomic_write(target) as partial:
        partial.mkdir()
        yield partial


def remove_path(path: Path, *, ignore_errors: bool = False) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors)
    else:
        path.unlink(missing_ok=True)


def remove_partial(folder: Path, *, recursive: bool = False) -> None:
    """Remove what :func:`atomic_write` of killed processes left behind in a folder."""
    pattern = f"{_PARTIAL}*"
    for leftover in list(folder.rglob(pattern) if recursive else folder.glob(pattern)):
        remove_path(leftover)
