"""YAML and JSON of model folders. Safe loader, plus one constructor for numpy scalars in ``hparams.yaml``."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import yaml

from scvi_tahoe.pretrained._limits import MALFORMED, MEGABYTE, UnsafeFileError, one_line, verify_size
from scvi_tahoe.pretrained._plain_numpy import NUMPY_SCALAR_MODULES, PlainDtype, plain_scalar

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_json", "read_yaml"]

_LIMIT = 64 * MEGABYTE
_MAX_DEPTH = 60
_MAX_ALIASES = 2_000


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _PlainLoader(_SafeLoader):
    """The safe loader of PyYAML with numpy scalars and tuples as plain values."""


def _construct_dtype(loader: yaml.SafeLoader, node: yaml.Node) -> PlainDtype:
    # numpy writes {args: [i8, false, true], state: !!python/tuple [3, <, ...]}
    if isinstance(node, yaml.SequenceNode):
        return PlainDtype(*loader.construct_sequence(node))
    content = loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else {}
    dtype = PlainDtype(*content.get("args", [None]))
    dtype.__setstate__(tuple(content.get("state", ())))
    return dtype


def _construct_scalar(loader: yaml.SafeLoader, node: yaml.Node) -> object:
    if not isinstance(node, yaml.SequenceNode) or len(node.value) != 2:
        raise UnsafeFileError("a numpy scalar is not made of a dtype and bytes.")
    dtype, raw = loader.construct_sequence(node, deep=True)
    return plain_scalar(dtype, raw)


def _construct_tuple(loader: yaml.SafeLoader, node: yaml.Node) -> tuple[object, ...]:
    return tuple(loader.construct_sequence(node, deep=True)) if isinstance(node, yaml.SequenceNode) else ()


_OBJECT = "tag:yaml.org,2002:python/object/apply:"
_PlainLoader.add_constructor(_OBJECT + "numpy.dtype", _construct_dtype)
_PlainLoader.add_constructor("tag:yaml.org,2002:python/tuple", _construct_tuple)
for _module in NUMPY_SCALAR_MODULES:
    _PlainLoader.add_constructor(f"{_OBJECT}{_module}.scalar", _construct_scalar)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; no tag of it is executed.

    Raises
    ------
    UnsafeFileError
        If the file is too large, nested without end, damaged, not a mapping, or asks for Python objects.
    """
    verify_size(path, _LIMIT)
    try:
        text = path.read_text("utf-8")
        _verify_nesting(text)
        content = yaml.load(text, Loader=_PlainLoader)
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{path.name} was refused: {error}") from None
    except (*MALFORMED, RecursionError, yaml.YAMLError) as error:
        raise UnsafeFileError(f"{path.name} was refused or is damaged: {one_line(error)}") from None
    return _mapping(path, content)


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file.

    Raises
    ------
    UnsafeFileError
        If the file is too large, damaged or not a mapping.
    """
    verify_size(path, _LIMIT)
    try:
        content = json.loads(path.read_text("utf-8"))
    except (*MALFORMED, RecursionError) as error:
        raise UnsafeFileError(f"{path.name} is damaged: {one_line(error)}") from None
    return _mapping(path, content)


def _mapping(path: Path, content: object) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UnsafeFileError(f"{path.name} does not hold a mapping of names to values.")
    return content


def _verify_nesting(text: str) -> None:
    depth = 0
    for bracket in re.finditer(r"[\[\]{}]", text):
        depth += 1 if bracket.group() in "[{" else -1
        if depth > _MAX_DEPTH:
            raise UnsafeFileError(f"its brackets are nested more than {_MAX_DEPTH} deep.")
    if re.search(rf"^[ \t-]{{{4 * _MAX_DEPTH},}}", text, re.MULTILINE):
        raise UnsafeFileError("its lines are nested without end.")
    if len(re.findall(r"(?:^|[\s\[,:-])\*\w+", text)) > _MAX_ALIASES:
        raise UnsafeFileError(f"it repeats itself by more than {_MAX_ALIASES:,} references.")
