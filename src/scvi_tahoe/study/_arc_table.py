"""A TOML table of arc-state: the files of a run, and which of their conditions validate and test."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

_LIMIT = 4_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_PARTS = {"val": "validation", "test": "test"}


@dataclass(frozen=True)
class ArcTable:
    """What a table says: ``files`` to train on and to predict, and the split, as a run file writes it, or None."""

    files: tuple[str, ...]
    split: dict[str, Any] | None


def read_arc_table(path: Path) -> ArcTable:
    """Read a table.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a table of arc-state, or names files that do not exist.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    if path.stat().st_size > _LIMIT:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; a table of files is a small text file.")
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {' '.join(str(error).split())[:200]}") from None
    sections = {name: content.get(name, {}) for name in ("datasets", "training", "zeroshot", "fewshot")}
    if not sections["datasets"] or not all(isinstance(section, dict) for section in sections.values()):
        raise ValueError(f"{path} has no [datasets], or sections that are no tables.")
    used = {*sections["training"], *(_dataset(name) for part in ("zeroshot", "fewshot") for name in sections[part])}
    if unknown := sorted(used - set(sections["datasets"])):
        raise ValueError(f"{path} uses the data sets {unknown}, and [datasets] has {sorted(sections['datasets'])}.")
    patterns = [str(sections["datasets"][name]) for name in sections["datasets"] if name in used]
    return ArcTable(tuple(_files(patterns, path.parent)), _split(sections))


def _dataset(name: str) -> str:
    return name.partition(".")[0]


def _split(sections: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Return the zero-shot and few-shot tables as one list of conditions."""
    parts: dict[str, dict[str, Any]] = {"validation": {}, "test": {}}
    for name, part in sections["zeroshot"].items():
        if part in _PARTS:
            parts[_PARTS[part]][name.partition(".")[2]] = "all"
    for name, lists in sections["fewshot"].items():
        context = name.partition(".")[2]
        for theirs, ours in _PARTS.items():
            if listed := [str(label) for label in lists.get(theirs, [])]:
                before = parts[ours].get(context, [])
                parts[ours][context] = before if before == "all" else sorted({*before, *listed})
    kept = {name: part for name, part in parts.items() if part}
    return {"kind": "listed_conditions", **kept} if kept else None


def _files(patterns: Iterable[str], folder: Path) -> list[str]:
    """Return the files of patterns with braces and wildcards, and those of folders."""
    found: list[str] = []
    for pattern in (one for text in patterns for one in _without_braces(text)):
        place = folder / Path(pattern).expanduser()
        ends = [".h5", ".h5ad"]
        if place.is_dir():
            names = sorted(str(path) for path in place.iterdir() if path.suffix in ends)
        else:
            names = sorted(glob(str(place)))
        if not names:
            raise ValueError(f"[datasets] names {pattern}, and there is no such file.")
        found += [name for name in names if name not in found]
    return found


def _without_braces(pattern: str) -> list[str]:
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [whole for option in match[1].split(",") for whole in _without_braces(f"{before}{option}{after}")]
