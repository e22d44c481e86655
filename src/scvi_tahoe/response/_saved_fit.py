"""A fitted response model in a folder: no pickle, and the same predictions to the last bit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_tahoe.files import (
    MALFORMED,
    UnsafeFileError,
    atomic_folder,
    one_line,
    read_json,
    restore,
    verify_checksums,
    write_checksums,
)
from scvi_tahoe.response._saved import fitted_from_plain, plain_of_fitted, wrong_plain
from scvi_tahoe.response._uncertainty import Measured

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from scvi_tahoe.response._fitted import Fitted

_VALUES, _ARRAYS = "response.json", "response.npz"
_VERSION = 1


def write_fit(
    folder: str | Path, fitted: Fitted, measured: Measured, values: Mapping[str, Any], *, overwrite: bool
) -> None:
    """Write a fit, and further plain values, to a folder that is complete or not there."""
    arrays, settings = plain_of_fitted(fitted)
    c, means = fitted.conditions, fitted.responses.control_means
    arrays = {f"fit_{name}": values for name, values in arrays.items()}
    arrays |= {f"measured_{name}": getattr(measured, name) for name in ("has_noise", "changes", "deviation")}
    arrays["control_means"] = np.stack(list(means.values())) if means else np.empty((0, 0))
    conditions = list(zip(c.contexts.tolist(), c.perturbations.tolist(), strict=True))
    text = {"version": _VERSION, "fit": settings, "conditions": conditions, "with_controls": list(means), **values}
    with atomic_folder(folder, overwrite=overwrite, kind="response model", signatures=(_VALUES,)) as partial:
        (partial / _VALUES).write_text(json.dumps(text, indent=1), encoding="utf-8")
        np.savez(partial / _ARRAYS, **arrays)  # type: ignore[arg-type]
        write_checksums(partial)


def read_fit(folder: Path, device: torch.device) -> tuple[Fitted, Measured, dict[str, Any]]:
    """Read what :func:`write_fit` wrote; nothing in it is executed."""
    restore(folder)
    for name in (_VALUES, _ARRAYS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is not a saved response model: there is no {name} in it.")
    verify_checksums(folder)
    values = read_json(folder / _VALUES)
    if not isinstance(values, dict) or values.get("version") != _VERSION:
        raise ValueError(f"{folder / _VALUES} is not of a version that this package reads ({_VERSION}).")
    try:
        with np.load(folder / _ARRAYS, allow_pickle=False) as stored:
            arrays = dict(stored)
        of_fit = {name.removeprefix("fit_"): found for name, found in arrays.items() if name.startswith("fit_")}
        settings, conditions = values["fit"], [tuple(pair) for pair in values["conditions"]]
        means = dict(zip(values["with_controls"], arrays["control_means"], strict=True))
        wrong = wrong_plain(of_fit, settings, conditions, means, len(settings["genes"]))
        if wrong:
            raise UnsafeFileError(f"{folder} is damaged, or no saved response model: {wrong}.")
        names = ("has_noise", "changes", "deviation")
        measured = Measured(*(arrays[f"measured_{name}"] for name in names))
        return fitted_from_plain(of_fit, settings, conditions, means, device), measured, values
    except MALFORMED as error:
        raise UnsafeFileError(f"{folder} is damaged, or no saved response model: {one_line(error)}") from None
