"""Frozen dataclasses from the plain values of a file, and back: unknown keys and wrong kinds are errors with a hint.

:func:`section` takes the fields, defaults and types of a dataclass from the signatures of public methods.
"""

from __future__ import annotations

import builtins
import collections.abc
import inspect
import typing
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from scvi_tahoe import data, nn, response, training
from scvi_tahoe._arguments import fits, named, options_of
from scvi_tahoe._names import nearest_names

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

T = TypeVar("T")

#: names that annotations of public methods are made of, some of which are imported for type checkers only
_TYPES: dict[str, Any] = {
    name: value
    for space in (data, nn, response, training, collections.abc, typing, builtins)
    for name, value in vars(space).items()
}


class Section:
    """A part of a file whose fields are options of public methods, see :func:`section`."""

    if TYPE_CHECKING:

        def __init__(self, **values: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...

    def replaced(self, **values: Any) -> Self:
        """Return the section with other values."""
        return replace(self, **values)  # type: ignore[type-var]

    def arguments(self, function: Callable[..., Any]) -> dict[str, Any]:
        """Return the values of the fields that are parameters of a function."""
        known = inspect.signature(function).parameters
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name in known}  # type: ignore[arg-type]


def section(
    *functions: Callable[..., Any], without: Collection[str] = (), optional: bool = False, own_first: bool = False
) -> Callable[[type[T]], type[T]]:
    """Make a class a frozen dataclass of the options of some functions."""

    def decorate(cls: type[T]) -> type[T]:
        own, found = dict(cls.__annotations__), {}
        for function in functions:
            hints = get_type_hints(function, localns=_AnyName())
            for name, parameter in inspect.signature(function).parameters.items():
                hint = _plain_hint(hints.get(name))
                if hint is None or name in found or name in without or parameter.kind is parameter.VAR_KEYWORD:
                    continue
                left_out = optional or parameter.default is parameter.empty
                found[name] = own.pop(name, hint | None if left_out else hint)
                if not hasattr(cls, name):
                    setattr(cls, name, None if left_out else parameter.default)
        cls.__annotations__ = {**own, **found} if own_first else {**found, **own}
        return dataclass(frozen=True, kw_only=True)(cls)

    return decorate


class _Foreign:
    """Stands for types that no file holds."""


class _AnyName(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        return _TYPES.get(name, _Foreign)


def _plain_hint(hint: Any) -> Any:
    """Return the part of an annotation that a file can hold, or None."""
    kinds = [kind for option in options_of(hint) if (kind := _plain_kind(option)) is not None]
    return None if all(kind is type(None) for kind in kinds) else Union[tuple(kinds)]  # noqa: UP007


def _plain_kind(hint: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in (str, int, float, bool, type(None), Any) or origin is Literal:
        return hint
    if origin in (dict, collections.abc.Mapping):
        return dict[str, arguments[1]]  # type: ignore[valid-type]
    if origin in (list, tuple, collections.abc.Sequence) and (kind := _plain_hint(arguments[0])) is not None:
        return tuple[kind, ...]  # type: ignore[valid-type]
    return None


def build(cls: type[T], values: object, where: str = "") -> T:
    """Build a dataclass, and those inside it, from a mapping of plain values.

    Numbers written as text, as YAML 1.1 reads ``1e-4``, become numbers.
    """
    arguments = typed(cls, values, where)
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name not in arguments and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{where or 'the configuration'} lacks the key {field.name!r}.")
    return cls(**arguments)


def typed(cls: type, values: object, where: str = "") -> dict[str, Any]:
    """Return the given fields of a dataclass, each of its kind; others may be absent. Raises as :func:`build`."""
    place = where or "the configuration"
    if not isinstance(values, dict):
        raise ValueError(f"{place} must be a mapping of names to values, not {values!r}.")
    known = [field.name for field in fields(cls)]
    for key in values:
        if key not in known:
            near = nearest_names(str(key), known, n=1)
            raise ValueError(f"{place} has no key {key!r}{near}. It takes {', '.join(known)}.")
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


def differences(configs: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the dotted keys whose value is not the same in all configurations, with all values in order."""
    flat = [_flattened(config) for config in configs]
    rows = {key: [values.get(key) for values in flat] for values in flat for key in values}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}


def _flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _converted(value: Any, hint: Any, where: str) -> Any:
    options = options_of(hint)
    if isinstance(value, dict) and (kinds := [option for option in options if is_dataclass(option)]):
        return build(kinds[0], value, where)  # type: ignore[arg-type]
    for option in options:
        if get_origin(option) is dict and isinstance(value, dict):
            return {str(k): _converted(v, get_args(option)[1], f"{where}.{k}") for k, v in value.items()}
        if fits(value, option):
            return tuple(value) if get_origin(option) is tuple else value
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
            if float in options or (int in options and number == int(number)):
                return number if float in options else int(number)
    allowed = ["a mapping" if is_dataclass(option) else named(option) for option in options]
    raise ValueError(f"{where} is {value!r}; allowed is {' or '.join(allowed)}.")
