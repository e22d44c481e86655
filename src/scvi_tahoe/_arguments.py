"""Arguments of public calls, checked by their annotations before anything else happens.

One mechanism for Python calls and run files: what an annotation allows, what was given, and the message if they differ.
"""

from __future__ import annotations

import builtins
import collections.abc
import functools
import importlib
import inspect
import math
import os
import pathlib
import sys
import types
import typing
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np
import numpy.typing

from scvi_tahoe._names import nearest_names

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Bounds = tuple[float | None, float | None]

T = TypeVar("T")
F = TypeVar("F", bound="Callable[..., Any]")

_WORDS: dict[Any, str] = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null",
    dict: "a mapping", list: "a list", pathlib.Path: "a path", collections.abc.Mapping: "a mapping",
    np.ndarray: "an array of numbers",
}  # fmt: skip
_PATHS = (pathlib.Path, os.PathLike)
_SERIES = (tuple, list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
#: classes that nobody has imported yet when a call is checked
_LATE = {"Axes": "matplotlib.axes"}
#: what an annotation means that names nothing that is known here
_ANYTHING = (Any, inspect.Parameter.empty)


_LARGEST = 2**63 - 1
_LONGEST_PATH, LONGEST_NAME = 4095, 255  #: bytes, on the usual file systems


class ArgumentError(TypeError, ValueError):
    """An argument of a type or size that the call does not take; the message says which it takes."""


def checked(**bounds: Bounds) -> Callable[[F], F]:
    """Check the arguments of a public function by its annotations, before its first line.

    numpy scalars become Python numbers, and numbers without a fraction whole ones where these are annotated.

    Parameters
    ----------
    **bounds
        Smallest and largest value of numbers by the name of their parameter; None has no bound.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        named = [name for name, p in signature.parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        positional = [name for name in named if signature.parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY]
        takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())

        @functools.cache
        def hints() -> dict[str, Any]:
            return {name: _resolved(function, signature.parameters[name].annotation) for name in named}

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not takes_any and (unknown := [name for name in kwargs if name not in named]):
                near = nearest_names(unknown[0], named, n=1)
                owner = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]
                raise ArgumentError(f"{owner}() has no argument {unknown[0]!r}{near}.")
            values = dict(zip(positional, args, strict=False))
            for name, value in {**values, **kwargs}.items():
                if name in named:
                    found = accepted(value, hints()[name], name, bounds.get(name))
                    (kwargs if name in kwargs else values)[name] = found
            return function(*values.values(), *args[len(positional) :], **kwargs)

        return typing.cast("F", call)

    return decorate


def checked_fields(cls: type[T]) -> type[T]:
    """Check the fields of a dataclass by their annotations when one is made."""
    cls.__init__ = checked()(cls.__init__)  # type: ignore[method-assign]
    return cls


def accepted(value: Any, hint: Any, where: str, bounds: Bounds | None = None) -> Any:
    """Return a value as its annotation says, or raise an :class:`ArgumentError` with what is allowed."""
    options = options_of(hint)
    value = _plain(value, options)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not any(option in _ANYTHING or fits(value, option) for option in options):
        raise _refusal(value, options, where)
    if isinstance(value, str | pathlib.Path) and any((get_origin(o) or o) in _PATHS for o in options):
        verify_path(value)
    for keys in (option.__annotations__ for option in options if typing.is_typeddict(option)):
        if isinstance(value, collections.abc.Mapping) and (unknown := [key for key in value if key not in keys]):
            near = nearest_names(str(unknown[0]), list(keys), n=1)
            raise ArgumentError(f"{where} has no option {unknown[0]!r}{near}; it has {str(list(keys))[1:-1]}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ArgumentError(f"{where} is {value}; a finite number is needed.")
    if is_number and bounds is not None:
        low, high = bounds
        if (low is not None and value < low) or (high is not None and value > high):
            allowed = f"{low:,} to {high:,}" if None not in bounds else f"{low:,} or more" if high is None else ""
            raise ArgumentError(f"{where}={value!r} must be {allowed or f'at most {high:,}'}.")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ArgumentError(f"{where} is larger than any number that an array or a file holds, {_LARGEST:,}.")
    return value


def _plain(value: Any, options: tuple[Any, ...]) -> Any:
    """Return numpy's scalars as Python's, whole numbers and arrays as such where they are annotated."""
    if isinstance(value, np.bool_ | np.integer | np.floating):
        value = value.item()
    if isinstance(value, float) and int in options and float not in options and value.is_integer():
        return int(value)
    if any((get_origin(option) or option) is np.ndarray for option in options) and (
        isinstance(value, list | tuple) or type(value).__name__ == "Series"
    ):
        return _array(value)
    return value


def verify_path(path: str | pathlib.Path) -> None:
    """Refuse what no file system takes for a path: NUL, half a character, too long a name or all too long."""
    try:
        lengths = [len(part.encode()) for part in pathlib.Path(path).parts]
    except UnicodeEncodeError:
        lengths = [_LONGEST_PATH]
    if "\0" in str(path) or max(lengths, default=0) > LONGEST_NAME or sum(lengths) + len(lengths) > _LONGEST_PATH:
        raise ArgumentError(f"{str(path)[:80]!r} is not a path that a file can have; give another one.")


def _refusal(value: Any, options: tuple[Any, ...], where: str) -> ArgumentError:
    """Make the error of a value that is of no kind that an annotation allows."""
    series = any(get_origin(option) in _SERIES for option in options)
    words = [text for option in options for text in get_args(option) if get_origin(option) is Literal]
    if isinstance(value, str) and series:
        word = f", or {str(list(words))[1:-1]}{nearest_names(value, words, n=1)}" if words else ""
        return ArgumentError(f"{where} is a list{word}; got the text {value!r}, write [{value!r}].")
    if isinstance(value, str) and words:
        near, others = nearest_names(value, words, n=1), [o for o in options if get_origin(o) is not Literal]
        more = "".join(f" or {named(option)}" for option in others)
        return ArgumentError(f"{where}={value!r} is unknown; allowed are {str(list(words))[1:-1]}{more}{near}.")
    hint = next((get_args(o)[1] for o in options if fits({}, o) and len(get_args(o)) == 2), Any)
    if isinstance(value, collections.abc.Mapping) and (bad := [k for k in value if not _holds(value[k], hint)]):
        where, value, options = f"{where}[{bad[0]!r}]", value[bad[0]], options_of(hint)
    return ArgumentError(f"{where} is {_shown(value)}; allowed is {' or '.join(map(named, options))}.")


def _shown(value: Any) -> str:
    """Return a value for a message, by its type where it is long or no plain value."""
    text = ""
    if isinstance(value, str | int | float | bool | bytes | type(None)):
        text = repr(value)
    elif type(value) in (list, tuple, dict) and len(value) <= 9:
        items = (
            [f"{_shown(k)}: {_shown(v)}" for k, v in value.items()] if isinstance(value, dict) else map(_shown, value)
        )
        brackets = repr(type(value)())
        comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
        text = f"{brackets[0]}{', '.join(items)}{comma}{brackets[1]}"
    return text if text and len(text) <= 80 else f"{type(value).__module__.split('.')[0]}.{type(value).__qualname__}"


def _array(value: Any) -> Any:
    """Return a list of numbers as an array, and any other list itself."""
    try:
        found = np.asarray(value)
    except ValueError:  # rows of different lengths
        return value
    return found if found.dtype.kind in "iufb" else value


def options_of(hint: Any) -> tuple[Any, ...]:
    """Return the alternatives of an annotation."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of one kind that an annotation allows; a truth value is not a number."""
    if hint in (*_ANYTHING, type(None)):
        return hint is not type(None) or value is None
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(type(value) is type(allowed) and value == allowed for allowed in arguments)
    kind = _kind(hint)
    if kind is float:
        kind = (int, float)
    if isinstance(kind, type) and issubclass(kind, tuple) and kind is not tuple:  # named tuples, as plain ones
        return isinstance(value, tuple)
    if isinstance(value, bool) or kind is pathlib.Path:
        return kind in (bool, object) or isinstance(value, os.PathLike)
    if kind is collections.abc.Iterable and isinstance(value, collections.abc.Iterator):
        return True
    if kind in _SERIES:
        return _is_list(value) and _holds_items(value, kind, arguments)
    if kind in (dict, collections.abc.Mapping):
        return isinstance(value, collections.abc.Mapping) and (
            not arguments or all(_holds(k, arguments[0]) and _holds(v, arguments[1]) for k, v in value.items())
        )
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol or a type variable
        return True


def _holds_items(items: Any, kind: Any, hints: tuple[Any, ...]) -> bool:
    """Return whether the items of a series are as annotated: those of a tuple each by its own."""
    if kind is tuple and hints and Ellipsis not in hints:
        return len(items) == len(hints) and all(_holds(item, hint) for item, hint in zip(items, hints, strict=True))
    if not hints or (
        str in options_of(hints[0]) and all(issubclass(t, str) for t in {*map(type, items)})
    ):  # names of genes are many
        return True
    return all(_holds(item, hints[0]) for item in items)


def _kind(hint: Any) -> Any:
    """Return the class of an annotation, which for a TypedDict is any mapping."""
    return collections.abc.Mapping if typing.is_typeddict(hint) else get_origin(hint) or hint


def _is_list(value: Any) -> bool:
    """Return whether a value is a series of items with a length: no text, no mapping, and no single number."""
    if isinstance(value, type | str | bytes | bytearray | memoryview | collections.abc.Mapping | os.PathLike):
        return False
    return hasattr(value, "__len__") and hasattr(value, "__iter__") and getattr(value, "ndim", 1) == 1


def _holds(item: Any, hint: Any) -> bool:
    if isinstance(item, np.bool_ | np.integer | np.floating):
        item = item.item()
    if isinstance(item, float) and not math.isfinite(item):
        return hint in _ANYTHING
    if hint is str and isinstance(item, int | float):  # labels are compared as text
        return True
    return any(fits(item, option) for option in options_of(hint))


def named(hint: Any) -> str:
    """Return how a message calls one kind that an annotation allows."""
    origin = get_origin(hint)
    if origin is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if origin is tuple and Ellipsis not in get_args(hint):
        return f"{len(get_args(hint))} values ({', '.join(map(named, get_args(hint)))})"
    if origin in _SERIES and get_args(hint):
        return f"a list of {named(get_args(hint)[0])}"
    kind = _kind(hint)
    return _WORDS.get(kind, kind.__name__ if isinstance(kind, type) else "a mapping")


class _Names(dict[str, Any]):
    """Names in annotations, some of which are imported for type checkers only; an unknown one means anything."""

    def __missing__(self, name: str) -> Any:
        return next((found for found in _known(name)), Any)


def _known(name: str) -> Iterator[Any]:
    if name in _LATE:
        yield getattr(importlib.import_module(_LATE[name]), name)
    for space in (typing, collections.abc, builtins, pathlib, numpy.typing):
        if hasattr(space, name):
            yield getattr(space, name)
    for place, module in list(sys.modules.items()):
        if place.startswith("scvi_tahoe") and name in vars(module):
            yield vars(module)[name]
    if name in sys.modules:
        yield sys.modules[name]


def _resolved(function: Callable[..., Any], annotation: Any) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, {}, _Names(inspect.unwrap(function).__globals__))
    except (TypeError, AttributeError, NameError):
        return Any
