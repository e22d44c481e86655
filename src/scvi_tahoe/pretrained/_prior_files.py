"""What a model's prior keeps of its training data, in a folder: arrays as safetensors, labels as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_tahoe.files import MALFORMED, UnsafeFileError, one_line, verify_size

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: Axes of every array: C conditions, K contexts, G genes, Q quantiles, R donors, V their values, I is R + 1.
_AXES = {
    "means": "CG",
    "variances": "CG",
    "n_cells": "C",
    "control_means": "KG",
    "control_variances": "KG",
    "n_controls": "K",
    "control_quantiles": "KQG",
    "donor_condition": "R",
    "donors.data": "V",
    "donors.indices": "V",
    "donors.indptr": "I",
}
_WHOLE = {"n_cells", "n_controls", "donor_condition", "donors.indices", "donors.indptr"}
_KINDS = ("mean", "transfer", "cells")
_SIZE_LIMIT = 200_000_000_000


def write_prior(prior: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Write the arrays of a prior (see :class:`PretrainedModel`) and return the rest of it, for a JSON file."""
    from safetensors.numpy import save_file

    flat = {**prior, **{f"donors.{name}": values for name, values in prior["donors"].items()}}
    save_file({name: np.ascontiguousarray(flat[name]) for name in _AXES}, path)
    return {
        "kind": prior["kind"],
        "conditions": [list(c) for c in prior["conditions"]],
        "contexts": list(prior["contexts"]),
    }


def read_prior(path: Path, labels: Mapping[str, Any], n_genes: int) -> dict[str, Any]:
    """Return the prior that :func:`write_prior` wrote."""
    conditions = [(str(context), str(perturbation)) for context, perturbation in labels["conditions"]]
    contexts = tuple(str(context) for context in labels["contexts"])
    arrays = read_arrays(path, _SIZE_LIMIT)
    wrong = (
        _wrong_labels(labels["kind"], conditions, contexts)
        or _wrong_shapes(arrays, {"C": len(conditions), "K": len(contexts), "G": n_genes})
        or _wrong_values(arrays, labels["kind"], n_conditions=len(conditions), n_genes=n_genes)
    )
    if wrong:
        raise UnsafeFileError(f"{path.name} does not hold a prior of this network: {wrong}.")
    donors = {name: arrays.pop(f"donors.{name}") for name in ("data", "indices", "indptr")}
    shape = (len(arrays["donor_condition"]), n_genes)
    return {
        **arrays,
        "kind": labels["kind"],
        "conditions": conditions,
        "contexts": contexts,
        "donors": {**donors, "shape": shape},
    }


def read_arrays(path: Path, limit: int) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file of at most ``limit`` bytes."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    verify_size(path, limit)
    try:
        return load_file(path)
    except (*MALFORMED, SafetensorError) as error:
        raise UnsafeFileError(f"{path.name} is damaged: {one_line(error)}") from None


def _wrong_labels(kind: object, conditions: list[tuple[str, str]], contexts: tuple[str, ...]) -> str:
    if kind not in _KINDS:
        return f"its kind is {kind!r}, and there are {list(_KINDS)}"
    if len(set(conditions)) != len(conditions) or len(set(contexts)) != len(contexts):
        return "a condition or context occurs twice"
    if not conditions or (unknown := {context for context, _ in conditions} - set(contexts)):
        return f"there are no controls of {sorted(unknown)[:3]}" if conditions else "it has no conditions"
    return ""


def _wrong_shapes(arrays: Mapping[str, np.ndarray], sizes: dict[str, int]) -> str:
    if arrays.keys() != _AXES.keys():
        return f"it has the arrays {sorted(arrays)}"
    for name, axes in _AXES.items():
        shape = arrays[name].shape
        if len(shape) != len(axes) or any(sizes.setdefault(a, n) != n for a, n in zip(axes, shape, strict=True)):
            return f"{name} has the shape {shape}"
        if arrays[name].dtype.kind != "i" if name in _WHOLE else arrays[name].dtype != np.float32:
            return f"{name} has the type {arrays[name].dtype}"
    return "" if sizes["I"] == sizes["R"] + 1 and sizes["Q"] else "donors or quantiles are incomplete"


def _wrong_values(arrays: Mapping[str, np.ndarray], kind: str, *, n_conditions: int, n_genes: int) -> str:
    for name, values in arrays.items():
        if name not in _WHOLE and not np.isfinite(values).all():
            return f"{name} has values that are not finite"
    indices, indptr, owner = (arrays[name] for name in ("donors.indices", "donors.indptr", "donor_condition"))
    lowest = min(arrays["n_cells"].min(), arrays["n_controls"].min())
    rows_fit = indptr[0] == 0 and indptr[-1] == len(indices) and (np.diff(indptr) >= 0).all()
    if lowest < 1 or not rows_fit or not _within(indices, n_genes) or not _within(owner, n_conditions):
        return "numbers of cells, or places of its donors, are out of range"
    if kind == "cells" and len(np.unique(owner)) != n_conditions:
        return "a condition has no donors"
    return ""


def _within(places: np.ndarray, n: int) -> bool:
    return bool(((places >= 0) & (places < n)).all())
