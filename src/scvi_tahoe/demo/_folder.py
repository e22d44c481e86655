"""The folder of a demo: its files, and whether it may be written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from scvi_tahoe.files import atomic_write_text, remove_partial, remove_path

if TYPE_CHECKING:
    from pathlib import Path

#: what a finished demo leaves, in the order in which it is written
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
    """Create the folder, or continue one with the same settings; `overwrite` removes an earlier demo."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give the path of a new or empty folder.")
    known = folder / _SETTINGS
    if not known.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} holds files that are not of a demo; give the path of a new or empty folder.")
    elif overwrite:
        for name in (*FILES, "training", _SETTINGS):  # and nothing that somebody else has put there
            remove_path(folder / name)
    elif json.loads(known.read_text()) != settings:
        raise ValueError(
            f"{folder} holds a demo with other settings ({known.name}: {known.read_text().strip()}); give another "
            "folder, or overwrite it."
        )
    folder.mkdir(parents=True, exist_ok=True)
    remove_partial(folder)
    if not known.exists():
        atomic_write_text(known, json.dumps(settings) + "\n")
