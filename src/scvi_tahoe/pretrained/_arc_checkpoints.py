"""Which checkpoint of a folder in Arc's format: in the folder or in ``checkpoints/``, by name, kind or step."""

from __future__ import annotations

import re
from pathlib import Path

from scvi_tahoe.files import UnsafeFileError, member

_PREFERRED = ("final", "last", "best")


def list_checkpoints(folder: Path) -> list[str]:
    """Return the names of the checkpoints of a folder, relative to it."""
    places = (folder, folder / "checkpoints")
    return [path.relative_to(folder).as_posix() for place in places for path in sorted(place.glob("*.ckpt"))]


def find_checkpoint(folder: Path, checkpoint: str | None = None) -> tuple[Path, Path]:
    """Return folder and path of a checkpoint; ``folder`` may be a checkpoint file itself."""
    if folder.suffix == ".ckpt":
        path = folder
        folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        checkpoint = path.relative_to(folder).as_posix()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder.")
    names = list_checkpoints(folder)
    if not names and (folder / "model.pt").is_file():
        raise FileNotFoundError(
            f"{folder} was written by save(), not by export(); read it with TahoeST.load, which needs no decisions."
        )
    if not names:
        raise FileNotFoundError(f"{folder} holds no *.ckpt file, neither in it nor in checkpoints/.")
    if checkpoint is None:
        return folder, _default_checkpoint(folder, names)
    if Path(checkpoint).is_absolute() or ".." in Path(checkpoint).parts:
        raise UnsafeFileError(f"checkpoint={checkpoint!r} must be a name inside the folder.")
    name = choose_checkpoint(names, checkpoint)
    if name is None:
        raise FileNotFoundError(f"There is no checkpoint {checkpoint!r} in {folder}; it holds {names}.")
    return folder, member(folder, name)


def choose_checkpoint(names: list[str], checkpoint: str | None = None) -> str | None:
    """Return the name meant by ``checkpoint``; if None, the first of final, last, best, and the highest step."""
    stems = {_stem(name): name for name in reversed(names)}
    if checkpoint is None:
        ranked = (*_PREFERRED, *sorted(stems, key=_step, reverse=True))
        return next((stems[stem] for stem in ranked if stem in stems), None)
    stem = _stem(checkpoint)
    if stem in stems:
        return stems[stem]
    by_step = [name for own, name in stems.items() if own.startswith(f"{stem}-")]
    return by_step[0] if by_step and re.fullmatch(r"step=\d+", stem) else None


def _default_checkpoint(folder: Path, names: list[str]) -> Path:
    left = list(names)
    while left and (name := choose_checkpoint(left)) is not None:
        try:
            return member(folder, name)
        except FileNotFoundError:
            left.remove(name)  # last.ckpt of old versions is a link to the best one and may dangle after copying
    raise FileNotFoundError(f"{folder} holds only links to checkpoints that do not exist: {names}.")


def _stem(name: str) -> str:
    return name.removesuffix(".ckpt").removeprefix("checkpoints/")


def _step(stem: str) -> int:
    match = re.match(r"step=(\d{1,12})", stem)
    return int(match[1]) if match else -1
