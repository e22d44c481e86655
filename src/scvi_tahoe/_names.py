"""Kinds that are looked up by name, and the message for a name that is not known."""

from __future__ import annotations

import difflib
import re
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

T = TypeVar("T")


def nearest_names(name: str, known: Sequence[str], n: int = 3) -> str:
    """Return the most similar known names for a message, ``" (did you mean 'STAT1', 'STAT2'?)"``, or nothing."""
    same = [other for other in known if str(other).casefold() == str(name).casefold()]
    near = same or difflib.get_close_matches(str(name), known, n=n, cutoff=0.5)
    return f" (did you mean {', '.join(map(repr, near))}?)" if near else ""


class Registry(dict[str, T]):
    """Kinds of one ``thing`` by name; each is registered by the file that defines it."""

    def __init__(self, thing: str) -> None:
        super().__init__()
        self.thing = thing

    def register(self, name: str, kind: T) -> T:
        """Add a kind and return it; a name is given once."""
        if name in self:
            raise ValueError(f"There is a {self.thing} {name!r} already.")
        self[name] = kind
        return kind

    def find(self, name: str) -> T:
        """Return a kind; a ValueError for an unknown name lists the known ones."""
        if name not in self:
            near = nearest_names(name, list(self))
            raise ValueError(f"There is no {self.thing} {name!r}{near}; choose one of {list(self)}.")
        return self[name]


def import_files(package: str, *prefixes: str) -> None:
    """Import the files of a package whose names begin with a prefix, so that they register what they define."""
    for found in iter_modules(import_module(package).__path__):
        if found.name.startswith(prefixes):
            import_module(f"{package}.{found.name}")


def perturbed_genes(perturbations: Iterable[str], genes: Iterable[str]) -> list[list[int]]:
    """Return the columns of the genes that each perturbation is named after; none for drugs.

    That is the gene of the same name, or else those that are parts of a combination's name, such as ``"CEBPA+KLF1"``.
    """
    column = {str(gene): i for i, gene in enumerate(genes)}
    found = []
    for name in map(str, perturbations):
        parts = [name] if name in column else re.split(r"[+,;&|/_ ]+", name)
        found.append(sorted({column[part] for part in parts if part in column}))
    return found
