"""Evaluation results on disk: a folder of CSV, parquet, NPZ and JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_tahoe.files import atomic_folder

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

_FORMAT = 1
#: tables written as CSV, for people to read, with the number of their index columns
_CSV = {
    "summary": 1,
    "per_perturbation": 2,
    "checks": 1,
    "baseline_per_perturbation": 2,
    "halves_per_perturbation": 2,
    "cells": 0,
}
_PARQUET = ("de_observed", "de_predicted")


def save_result(fields: Mapping[str, Any], folder: str | os.PathLike[str]) -> None:
    """Write the fields of a result to a folder, which appears complete or not at all."""
    with atomic_folder(folder, overwrite=True, kind="evaluation result", signatures=["result.json"]) as partial:
        for name in _CSV:
            if fields[name] is not None:
                fields[name].to_csv(partial / f"{name}.csv", index=_CSV[name] > 0)
        for name in _PARQUET:
            if fields[name] is not None:
                fields[name].to_parquet(partial / f"{name}.parquet")
        effects = fields["effects"]
        np.savez_compressed(
            partial / "effects.npz",
            conditions=np.array(effects.conditions),
            genes=effects.genes,
            observed=effects.observed,
            predicted=effects.predicted,
        )
        record = {"format": _FORMAT, "vcc": fields["vcc"], "provenance": dict(fields["provenance"])}
        (partial / "result.json").write_text(json.dumps(record, indent=1, default=float))


def load_result(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the fields of a result, ``effects`` as a dictionary."""
    folder = Path(folder)
    if not (folder / "result.json").exists():
        raise FileNotFoundError(f"{folder} holds no evaluation result (no result.json).")
    record = json.loads((folder / "result.json").read_text())
    if record["format"] != _FORMAT:
        raise ValueError(
            f"{folder} has format {record['format']} and this release reads format {_FORMAT}; update scvi-tahoe."
        )
    fields: dict[str, Any] = {"vcc": record["vcc"], "provenance": record["provenance"]}
    for name in _CSV:
        path = folder / f"{name}.csv"
        fields[name] = _read_csv(path, name) if path.exists() else None
    for name in _PARQUET:
        path = folder / f"{name}.parquet"
        fields[name] = pd.read_parquet(path) if path.exists() else None
    with np.load(folder / "effects.npz") as arrays:
        fields["effects"] = {name: arrays[name] for name in ("genes", "observed", "predicted")}
        fields["effects"]["conditions"] = tuple((str(c), str(p)) for c, p in arrays["conditions"])
    return fields


def _read_csv(path: Path, name: str) -> pd.DataFrame:
    # labels such as "1" or "NA" are names, not numbers or gaps
    types: dict[Any, Any] = {"side": str, "context": str} if name == "cells" else dict.fromkeys(range(_CSV[name]), str)
    table = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])
    if name == "checks":
        table[["allowed", "message"]] = table[["allowed", "message"]].fillna("")
    return table.set_index(list(table.columns[: _CSV[name]])) if _CSV[name] else table
