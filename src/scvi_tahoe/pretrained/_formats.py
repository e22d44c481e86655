"""Formats of model folders. A file ``_format_*.py`` each, with reader and writer, which registers itself here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scvi_tahoe._names import Registry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ModelFormat:
    """How a model folder of one format is recognised, read and written.

    Parameters
    ----------
    matches
        Whether a folder is in this format. None for the format that a folder is taken for if no other matches.
    read
        ``read(folder, *, checkpoint, attention, genes, base)`` returns a :class:`PretrainedModel`, see
        :func:`read_pretrained`; what a format has no use for is refused.
    write
        ``write(model, folder, *, overwrite)``, and ``base`` if ``takes_base``: complete or not at all.
    takes_base
        Whether a folder can refer to the backbone of another model instead of holding it.
    refusals
        What a model does that the format has no counterpart for. If None, the format can hold every model.
    """

    matches: Callable[[Path], bool] | None
    read: Callable[..., Any]
    write: Callable[..., None]
    takes_base: bool = False
    refusals: Callable[[Any], list[str]] | None = None


#: Formats that ``from_pretrained`` reads and ``export`` writes, by the name that ``format=`` and ``--to`` take.
FORMATS: Registry[ModelFormat] = Registry("format")


def format_of(folder: Path) -> ModelFormat:
    """Return the format of a folder."""
    other = next(f for f in FORMATS.values() if f.matches is None)
    return next((f for f in FORMATS.values() if f.matches is not None and f.matches(folder)), other)
