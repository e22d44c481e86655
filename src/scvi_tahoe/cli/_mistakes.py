"""A user's mistake ends in one line and exit code 2, Ctrl-C in exit code 130; anything else is a bug, shown in full."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["one_line_mistakes"]

#: Set to anything, it brings the full traceback back.
TRACEBACK_VARIABLE = "SCVI_TAHOE_TRACEBACK"


@contextmanager
def one_line_mistakes(when_interrupted: str = "Stopped; nothing was written.") -> Iterator[None]:
    """Turn the package's errors about what a user gave into one line on stderr and exit code 2.

    Parameters
    ----------
    when_interrupted
        What to say after Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"\n{when_interrupted}", err=True)
        raise typer.Exit(130) from None
    except (ValueError, KeyError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get(TRACEBACK_VARIABLE) or not _is_mistake(error):
            raise
        # str() of a KeyError is its repr, quotes and all.
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        typer.echo(f"scvi-tahoe: {' '.join(str(text).split())}", err=True)
        raise typer.Exit(2) from None


def _is_mistake(error: Exception) -> bool:
    """Whether the error is about what the user gave, a licence to be accepted, or an extra to be installed."""
    if isinstance(error, ImportError):
        return "pip install" in str(error)
    if not isinstance(error, RuntimeError):
        return True
    from scvi_tahoe.pretrained import LicenceNotAcceptedError

    return isinstance(error, LicenceNotAcceptedError)
