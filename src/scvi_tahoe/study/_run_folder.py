"""The folder of a run: which files it holds, and how it is told from another folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvi_tahoe.files import read_torch, remove_partial
from scvi_tahoe.study._files import read_mapping
from scvi_tahoe.study._run_config import TahoeRun

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = "config.yaml"
PROVENANCE = "provenance.json"
METRICS = "metrics.csv"
BEST, LAST = "best.ckpt", "last.ckpt"
MODEL = "model"
REPORT = "loading_report.txt"
PREDICTION = "prediction.h5ad"
SCORES = "scores"
FIGURES = "figures"
#: written last: the run is complete
RESULT = "result.json"


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a trained run."""
    return (folder / CONFIG).is_file() and (folder / MODEL).is_dir() and (folder / BEST).is_file()


def claim_folder(folder: Path, run: TahoeRun) -> None:
    """Make the folder of a run, or go on with one that was begun with the same configuration.

    Raises
    ------
    ValueError
        If the folder holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give the path of a folder for the run.")
    known = folder / CONFIG
    if known.exists():
        if different := _differences(_written_before(known), run.to_dict()):
            raise ValueError(
                f"{folder} holds a run with another configuration ({'; '.join(different[:3])}); give another folder."
            )
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds files that are not of a run; give a new or empty folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the folder {folder} cannot be made ({error.strerror}); give one that can.") from None
    remove_partial(folder, recursive=True)
    if not known.exists():
        run.to_yaml(known)


def _written_before(path: Path) -> dict[str, Any]:
    """Return a configuration with the defaults of options that the release that wrote it did not have."""
    content = read_mapping(path)
    try:
        return TahoeRun.from_dict(content).to_dict()
    except ValueError:
        return content


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = dict.fromkeys([*old, *new])
        return [d for n in names for d in _differences(old.get(n), new.get(n), f"{where}.{n}".lstrip("."))]
    return [] if old == new else [f"{where} was {old!r}, now {new!r}"]


def checkpoint_path(folder: Path, name: str) -> Path:
    """Return the path of a checkpoint: ``'best'``, ``'last'``, or a file name.

    Raises
    ------
    FileNotFoundError
        If the run has no such checkpoint; the message lists those it has.
    """
    path = folder / (name if name.endswith(".ckpt") else f"{name}.ckpt")
    if not path.is_file():
        found = sorted(p.name for p in folder.glob("*.ckpt"))
        raise FileNotFoundError(f"the run {folder} has no checkpoint {name!r}; it has {', '.join(found) or 'none'}.")
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, without running code of it.

    Raises
    ------
    ValueError
        If the file is damaged or refers to anything but tensors and plain values.
    """
    content = read_torch(path)
    if not isinstance(content, dict) or "state_dict" not in content:
        raise ValueError(f"{path} holds no state_dict; it is not a checkpoint.")
    return content
