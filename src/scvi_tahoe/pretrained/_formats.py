"""Formats of model folders. A file a format, reader beside writer; each registers itself here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scvi_tahoe._names import look_up

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scvi_tahoe.pretrained._pretrained_model import PretrainedModel


@dataclass(frozen=True, kw_only=True)
class ModelFormat:
    """How a model folder of one format is recognised, read and written.

    Parameters
    ----------
    name
        As ``export(format=...)`` and ``scvi-tahoe convert --to`` call it.
    matches
        Whether a folder is in this format. None for the format that a folder is taken for if no other matches.
    read
        ``read(folder, *, checkpoint, attention, genes, base)``, see :func:`read_pretrained`; what a format has no use
        for is refused.
    write
        ``write(model, folder, *, overwrite)``, and ``base`` if ``takes_base``: complete or not at all.
    takes_base
        Whether a folder can refer to the backbone of another model instead of holding it.
    refusals
        What a model does that the format has no counterpart for. If None, the format can hold every model.
    """

    name: str
    matches: Callable[[Path], bool] | None
    read: Callable[..., PretrainedModel]
    write: Callable[..., None]
    takes_base: bool = False
    refusals: Callable[[PretrainedModel], list[str]] | None = None


#: Registered formats by name.
FORMATS: dict[str, ModelFormat] = {}


def register_format(model_format: ModelFormat) -> None:
    """Add a format to those that ``from_pretrained`` reads and ``export`` writes."""
    FORMATS[model_format.name] = model_format


def find_format(name: str) -> ModelFormat:
    """Return a format by name, or raise ``ValueError`` naming those there are."""
    return look_up(FORMATS, name, "format")


def format_of(folder: Path) -> ModelFormat:
    """Return the format of a folder."""
    other = next(f for f in FORMATS.values() if f.matches is None)
    return next((f for f in FORMATS.values() if f.matches is not None and f.matches(folder)), other)
