"""Evaluation results on disk: a folder of CSV, parquet, NPZ and JSON files, written in one step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_tahoe.files import atomic_write

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from scvi_tahoe.evaluate._result import EvaluationResult

__all__ = ["load_result", "save_result"]

_FORMAT = 1
#: tables written as CSV, to be read by people, with the number of their index columns
_CSV = {
    "summary": 1,
    "per_perturbation": 2,
    "checks": 1,
    "baseline_per_perturbation": 2,
    "halves_per_perturbation": 2,
    "cells": 0,
}
_PARQUET = ("de_observed", "de_predicted")


def save_result(result: EvaluationResult, folder: str | os.PathLike[str]) -> None:
    """Write a result beside its final place, then move it there.

    Parameters
    ----------
    result
        Result to write.
    folder
        Folder to make; one that holds something other than a result is left alone.

    Raises
    ------
    FileExistsError
        If the folder exists and holds no result.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "result.json").exists():
        msg = f"{folder} exists and holds no evaluation result; choose another folder."
        raise FileExistsError(msg)
    with atomic_write(folder) as partial:
        partial.mkdir()
        _write(result, partial)


def _write(result: EvaluationResult, folder: Path) -> None:
    for name in _CSV:
        table = getattr(result, name)
        if table is not None:
            table.to_csv(folder / f"{name}.csv", index=_CSV[name] > 0)
    for name in _PARQUET:
        table = getattr(result, name)
        if table is not None:
            table.to_parquet(folder / f"{name}.parquet")
    np.savez_compressed(
        folder / "effects.npz",
        conditions=np.array(result.effects.conditions),
        genes=result.effects.genes,
        observed=result.effects.observed,
        predicted=result.effects.predicted,
    )
    record = {"format": _FORMAT, "vcc": result.vcc, "provenance": dict(result.provenance)}
    (folder / "result.json").write_text(json.dumps(record, indent=1, default=float))


def load_result(folder: str | os.PathLike[str], make_effects: Callable[..., Any]) -> dict[str, Any]:
    """Read the fields of a result.

    Parameters
    ----------
    folder
        Folder that :func:`save_result` wrote.
    make_effects
        Class of the deltas.

    Raises
    ------
    FileNotFoundError
        If the folder holds no result.
    ValueError
        If it was written by a later release in another format.
    """
    folder = Path(folder)
    if not (folder / "result.json").exists():
        msg = f"{folder} holds no evaluation result (no result.json)."
        raise FileNotFoundError(msg)
    record = json.loads((folder / "result.json").read_text())
    if record["format"] != _FORMAT:
        msg = f"{folder} has format {record['format']} and this release reads format {_FORMAT}; update scvi-tahoe."
        raise ValueError(msg)
    fields: dict[str, Any] = {"vcc": record["vcc"], "provenance": record["provenance"]}
    for name, n_index in _CSV.items():
        path = folder / f"{name}.csv"
        # labels such as "1" or "NA" are names, not numbers or gaps
        text = {0: str, 1: str} if n_index == 2 else {0: str}
        if path.exists():
            types = text if name != "cells" else {"side": str, "context": str}
            table = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])
            if name == "checks":
                table[["allowed", "message"]] = table[["allowed", "message"]].fillna("")
            fields[name] = table.set_index(list(table.columns[:n_index])) if n_index else table
        else:
            fields[name] = None
    for name in _PARQUET:
        path = folder / f"{name}.parquet"
        fields[name] = pd.read_parquet(path) if path.exists() else None
    with np.load(folder / "effects.npz") as arrays:
        conditions = tuple((str(c), str(p)) for c, p in arrays["conditions"])
        fields["effects"] = make_effects(conditions, arrays["genes"], arrays["observed"], arrays["predicted"])
    return fields
