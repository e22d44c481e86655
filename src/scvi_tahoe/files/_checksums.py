"""Checksums of the files of a folder, stored with them, so that a flipped bit is named when it is read."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from scvi_tahoe.files._limits import UnsafeFileError, member
from scvi_tahoe.files._yaml_files import read_json

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

CHECKSUMS = "checksums.json"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_checksums(folder: Path, names: Iterable[str] | None = None) -> None:
    """Write the SHA-256 of files of a folder into ``checksums.json``; if ``names`` is None, of every file."""
    if names is None:
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    content = {name: file_sha256(folder / name) for name in names if name != CHECKSUMS}
    (folder / CHECKSUMS).write_text(json.dumps(content, indent=1), encoding="utf-8")


def verify_checksums(folder: Path) -> None:
    """Refuse a folder one of whose files is not as it was written; folders of version 0.1 have no checksums."""
    if not (folder / CHECKSUMS).exists():
        return
    for name, expected in read_json(member(folder, CHECKSUMS)).items():
        try:
            found = file_sha256(member(folder, name))
        except FileNotFoundError:
            raise UnsafeFileError(f"{folder} lacks {name}, which {CHECKSUMS} lists; copy the folder again.") from None
        if found != expected:
            raise UnsafeFileError(f"{name} in {folder} does not match its checksum; copy the damaged file again.")
