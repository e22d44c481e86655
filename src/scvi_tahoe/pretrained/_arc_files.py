"""The files of a folder of Arc's: its checkpoints, and the maps of inputs, rows and columns to labels."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_tahoe.data import EmbeddingTable
from scvi_tahoe.files import MEGABYTE, UnsafeFileError, member, read_pickle, read_torch

if TYPE_CHECKING:
    from collections.abc import Mapping

#: arc-state insists on a batch map; the label under which we write one for models without batches.
NO_BATCHES = "(no batches)"

_MAP_LIMIT = 4_000 * MEGABYTE
_MAX_TABLE_BYTES = 2_000 * MEGABYTE
_MAX_LABEL = 1_000
#: The best validation, before the end of the training, before whatever was last written.
_PREFERRED = ("best", "final", "last")
_SUFFIXES = (".torch", ".pt", ".pkl")


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
    """Return the name meant by ``checkpoint``; if None, the first of best, final, last, and the highest step."""
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


def read_perturbations(folder: Path) -> EmbeddingTable:
    """Return the perturbation table of a folder: names and vectors of one width."""
    vectors = _read_map(folder, "pert_onehot_map")
    if vectors is None:
        raise FileNotFoundError(f"{folder} has no pert_onehot_map.pt, which says which input is which perturbation.")
    widths = {len(vector) for vector in vectors.values()}
    if len(widths) != 1:
        raise UnsafeFileError(f"pert_onehot_map holds vectors of {len(widths)} different widths.")
    if (order := _one_hot_order(vectors)) is not None:
        return EmbeddingTable.one_hot_of(order)
    return EmbeddingTable(tuple(vectors), np.stack(list(vectors.values())))


def read_batches(folder: Path) -> tuple[str, ...] | None:
    """Return the technical batches in the order of the batch encoder's rows, or ``None`` without a file."""
    labels = read_labels(folder, "batch_onehot_map")
    return None if labels == (NO_BATCHES,) else labels


def read_gene_names(folder: Path) -> tuple[str, ...] | None:
    """Return the gene names in ``var_dims.pkl``, or ``None`` without the file or the names."""
    with suppress(FileNotFoundError):
        return gene_names(read_pickle(member(folder, "var_dims.pkl")))
    return None


def gene_names(settings: Any) -> tuple[str, ...] | None:
    """Return the entry ``gene_names`` of a mapping, or ``None`` if it has none or it is not a list of names."""
    names = settings.get("gene_names") if isinstance(settings, dict) else None
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    strange = next((name for name in names if not name.isprintable() or len(name) > _MAX_LABEL), None)
    if strange is not None:
        raise UnsafeFileError(f"The gene name {strange[:40]!r} of the folder cannot be printed in one line.")
    return tuple(names)


def read_labels(folder: Path, stem: str) -> tuple[str, ...] | None:
    """Return the labels of a one-hot map in the order of their codes, or ``None`` without a file."""
    vectors = _read_map(folder, stem)
    if vectors is None:
        return None
    order = _one_hot_order(vectors)
    if order is None:
        raise UnsafeFileError(f"{stem} of the folder is not a one-hot map.")
    return order


def _read_map(folder: Path, stem: str) -> dict[str, np.ndarray] | None:
    for suffix in _SUFFIXES:
        with suppress(FileNotFoundError):
            path = member(folder, stem + suffix)
            content = read_pickle(path) if suffix == ".pkl" else read_torch(path, limit=_MAP_LIMIT)
            return vectors_of(path.name, content)
    return None


def vectors_of(file: str, content: Any) -> dict[str, np.ndarray]:
    """Return the vectors of a map as float32 arrays, after checking that it is one."""
    import torch

    if not isinstance(content, dict) or not content:
        raise UnsafeFileError(f"{file} does not hold a mapping of labels to vectors.")
    for label, vector in content.items():
        if not _is_vector(vector):
            raise UnsafeFileError(f"{file}: {label!r} is not a plain vector.")
    # Before any is converted: vectors that share their memory in the file have memory of their own afterwards.
    n_bytes = 4 * sum(map(len, content.values()))
    if n_bytes > _MAX_TABLE_BYTES:
        raise UnsafeFileError(f"{file} claims a table of {n_bytes:,} bytes; it can have {_MAX_TABLE_BYTES:,}.")
    vectors = {}
    for label, vector in content.items():
        if isinstance(vector, torch.Tensor):
            vector = vector.detach().float().resolve_neg().numpy()
        if not str(label).isprintable() or len(str(label)) > _MAX_LABEL:
            raise UnsafeFileError(f"{file} has the label {str(label)[:40]!r}, which cannot be printed in one line.")
        vectors[str(label)] = vector.astype(np.float32, copy=False)
        if not np.isfinite(vectors[str(label)]).all():
            raise UnsafeFileError(f"{file}: {label!r} holds values that are not finite.")
    if len(vectors) != len(content):
        raise UnsafeFileError(f"{file} holds the same label twice.")
    return vectors


def _is_vector(value: Any) -> bool:
    """Return whether a value is a vector with all of its numbers in memory, as an array or an ordinary tensor."""
    import torch

    if not isinstance(value, torch.Tensor):
        return isinstance(value, np.ndarray) and value.ndim == 1 and value.size > 0
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_nested:
        return False
    n_bytes = value.numel() * value.element_size()
    return value.ndim == 1 and 0 < n_bytes <= value.untyped_storage().nbytes()


def _one_hot_order(vectors: Mapping[str, np.ndarray]) -> tuple[str, ...] | None:
    """Return the labels by their position if the vectors are the rows of an identity matrix, else ``None``."""
    order: dict[int, str] = {}
    for label, vector in vectors.items():
        if vector.size != len(vectors) or np.count_nonzero(vector) != 1 or vector.max() != 1.0:
            return None
        order.setdefault(int(vector.argmax()), label)
    return tuple(order[i] for i in range(len(order))) if len(order) == len(vectors) else None
