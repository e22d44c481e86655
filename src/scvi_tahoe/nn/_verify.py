"""Checks that several configurations share. Each raises one sentence with the name of the value."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

__all__ = ["verify_known_keys", "verify_positive", "verify_probability"]


def verify_positive(**values: int) -> None:
    """Raise ``ValueError`` unless every value is an integer of at least one."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be a positive integer.")


def verify_probability(**values: float) -> None:
    """Raise ``ValueError`` unless every value lies in [0, 1)."""
    for name, value in values.items():
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name}={value!r} must be at least 0 and below 1.")


def verify_known_keys(owner: type, kwargs: dict[str, Any]) -> None:
    """Raise ``ValueError`` if a key is not a field of the dataclass."""
    known = {field.name for field in fields(owner)}
    unknown = sorted(set(kwargs) - known)
    if unknown:
        raise ValueError(f"{owner.__name__} does not know {unknown}; it knows {sorted(known)}.")
