"""The names of the files of a run, and a checkpoint read from one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvi_tahoe.files import read_torch

if TYPE_CHECKING:
    from pathlib import Path

CONFIG, PROVENANCE, METRICS, REPORT = "config.yaml", "provenance.json", "metrics.csv", "loading_report.txt"
BEST, LAST, MODEL = "best.ckpt", "last.ckpt", "model"
PREDICTION, SCORES, FIGURES = "prediction.h5ad", "scores", "figures"
#: written last: the run is complete
RESULT = "result.json"


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a trained run."""
    trained = (folder / BEST).is_file() or (folder / LAST).is_file()  # without validation nothing is best
    return (folder / CONFIG).is_file() and (folder / MODEL).is_dir() and trained


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, without running code of it."""
    content = read_torch(path)
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ValueError(f"{path} holds no state_dict; it is not a checkpoint.")
    return content
