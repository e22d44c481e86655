"""The JSON schema of run files, for editors: generated from the same signatures as the files themselves."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from scvi_tahoe.data import SPLITS
from scvi_tahoe.study._run_config import LOGGERS, TahoeRun

#: File of the schema beside this one.
SCHEMA = "run.schema.json"
_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}


def run_schema() -> dict[str, Any]:
    """Return the schema of a run file."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Run of scvi-tahoe", **_of(TahoeRun)}
    schema["properties"]["split"] = {"anyOf": [*({"type": "object"} | _split(k) for k in SPLITS), {"type": "null"}]}
    schema["properties"]["train"]["properties"]["loggers"]["items"] = {"enum": list(LOGGERS)}
    return schema


def schema_line() -> str:
    """Return the comment by which editors with yaml-language-server find the schema that comes with the package."""
    return f"# yaml-language-server: $schema={(files('scvi_tahoe.study') / SCHEMA)}"


def schema_text() -> str:
    """Return the schema as it is shipped."""
    return json.dumps(run_schema(), indent=1) + "\n"


def _split(kind: str) -> dict[str, Any]:
    hints: dict[str, Any] = {field.name: {} for field in fields(SPLITS[kind])}
    return {"properties": {"kind": {"const": kind}, **hints}, "required": ["kind"], "additionalProperties": False}


def _of(hint: Any) -> dict[str, Any]:
    """Return the schema of values of a kind."""
    if is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        required = [f.name for f in fields(hint) if f.name in ("name", "data")] if hint is TahoeRun else []
        properties = {field.name: _of(hints[field.name]) for field in fields(hint)}
        made = {"type": "object", "properties": properties, "additionalProperties": False}
        return made | ({"required": required} if required else {})
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return {"anyOf": [_of(option) for option in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _of(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of(arguments[1])}
    return {"type": _PLAIN[hint]} if hint in _PLAIN else {}


if __name__ == "__main__":
    Path(__file__).with_name(SCHEMA).write_text(schema_text(), encoding="utf-8")
