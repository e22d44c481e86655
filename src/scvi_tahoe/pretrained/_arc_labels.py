"""The label files of Arc's folders: which input, row or column belongs to which perturbation, batch or context."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_tahoe.data import EmbeddingTable
from scvi_tahoe.files import MEGABYTE, UnsafeFileError, member, read_pickle, read_torch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: arc-state insists on a batch map; the label under which we write one for models without batches.
NO_BATCHES = "(no batches)"

_MAP_LIMIT = 4_000 * MEGABYTE
_MAX_TABLE_BYTES = 2_000 * MEGABYTE
_MAX_LABEL = 1_000
_SUFFIXES = (".torch", ".pt", ".pkl")


def read_perturbations(folder: Path) -> EmbeddingTable:
    """Return the perturbation table of a folder: names and vectors of one width."""
    vectors = _read_map(folder, "pert_onehot_map")
    if vectors is None:
        raise FileNotFoundError(f"{folder} has no pert_onehot_map.pt, which says which input is which perturbation.")
    widths = {len(vector) for vector in vectors.values()}
    if len(widths) != 1:
        raise UnsafeFileError(f"pert_onehot_map holds vectors of {len(widths)} different widths.")
    order = _one_hot_order(vectors)
    if order is not None:
        return EmbeddingTable.one_hot_of(order)
    return EmbeddingTable(tuple(vectors), np.stack(list(vectors.values())))


def read_batches(folder: Path) -> tuple[str, ...] | None:
    """Return the technical batches in the order of the batch encoder's rows, or ``None`` without a file."""
    labels = read_labels(folder, "batch_onehot_map")
    return None if labels == (NO_BATCHES,) else labels


def read_gene_names(folder: Path) -> tuple[str, ...] | None:
    """Return the gene names in ``var_dims.pkl``, or ``None`` without the file or the names."""
    try:
        path = member(folder, "var_dims.pkl")
    except FileNotFoundError:
        return None
    return gene_names(read_pickle(path))


def gene_names(settings: Any) -> tuple[str, ...] | None:
    """Return the entry ``gene_names`` of a mapping, or ``None`` if it has none or it is no list of names."""
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
        try:
            path = member(folder, stem + suffix)
        except FileNotFoundError:
            continue
        content = read_pickle(path) if suffix == ".pkl" else read_torch(path, limit=_MAP_LIMIT)
        return vectors_of(path.name, content)
    return None


def vectors_of(file: str, content: Any) -> dict[str, np.ndarray]:
    """Return the vectors of a map as float32 arrays, after checking that it is one."""
    import torch

    if not isinstance(content, dict) or not content:
        raise UnsafeFileError(f"{file} does not hold a mapping of labels to vectors.")
    # Before any is converted: vectors that share their memory in the file have memory of their own afterwards.
    n_numbers = sum(math.prod(getattr(vector, "shape", ())) for vector in content.values())
    if 4 * n_numbers > _MAX_TABLE_BYTES:
        raise UnsafeFileError(f"{file} claims a table of {4 * n_numbers:,} bytes; it can have {_MAX_TABLE_BYTES:,}.")
    vectors = {}
    for label, vector in content.items():
        if isinstance(vector, torch.Tensor):
            plain = vector.layout == torch.strided and vector.device.type == "cpu" and vector.ndim == 1
            if not plain or vector.numel() * vector.element_size() > vector.untyped_storage().nbytes():
                raise UnsafeFileError(f"{file}: {label!r} is not a plain vector.")
            vector = vector.detach().float().numpy()
        if not isinstance(vector, np.ndarray) or vector.ndim != 1 or vector.size == 0:
            raise UnsafeFileError(f"{file}: {label!r} is not a vector.")
        if not str(label).isprintable() or len(str(label)) > _MAX_LABEL:
            raise UnsafeFileError(f"{file} has the label {str(label)[:40]!r}, which cannot be printed in one line.")
        vectors[str(label)] = vector.astype(np.float32, copy=False)
        if not np.isfinite(vectors[str(label)]).all():
            raise UnsafeFileError(f"{file}: {label!r} holds values that are not finite.")
    if len(vectors) != len(content):
        raise UnsafeFileError(f"{file} holds the same label twice.")
    return vectors


def _one_hot_order(vectors: Mapping[str, np.ndarray]) -> tuple[str, ...] | None:
    """Return the labels by their position if the vectors are the rows of an identity matrix, else ``None``."""
    order: dict[int, str] = {}
    for label, vector in vectors.items():
        if vector.size != len(vectors) or np.count_nonzero(vector) != 1:
            return None
        position = int(vector.argmax())
        if vector[position] != 1.0 or position in order:
            return None
        order[position] = label
    return tuple(order[i] for i in range(len(order)))
