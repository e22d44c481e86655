"""YAML files: read without running anything of them, written whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from scvi_tahoe.files import atomic_write_text

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_mapping", "read_nodes", "written"]

_LIMIT = 4_000_000


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not YAML, or not a mapping.
    """
    try:
        content = yaml.safe_load(_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a mapping of names to values.")
    return content


def read_nodes(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the mapping in a YAML file, and the line of every key by its dotted path."""
    content = read_mapping(path)
    lines: dict[str, int] = {}

    def walk(node: yaml.Node | None, prefix: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                name = f"{prefix}{key.value}"
                lines[name] = key.start_mark.line + 1
                walk(value, f"{name}.")

    walk(yaml.compose(_text(path), Loader=yaml.SafeLoader), "")
    return content, lines


def written(path: Path, content: dict[str, Any]) -> None:
    """Write a mapping as YAML."""
    atomic_write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100))


def _text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    if path.stat().st_size > _LIMIT:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; a configuration is a small text file.")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file; a configuration in YAML is expected.") from None
