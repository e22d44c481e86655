"""YAML and JSON files of runs and studies: read without running anything of them, written complete or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from scvi_tahoe.files import MALFORMED, UnsafeFileError, atomic_write, atomic_write_text, parse_yaml

_LIMIT = 4_000_000


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    if path.stat().st_size > _LIMIT:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; a configuration is a small text file.")
    try:
        return parse_yaml(path.read_text("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file; a configuration in YAML is expected.") from None
    except UnsafeFileError as error:
        raise ValueError(f"{path} was refused: {error}") from None
    except MALFORMED as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())[:200]}") from None


def read_with_lines(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the mapping in a YAML file, and the line of every key by its dotted path."""
    content = read_mapping(path)
    lines: dict[str, int] = {}

    def walk(node: yaml.Node | None, prefix: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                lines[f"{prefix}{key.value}"] = key.start_mark.line + 1
                walk(value, f"{prefix}{key.value}.")

    walk(yaml.compose(path.read_text("utf-8-sig"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)), "")
    return content, lines


def anchored(value: Any, folder: Path) -> Any:
    """Return paths, alone, in a list or in a mapping, as absolute ones where they exist relative to a folder."""
    if isinstance(value, str):
        place = folder / Path(value).expanduser()
        return str(place.resolve()) if place.exists() else value
    if isinstance(value, dict):
        return {name: anchored(path, folder) for name, path in value.items()}
    return tuple(anchored(path, folder) for path in value) if isinstance(value, list | tuple) else value


def value_at(content: object, path: str, default: Any = None) -> Any:
    """Return a value of nested mappings by its dotted path."""
    for part in path.split("."):
        if not isinstance(content, dict) or part not in content:
            return default
        content = content[part]
    return content


def write_mapping(path: Path, content: dict[str, Any]) -> None:
    """Write a mapping as YAML."""
    atomic_write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100))


def write_json(path: Path, content: Any) -> None:
    """Write plain values as JSON."""
    atomic_write_text(path, json.dumps(content, indent=1, default=float) + "\n")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG."""
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=130, format="png")
