"""What the package has to say reaches people who configured no logging, as it does with scvi-tools."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

#: seconds between two lines of a bar where nobody watches
_SPARSE = 30.0


class _Terminal(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to the standard error of the moment, unless the program has handlers of its own.

    If several processes train one model, only the first one logs; warnings come from all.
    """

    def emit(self, record: logging.LogRecord) -> None:
        speaks = record.levelno >= logging.WARNING or os.environ.get("LOCAL_RANK", "0") == "0"
        if speaks and not logging.getLogger().handlers:
            self.stream = sys.stderr  # setStream would flush the one before, which may be closed
            super().emit(record)


def progress_bar(*arguments: Any, **options: Any) -> tqdm:
    """Return a bar of tqdm, which in a log file or the output of a cluster's job writes a line every half minute."""
    from tqdm.auto import tqdm  # not before it is needed: help texts are quick

    in_notebook = any("notebook" in kind.__module__ for kind in tqdm.__mro__)
    options.setdefault("file", sys.stderr)
    if not in_notebook and not options["file"].isatty():
        options |= {"mininterval": _SPARSE, "maxinterval": _SPARSE, "ncols": 100}
    return tqdm(*arguments, **options)


def duration(seconds: float) -> str:
    """Return a time as text, as precise as an estimate is."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def show_messages(name: str) -> None:
    """Show messages of a logger from level INFO on; ``logging.getLogger(name).setLevel(...)`` changes that."""
    logger = logging.getLogger(name)
    if not any(isinstance(handler, _Terminal) for handler in logger.handlers):
        logger.addHandler(_Terminal())
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
