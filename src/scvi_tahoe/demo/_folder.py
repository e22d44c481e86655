"""The folder a demo leaves: which files, how they are written whole or not at all, and whose folder it is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from scvi_tahoe.files import atomic_write_text, remove_partial, remove_path

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FILES", "claim_folder"]

#: What a finished demo leaves, in the order in which it is made.
FILES = (
    "history.csv",
    "model",
    "training_curve.png",
    "prediction.h5ad",
    "evaluation",
    "scores.csv",
    "deltas.png",
)

_SETTINGS = "settings.json"


def claim_folder(folder: Path, settings: dict[str, object], *, overwrite: bool) -> None:
    """Make the folder, or take up one that an earlier run with the same settings left.

    Parameters
    ----------
    folder
        Where the demo writes.
    settings
        What decides the results; kept in `settings.json`.
    overwrite
        Remove what an earlier demo left, whatever its settings.

    Raises
    ------
    ValueError
        If the folder holds other things than a demo, or a demo with other settings that may not be overwritten.
    """
    if folder.exists() and not folder.is_dir():
        msg = f"{folder} is a file; give the path of a new or empty folder."
        raise ValueError(msg)
    known = folder / _SETTINGS
    if not known.exists():
        if folder.exists() and any(folder.iterdir()):
            msg = f"{folder} holds files that are not of a demo; give the path of a new or empty folder."
            raise ValueError(msg)
    elif overwrite:
        _remove_demo(folder)
    elif json.loads(known.read_text()) != settings:
        msg = (
            f"{folder} holds a demo with other settings ({known.name}: {known.read_text().strip()}); give another "
            "folder, or overwrite it."
        )
        raise ValueError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    remove_partial(folder)
    if not known.exists():
        atomic_write_text(known, json.dumps(settings) + "\n")


def _remove_demo(folder: Path) -> None:
    """Remove what demos write, and nothing that somebody else has put there."""
    for name in (*FILES, "training", _SETTINGS):
        remove_path(folder / name)
