"""Frozen dataclasses from the plain values of a file, and back: unknown keys and wrong kinds are errors with a hint."""

from __future__ import annotations

import difflib
import types
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["build", "nearest", "plain", "typed"]

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name most like this one, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def build(cls: type[T], values: object, where: str = "") -> T:
    """Build a dataclass, and those inside it, from a mapping of plain values.

    Numbers written as text, as YAML 1.1 reads ``1e-4``, become numbers.

    Parameters
    ----------
    cls
        A dataclass.
    values
        Mapping of its fields; an absent field takes its default.
    where
        Path of the mapping in its file, for messages.

    Raises
    ------
    ValueError
        If a key is unknown or missing, or a value is of the wrong kind.
    """
    place = where or "the configuration"
    arguments = typed(cls, values, where)
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name not in arguments and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{place} lacks the key {field.name!r}.")
    return cls(**arguments)


def typed(cls: type, values: object, where: str = "") -> dict[str, Any]:
    """Return the given fields of a dataclass, every one of its kind; others may be absent.

    Parameters
    ----------
    cls, values, where
        As for :func:`build`.

    Raises
    ------
    ValueError
        If a key is unknown or a value is of the wrong kind.
    """
    place = where or "the configuration"
    if not isinstance(values, dict):
        raise ValueError(f"{place} must be a mapping of names to values, not {values!r}.")
    known = {field.name: field for field in fields(cls)}
    for key in values:
        if key not in known:
            raise ValueError(f"{place} has no key {key!r}{nearest(str(key), known)} It takes {', '.join(known)}.")
    hints = get_type_hints(cls)
    return {key: _converted(value, hints[key], f"{where}.{key}".lstrip(".")) for key, value in values.items()}


def plain(value: Any) -> Any:
    """Return a dataclass, or anything inside one, as values that YAML and JSON hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _converted(value: Any, hint: Any, where: str) -> Any:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if is_dataclass(option) and isinstance(value, dict):
            return build(option, value, where)  # type: ignore[arg-type]
    for option in options:
        if get_origin(option) is dict and isinstance(value, dict):
            return {str(k): _converted(v, get_args(option)[1], f"{where}.{k}") for k, v in value.items()}
        if _fits(value, option):
            return tuple(value) if get_origin(option) is tuple else value
    number = _number(value)
    if number is not None and float in options:
        return number
    if number is not None and int in options and number == int(number):
        return int(number)
    raise ValueError(f"{where} is {value!r}; allowed is {' or '.join(map(_named, options))}.")


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if hint is type(None):
        return value is None
    origin = get_origin(hint)
    if origin is Literal:
        return any(value == allowed and type(value) is type(allowed) for allowed in get_args(hint))
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    kind = origin or hint
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _named(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list of {_named(get_args(hint)[0])}"
    names: Mapping[Any, str] = {
        str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null",
        dict: "a mapping", list: "a list",
    }  # fmt: skip
    return names.get(get_origin(hint) or hint, "a mapping")
