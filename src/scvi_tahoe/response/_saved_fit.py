"""A fitted response model as arrays and plain values, and back: no pickle, and the same predictions to the last bit."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scvi_tahoe.data import LabelParser
from scvi_tahoe.evaluate import SeenChanges
from scvi_tahoe.files import MALFORMED, UnsafeFileError, atomic_folder, read_json
from scvi_tahoe.response._kernels import ConditionKernels, Conditions, TableKernel
from scvi_tahoe.response._members import Members, Origin, Stack
from scvi_tahoe.response._own_gene import OwnGene
from scvi_tahoe.response._regression import Group, LeftOut, Regression
from scvi_tahoe.response._response_model import Fitted, Responses

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_VALUES, _ARRAYS = "response.json", "response.npz"
_VERSION = 1


def write_fit(folder: str | Path, fitted: Fitted, values: Mapping[str, Any], *, overwrite: bool) -> None:
    """Write a fit, and further plain values, to a folder that is complete or not there."""
    state, arrays = fit_state(fitted)
    text = json.dumps({"version": _VERSION, "fit": state, **values}, indent=1)
    with atomic_folder(folder, overwrite=overwrite, kind="response model", signatures=(_VALUES,)) as partial:
        (partial / _VALUES).write_text(text, encoding="utf-8")
        np.savez(partial / _ARRAYS, **arrays)


def read_fit(folder: Path, device: torch.device) -> tuple[Fitted, dict[str, Any]]:
    """Read what :func:`write_fit` wrote; nothing in it is executed."""
    for name in (_VALUES, _ARRAYS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no saved response model: there is no {name} in it.")
    values = read_json(folder / _VALUES)
    if not isinstance(values, dict) or values.get("version") != _VERSION:
        raise ValueError(f"{folder / _VALUES} is not of a version that this package reads ({_VERSION}).")
    try:
        with np.load(folder / _ARRAYS, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        return fit_of_state(values.pop("fit"), arrays, device), values
    except MALFORMED as error:
        raise UnsafeFileError(f"{folder} is damaged, or no saved response model: {error}") from None


def fit_state(fitted: Fitted) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Plain values for JSON, and arrays by name, none of them of objects."""
    r, g, kernels = fitted.responses, fitted.regression, fitted.kernels
    arrays = {
        "perturbations": r.perturbations.astype(str), "contexts": r.contexts.astype(str), "genes": r.genes.astype(str),
        "changes": r.changes, "basis": g.basis_QG, "size": g.size_Q, "coefficients": g.coefficients_nQ,
        "excess": fitted.excess_G,
    }  # fmt: skip
    if r.noise.any():
        arrays["noise"] = r.noise
    if fitted.own is not None:
        arrays["seen"] = fitted.members.seen.changes
    for k, mean in enumerate(r.control_means.values()):
        arrays[f"control_{k}"] = mean
    for k, group in enumerate(g.groups):
        arrays[f"weights_{k}"], arrays[f"noise_{k}"] = group.weights, group.noise
    for k, table in enumerate(kernels.tables.values()):
        arrays[f"table_{k}"], arrays[f"rows_{k}"] = table.matrix, np.array(list(table.rows), dtype=str)
        arrays[f"position_{k}"] = np.array(list(table.rows.values()), dtype=np.int64)
    for way, left in fitted.left_out.items():
        arrays[f"left_mean_{way}"], arrays[f"left_variance_{way}"] = left.mean_nQ, left.variance_nQ
        arrays[f"left_owner_{way}"] = left.basis_n
        for k, basis in enumerate(left.bases):
            if basis is not g.basis_QG:
                arrays[f"left_basis_{way}_{k}"] = basis
    stacks = [
        {"question": _name(key), "weights": s.weights.tolist(), "unshrunk": s.unshrunk.tolist(), "n": s.n_conditions,
         "error": s.error.tolist()}
        for key, s in fitted.stacks.items()
    ]  # fmt: skip
    state = {
        "parser": asdict(fitted.parser),
        "contexts_with_controls": list(r.control_means),
        "groups": [[group.start, group.stop] for group in g.groups],
        "tables": {name: table.scale for name, table in kernels.tables.items()},
        "kernels": {k: getattr(kernels, k) for k in ("has_contexts", "has_combinations", "has_doses", "recurs")},
        "compares_contexts": list(kernels.control_profiles),
        "left_out": {way: len(left.bases) for way, left in fitted.left_out.items()},
        "stacks": stacks,
        "own": None if fitted.own is None else asdict(fitted.own),
        "inflation": [[_name(key), value] for key, value in fitted.inflation.items()],
        "unshrinking": [[_name(key), value] for key, value in fitted.unshrinking.items()],
        "scores": fitted.scores,
    }
    return state, arrays


def fit_of_state(state: Mapping[str, Any], arrays: Mapping[str, np.ndarray], device: torch.device) -> Fitted:
    """Make a fit from its state."""
    parser = LabelParser(**state["parser"])
    changes = arrays["changes"]
    noise = arrays.get("noise", np.zeros(changes.shape))
    means = {context: arrays[f"control_{k}"] for k, context in enumerate(state["contexts_with_controls"])}
    responses = Responses(arrays["perturbations"], arrays["contexts"], changes, noise, arrays["genes"], means)
    conditions = Conditions.of(responses.perturbations, responses.contexts, parser)
    tables = {
        name: TableKernel(_rows_of_table(arrays, k), arrays[f"table_{k}"], scale)
        for k, (name, scale) in enumerate(state["tables"].items())
    }
    profiles = {context: means[context] for context in state["compares_contexts"]}
    kernels = ConditionKernels(parser=parser, tables=tables, control_profiles=profiles, **state["kernels"])
    groups = tuple(
        Group(start, stop, arrays[f"weights_{k}"], arrays[f"noise_{k}"])
        for k, (start, stop) in enumerate(state["groups"])
    )
    basis = arrays["basis"]
    left_out = {
        way: LeftOut(
            arrays[f"left_mean_{way}"], arrays[f"left_variance_{way}"],
            tuple(arrays.get(f"left_basis_{way}_{k}", basis) for k in range(n)), arrays[f"left_owner_{way}"],
        )
        for way, n in state["left_out"].items()
    }  # fmt: skip
    stacks = {
        _key(s["question"]): Stack(np.array(s["weights"]), np.array(s["unshrunk"]), s["n"], np.array(s["error"]))
        for s in state["stacks"]
    }
    seen = SeenChanges(responses.perturbations, responses.contexts, arrays.get("seen", changes))
    return Fitted(
        responses=responses, parser=parser, conditions=conditions, kernels=kernels,
        members=Members(seen, noise, parser, tables),
        regression=Regression(basis, arrays["size"], groups, arrays["coefficients"]), left_out=left_out,
        stacks=stacks, own=None if state["own"] is None else OwnGene(**state["own"]),
        inflation={_key(question): value for question, value in state["inflation"]}, excess_G=arrays["excess"],
        device=device, scores=state["scores"],
        unshrinking={_key(question): value for question, value in state["unshrinking"]},
    )  # fmt: skip


def _rows_of_table(arrays: Mapping[str, np.ndarray], k: int) -> dict[str, int]:
    return dict(zip(arrays[f"rows_{k}"].tolist(), arrays[f"position_{k}"].tolist(), strict=True))


def _name(key: tuple[Origin, bool]) -> list[Any]:
    return [key[0].name, bool(key[1])]


def _key(name: list[Any]) -> tuple[Origin, bool]:
    return Origin[name[0]], bool(name[1])
