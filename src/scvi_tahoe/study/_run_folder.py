"""The folder of a run: its files, how it is told from another folder, and what it says about data and machine."""

from __future__ import annotations

import hashlib
import platform
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch
from anndata.abc import CSRDataset

from scvi_tahoe.data import ScreenKeys, read_screen
from scvi_tahoe.evaluate import overall_title
from scvi_tahoe.files import LOCK, locked, remove_partial
from scvi_tahoe.pretrained import model_card
from scvi_tahoe.study._files import read_mapping
from scvi_tahoe.study._plain_values import differences
from scvi_tahoe.study._run_config import TahoeRun
from scvi_tahoe.study._run_files import CONFIG, SCORES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from anndata import AnnData

    from scvi_tahoe.data import Split
    from scvi_tahoe.evaluate import EvaluationResult
    from scvi_tahoe.pretrained import PretrainedModel
    from scvi_tahoe.study._data import RunData
    from scvi_tahoe.study._run_config import DataConfig

_ROWS = 8_192  # cells of a store that are hashed at once
#: packages whose release can change the numbers of a run
_PACKAGES = (
    "scvi-tahoe", "scvi-tools", "torch", "lightning", "numpy", "scipy", "pandas", "anndata", "scikit-learn",
    "cell-eval", "pdex",
)  # fmt: skip


@contextmanager
def claimed_folder(folder: Path, run: TahoeRun) -> Iterator[None]:
    """Make the folder of a run, or go on with one that was begun with the same configuration; no other process may."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give the path of a folder for the run.")
    known, rescored = folder / CONFIG, False
    if known.exists():
        before = read_mapping(known)
        with suppress(ValueError):  # the defaults of options that the release that wrote it did not have
            before = TahoeRun.from_dict(before).to_dict()
        found = differences([before, run.to_dict()])
        if not (folder / SCORES).exists():  # how to score may be decided after training
            rescored = any(key.startswith("score.") for key in found)
            found = {key: values for key, values in found.items() if not key.startswith("score.")}
        if found:
            different = "; ".join(f"{key} was {old!r}, now {new!r}" for key, (old, new) in list(found.items())[:3])
            raise ValueError(f"{folder} holds a run with another configuration ({different}); give another folder.")
    elif folder.exists() and any(path.name != LOCK for path in folder.iterdir()):
        raise ValueError(f"{folder} holds files that are not of a run; give a new or empty folder.")
    with locked(folder):
        remove_partial(folder, recursive=True)
        if not known.exists() or rescored:
            run.to_yaml(known)
        yield


def fingerprint(data: RunData, split: Split, *, seed: int) -> dict[str, Any]:
    """Return counts and SHA-256 of genes, labels, expression and the split drawn with ``seed``."""
    index = read_screen(data.train, ScreenKeys(**data.config.keys)).index
    assigned = split.assign(index, seed=seed)
    parts = {part: assigned.rows(part) for part in ("train", "validation")}
    sides = {"train": _side(data.train, data.config)}
    if data.held_out is not None:
        sides["held_out"] = _side(data.held_out, data.config)
    content = "".join(side[part] for side in sides.values() for part in ("genes", "labels", "expression"))
    return {
        "sha256": hashlib.sha256(content.encode()).hexdigest(),
        **sides,
        "contexts": list(index.contexts),
        "n_perturbations": len(index.perturbations),
        "n_control_cells": int(index.is_control.sum()),
        "split": {
            "rule": split.to_dict(),
            "cells": {part: len(rows) for part, rows in parts.items()},
            "conditions": {part: len(np.unique(index.condition_of_cell[rows])) for part, rows in parts.items()},
            "sha256": _hash(assigned.train.tobytes(), assigned.validation.tobytes()),
        },
    }


def _side(adata: AnnData, config: DataConfig) -> dict[str, Any]:
    columns = [key for key in (config.perturbation_key, config.context_key) if key is not None]
    found = {
        "n_cells": int(adata.n_obs),
        "n_genes": int(adata.n_vars),
        "genes": _hash("\n".join(map(str, adata.var_names)).encode()),
        "labels": _hash(*("\n".join(adata.obs[key].astype(str)).encode() for key in columns)),
        "expression": _hash(*_bytes(adata.X if config.layer is None else adata.layers[config.layer])),
    }
    key = config.embedding_key
    return found if key is None else found | {"embedding_width": int(adata.obsm[key].shape[1])}


def _bytes(matrix: Any) -> Iterable[bytes | memoryview]:
    if isinstance(matrix, CSRDataset):  # a store on disk, some cells after the other
        return (part for i in range(0, matrix.shape[0], _ROWS) for part in _bytes(matrix[i : i + _ROWS]))
    if not sp.issparse(matrix):
        return [np.ascontiguousarray(matrix[:], dtype=np.float32).view(np.uint8).data]
    rows = matrix.tocsr()
    rows.sort_indices()
    # dtypes of indices depend on how a file was written, values and places do not
    parts = (rows.data.astype(np.float32), rows.indices.astype(np.int64), rows.indptr.astype(np.int64))
    return [part.view(np.uint8).data for part in parts]


def _hash(*parts: bytes | memoryview) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def provenance(run: TahoeRun, found: dict[str, Any]) -> dict[str, Any]:
    """Return releases, machine, seed and the fingerprint of the data."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    # sums over several threads are rounded otherwise than over one
    machine = {"processor": platform.machine(), "device": device, "threads": torch.get_num_threads()}
    return {"seed": run.seed, "versions": versions, "machine": machine, "data": found}


_RUN = """
## Run

| | |
|---|---|
{rows}

`config.yaml` rebuilds this run: `scvi-tahoe finetune config.yaml`. `model/` holds the model (safetensors and JSON) with
the weights of the {chosen}. All are read without running code.
`metrics.csv` is the log, `loading_report.txt` says what became of every pretrained tensor, `provenance.json` names
releases and data{scores}.
"""


def run_card(run: TahoeRun, weights: PretrainedModel, record: dict[str, Any], scores: EvaluationResult | None) -> str:
    """Return the text of ``README.md`` in a run's folder, of the model and the provenance that lie there."""
    trained, found, versions = weights.extra.get("training") or {}, record["data"], record["versions"]
    data, split = found["train"], found["split"]
    step, value = map(trained.get, ("best_step", "best_value"))
    facts = {
        "name": run.name,
        "representation": run.model.representation,
        "prior": run.model.prior,
        "trained on": f"{data['n_cells']:,} cells of {data['n_genes']:,} genes, {found['n_perturbations']} "
        f"perturbations, {len(found['contexts'])} contexts (sha256 {found['sha256']})",
        "split": f"{split['cells']['train']:,} perturbed cells train, {split['cells']['validation']:,} validate "
        f"(sha256 {split['sha256']})",
        "started from": _start_of(run, weights),
        "best step": "none validated"
        if step is None
        else f"{step} of {run.train.max_steps}, {run.train.monitor} {value:.4g}",
        **_scored(scores),
        "seed": str(run.seed),
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
    }
    rows = "\n".join(f"| {name} | {fact} |" for name, fact in facts.items())
    there = "" if scores is None else ", `scores/` holds the evaluation"
    chosen = "best validation, as in `best.ckpt`; `last.ckpt` has those of the end"
    if step is None:
        chosen = "last step, as in `last.ckpt`"
    text = model_card(weights, f"{run.name}: a State Transition model").replace(
        "`prior.safetensors`", "`model/prior.safetensors`"
    )
    return text + _RUN.format(rows=rows, scores=there, chosen=chosen)


def _start_of(run: TahoeRun, weights: PretrainedModel) -> str:
    origin = weights.provenance
    if run.start.source is None:
        return "scratch"
    words = (Path(run.start.source).name if Path(run.start.source).exists() else run.start.source, origin.checkpoint)
    licence = "non-commercial, see above" if origin.non_commercial else origin.licence or "none stated"
    return f"{' '.join(filter(None, words))} (licence: {licence})"


def _scored(scores: EvaluationResult | None) -> dict[str, str]:
    if scores is None:
        return {"scores": "not scored"}
    found = {str(name): value for name, value in scores.summary["value"].items() if value == value}
    overall = {} if scores.vcc is None else {overall_title(scores.vcc): f"{scores.vcc['overall']:.2f}"}
    return overall | {"scores": ", ".join(f"{name} {value:.4g}" for name, value in found.items())}
