"""A folder that appears complete or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["atomic_folder"]

#: Files by which a folder is known to be a model folder, which may be replaced.
_MODEL_FILES = ("config.json", "config.yaml")


@contextmanager
def atomic_folder(
    target: str | Path, *, overwrite: bool, kind: str = "model folder", signatures: Sequence[str] = _MODEL_FILES
) -> Iterator[Path]:
    """Give a temporary folder beside ``target`` to write into, and rename it to ``target`` when all went well.

    Parameters
    ----------
    target
        The folder to appear.
    overwrite
        Replace a folder of that name and kind.
    kind
        What is written, in words.
    signatures
        Files of which a folder of this kind has one.

    Raises
    ------
    FileExistsError
        If ``target`` exists and may not be replaced.
    """
    target = Path(target)
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        if not overwrite:
            raise FileExistsError(f"{target} exists; give overwrite=True to replace it, or another name.")
        if not any((target / name).is_file() for name in signatures):
            raise FileExistsError(f"{target} exists and is no {kind}; it is not replaced. Give another name.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir()
    try:
        yield partial
        old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
        if target.exists():
            os.replace(target, old)
        os.replace(partial, target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
