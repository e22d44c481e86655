"""YAML and JSON of model folders. Safe loader, plus one constructor for numpy scalars in ``hparams.yaml``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import yaml

from scvi_tahoe.files._limits import MEGABYTE, UnsafeFileError, reading
from scvi_tahoe.files._plain_values import NUMPY_SCALAR_MODULES, PlainDtype, plain_scalar, verify_expanded

if TYPE_CHECKING:
    from pathlib import Path

#: The longest known: 62,710 gene names, a line each.
_YAML_LIMIT, _JSON_LIMIT = 16 * MEGABYTE, 32 * MEGABYTE
_MAX_DEPTH = 60
_MAX_ALIASES = 2_000
_MAX_VALUES = 300_000
_MAX_SCALAR = 10_000


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _PlainLoader(_SafeLoader):
    """The safe loader of PyYAML with numpy scalars and tuples as plain values, and keys that are plain, too."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse keys that occur twice, keys that are not simple, and merge keys, which multiply a mapping."""
        keys = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                raise UnsafeFileError("it has a key that is not a plain word.")
            if key.value in keys:
                raise UnsafeFileError(f"it has the key {key.value[:40]!r} twice.")
            keys.add(key.value)


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
    return plain_scalar(*loader.construct_sequence(node, deep=True))


def _construct_tuple(loader: yaml.SafeLoader, node: yaml.Node) -> tuple[object, ...]:
    return tuple(loader.construct_sequence(node, deep=True)) if isinstance(node, yaml.SequenceNode) else ()


_OBJECT = "tag:yaml.org,2002:python/object/apply:"
_PlainLoader.add_constructor(_OBJECT + "numpy.dtype", _construct_dtype)
_PlainLoader.add_constructor("tag:yaml.org,2002:python/tuple", _construct_tuple)
for _module in NUMPY_SCALAR_MODULES:
    _PlainLoader.add_constructor(f"{_OBJECT}{_module}.scalar", _construct_scalar)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; no tag of it is executed."""
    with reading(path, _YAML_LIMIT):
        return parse_yaml(path.read_text("utf-8"))


def parse_yaml(text: str) -> dict[str, Any]:
    """Return the mapping in YAML from inside a file that is being read; no tag of it is executed."""
    _verify_events(text)
    return _mapping(yaml.load(text, Loader=_PlainLoader))


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file."""
    with reading(path, _JSON_LIMIT):
        return _mapping(json.loads(path.read_text("utf-8"), object_pairs_hook=_without_repeats))


def _mapping(content: object) -> dict[str, Any]:
    verify_expanded(content)
    if not isinstance(content, dict):
        raise UnsafeFileError("it does not hold a mapping of names to values.")
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise UnsafeFileError(f"it has the key {name[:40]!r} twice.")
        content[name] = value
    return content


def _verify_events(text: str) -> None:
    """Read the file as a stream, which takes no stack, and refuse what would take too much to build."""
    depth = n_aliases = 0
    for count, event in enumerate(yaml.parse(text, Loader=_SafeLoader)):
        if count > _MAX_VALUES:
            raise UnsafeFileError(f"it holds more than {_MAX_VALUES:,} values.")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            n_aliases += 1
        elif isinstance(event, yaml.ScalarEvent) and len(event.value) > _MAX_SCALAR:
            raise UnsafeFileError(f"it holds a value of {len(event.value):,} characters.")
        if depth > _MAX_DEPTH:
            raise UnsafeFileError(f"it is nested more than {_MAX_DEPTH} deep.")
        if n_aliases > _MAX_ALIASES:
            raise UnsafeFileError(f"it repeats itself by more than {_MAX_ALIASES:,} references.")
