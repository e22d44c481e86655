"""Licences of weights: what is known of each repository and folder, shown in one line with how to accept it."""

from __future__ import annotations

import logging
import os
import re
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

from scvi_tahoe._messages import warn

if TYPE_CHECKING:
    from pathlib import Path

    from scvi_tahoe.pretrained._pretrained_model import Provenance

logger = logging.getLogger(__name__)

#: Environment variable that accepts the licence of downloaded weights.
ACCEPT_VARIABLE = "SCVI_TAHOE_ACCEPT_LICENSE"
#: Owner of Arc's repositories on the hub.
_ARC = "arcinstitute"
_HOW = f"accept_license=True or {ACCEPT_VARIABLE}=1"
#: Licences that allow any use, as the hub writes them.
_PERMISSIVE = ("mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "unlicense")
_STATED = re.compile(r"\A---\s*\n(?:.*\n)*?license:[ \t]*['\"]?([\w.+-]{1,60})['\"]?[ \t]*\n")

_TERMS = (
    "the Arc Research Institute State Model Non-Commercial License: non-commercial use only. It covers the weights, "
    "what they predict, and every model fine-tuned from them. Redistribution needs the text of the licence, this "
    "notice and the citation of Adduri et al. (2025), bioRxiv 2025.06.26.661135. Read the licence beside the weights "
    "before you use them."
)
#: What a user has to know before using Arc's weights, and those that may derive from them.
LICENCE_SUMMARY = f"Weights published by Arc Institute are under {_TERMS}"
_UNKNOWN_SUMMARY = (
    "These weights are in the format of arc-state, and where they come from is not recorded. If they, or weights that "
    f"they were trained from, were published by Arc Institute, they are under {_TERMS}"
)


class LicenceNotAcceptedError(RuntimeError):
    """Weights under a licence with conditions were requested, and the licence was not accepted."""


class LicenceWarning(UserWarning):
    """Shows the licence of weights, once."""


def is_arcs(source: str) -> bool:
    """Return whether a name on the hub is of a repository of Arc's."""
    return source.lower().startswith(f"{_ARC}/")


def licence_text(origin: Provenance) -> str:
    """Return what is known of the licence of weights."""
    if origin.non_commercial:
        return LICENCE_SUMMARY if is_arcs(origin.source) else _UNKNOWN_SUMMARY
    if origin.licence:
        return f"Their authors state the licence {origin.licence}."
    if origin.format == "scratch":
        return "These weights were trained from scratch. Those who trained them choose the licence."
    return "Stated by whoever trained and published these weights."


def licence_notice(origin: Provenance) -> str:
    """Return the notice to put next to weights that derive, or may derive, from Arc's."""
    arcs = "These weights, or weights they were trained from, come from Arc Institute. "
    return (
        f"# Licence notice\n\n{licence_text(origin)}\n\n{arcs if is_arcs(origin.source) else ''}The software that "
        "wrote this file is under its own licence, which does not extend to the weights.\n"
    )


def verify_licence(repository: str, accept: bool | None = None) -> None:
    """Refuse to go on with weights of a repository unless the argument or the environment accepts their licence."""
    if is_accepted(accept):
        return
    if is_arcs(repository):
        terms = "Arc's State Model Non-Commercial License, which is for predictions and fine-tuned models, too"
    else:
        terms = (
            "the licence that its authors state on the hub, and a non-commercial one if the weights were fine-tuned "
            "from Arc's"
        )
    raise LicenceNotAcceptedError(f"{repository} is under {terms}. Read it; to accept it, pass {_HOW}.")


def show_licence(origin: Provenance) -> None:
    """Show the licence of accepted weights of the hub, in one line."""
    warn(f"{origin.source}: {licence_text(origin)}", LicenceWarning)


def mention_licence(origin: Provenance, accept: bool | None = None) -> None:
    """Say once, in one line, that weights of a folder may be under Arc's licence, unless it is accepted."""
    if origin.non_commercial and not is_accepted(accept):
        _mention(origin.source)


@cache
def _mention(source: str) -> None:
    logger.warning(
        f"{source} is in the format of arc-state: if the weights derive from Arc's, their licence is non-commercial, "
        f"for predictions and fine-tuned models, too. {_HOW} accepts it and leaves out this line."
    )


def is_accepted(accept: bool | None) -> bool:
    """Return whether a licence is accepted, by the argument or, if that is None, by the environment."""
    if accept is None:
        return os.environ.get(ACCEPT_VARIABLE, "").strip().lower() in ("1", "true", "yes")
    return accept


def stated_licence(folder: Path, root: Path | None = None) -> str:
    """Return the licence that the model card of a folder, or of the repository around it, names; empty if none does."""
    for place in (folder, root):
        if place is not None and (card := place / "README.md").is_file():
            with suppress(OSError, UnicodeDecodeError), card.open(encoding="utf-8") as stream:
                if match := _STATED.match(stream.read(20_000)):
                    return match[1].lower()
    return ""


def is_permissive(licence: str) -> bool:
    """Return whether a licence is known to allow any use."""
    return licence in _PERMISSIVE
