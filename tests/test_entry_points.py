"""No file runs code, whichever public function or command reads it: all that take a path are found and tried."""

from __future__ import annotations

import importlib
import inspect
import io
import os
import pickle
import pkgutil
from contextlib import suppress
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pytest
import torch
import typer.testing

import scvi_tahoe
from scvi_tahoe import TahoeST, datasets
from scvi_tahoe.cli import app

if TYPE_CHECKING:
    from pathlib import Path

#: of each name by which some reader looks for a file
NAMES = {
    "yaml": ("config.yaml", "study.yaml", "run.yaml", "hparams.yaml"),
    "pickle": ("var_dims.pkl", "batch_onehot_map.pkl", "cell_type_onehot_map.pkl", "table.pkl", "history.pkl"),
    "torch": (
        "model.pt", "pert_onehot_map.pt", "protein_embeddings.pt", "batch_onehot_map.torch", "data_module.torch",
        "final.ckpt", "best.ckpt", "last.ckpt", "adapters.pt", "table.pt",
    ),
    "numpy": ("response.npz", "effects.npz", "table.npz", "table.npy"),
    "text": ("config.json", "ensemble.json", "adapters.json", "response.json", "result.json", "metrics.csv", "a.gmt"),
    "cells": ("cells.h5ad",),
}  # fmt: skip
#: functions that take a path to write to
WRITE = {
    "ConfigCheck.write", "EvaluationResult.save", "EvaluationResult.to_html", "ResponseModel.save", "StudyConfig.run",
    "TahoeEnsemble.save", "TahoeEnsemble.train", "TahoeRun.to_yaml", "TahoeST.export", "TahoeST.predict",
    "TahoeST.push_to_hub", "TahoeST.save", "TahoeST.save_adapters", "run_demo", "submission", "write_table",
}  # fmt: skip


class Plant:
    """Writes a marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def _saved(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.fixture(scope="module")
def model():
    adata = datasets.simulate_screen(2, 3, n_genes=12, n_cells=8, n_control_cells=8)
    TahoeST.setup_anndata(adata, "perturbation", "control", context_key="context")
    size = {"hidden": 8, "n_layers": 1, "intermediate": 8, "n_heads": 2}
    return TahoeST(adata, size=size, set_size=4, prior="none")


@pytest.fixture
def planted(tmp_path):
    """Return the marker, and paths to read: files of every kind with a plant in them, and folders of these."""
    marker, folder = tmp_path / "code ran", tmp_path / "planted"
    (folder / "checkpoints").mkdir(parents=True)
    write = {
        "yaml": lambda path: path.write_text(f"data: !!python/object/apply:os.system [\"touch '{marker}'\"]\n"),
        "pickle": lambda path: path.write_bytes(pickle.dumps({"gene_names": Plant(marker)})),
        "torch": lambda path: torch.save({"state_dict": {}, "a": Plant(marker)}, path),
        "numpy": lambda path: path.write_bytes(_saved(np.array([Plant(marker)], dtype=object))),
        "text": lambda path: path.write_bytes(pickle.dumps(Plant(marker))),
        "cells": lambda path: ad.AnnData(np.eye(3, dtype=np.float32)).write_h5ad(path),
    }
    paths = []
    for kind, names in NAMES.items():
        for name in names:
            write[kind](folder / name)
            paths.append(folder / name)
    write["torch"](folder / "checkpoints" / "final.ckpt")
    run = folder / "run"
    run.mkdir()
    for path in paths:  # as a run folder has its model
        (run / path.name).hardlink_to(path)
    return marker, [folder, run, *paths]


def _functions():
    """Public functions with a parameter that is a path, by their names."""
    modules = [m.name for m in pkgutil.iter_modules(scvi_tahoe.__path__) if m.name != "files"]  # which all others use
    modules = ["scvi_tahoe", *(f"scvi_tahoe.{name}" for name in modules if not name.startswith("_"))]
    found = {}
    for module in map(importlib.import_module, modules):
        for name in getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")]):
            thing = getattr(module, name)
            members = {name: thing} if inspect.isfunction(thing) else {}
            if inspect.isclass(thing):
                methods = inspect.getmembers(thing, inspect.isroutine)
                members = {f"{name}.{n}": m for n, m in methods if not n.startswith("_")}
            for own, function in members.items():
                inner = inspect.unwrap(function)
                ours = (getattr(inner, "__module__", None) or "").startswith("scvi_tahoe")
                if ours and any("Path" in str(p.annotation) for p in inspect.signature(inner).parameters.values()):
                    found[own] = function
    return found


#: how functions that need more than a path are called: with the function, the path and a model
CALLS = {
    "EvaluationReference.from_adata": lambda f, p, m: f(
        m.adata, perturbation_key="perturbation", control="control", context_key="context", cache_dir=p.parent
    ),
    "TahoeST.load": lambda f, p, m: f(p, m.adata),
    "TahoeST.load_adapters": lambda _, p, m: m.load_adapters(p),
    "TahoeST.train": lambda _, p, m: m.train(max_steps=1, save_dir=p.parent, resume_from=p, progress=False),
    "TahoeST.from_pretrained": lambda f, p, m: f(p, m.adata),
    "TahoeEnsemble.load": lambda f, p, m: f(p, m.adata),
    "compare_runs": lambda f, p, _: f(p, p),
    "embed_cells": lambda f, p, m: f(m.adata, p),
    "inspect_path": lambda f, p, _: f(p, p),
    "finetune": lambda f, p, _: f(p, p.with_name("out"), progress=False),
    "run_study": lambda f, p, _: f(p, folder=p.with_name("out"), progress=False),
    "string_links": lambda f, p, _: f(p, info=p),
    "write_store": lambda f, p, _: f(p, p.with_name("out"), perturbation_key="a", control="b"),
}
REFUSALS = (ValueError, TypeError, OSError, KeyError, NotImplementedError, ImportError)


def test_no_public_function_runs_code_of_a_file(planted, model):
    marker, paths = planted
    functions = _functions()
    assert set(functions) >= {*WRITE, *CALLS}
    for name in sorted(set(functions) - WRITE):
        for path in paths:
            with suppress(*REFUSALS):  # any other error is one that no user should see
                CALLS.get(name, lambda f, p, _: f(p))(functions[name], path, model)
            assert not marker.exists(), f"{name} ran code of {path.name}"


#: commands are slow to start
_ONE_OF_A_KIND = ("planted", "run.yaml", "table.pkl", "final.ckpt", "table.npz")
COMMANDS = {
    "convert": ["{}", "{}.out"], "finetune": ["{}"], "study": ["{}"], "check": ["{}"], "inspect": ["{}"],
    "embed": ["{}", "{}", "-o", "{}.out"], "evaluate": ["{}", "{}", "--perturbation-key", "a", "--control", "b"],
    "predict": ["{}", "{}", "-o", "{}.out"], "tables": ["gene-sets", "{}", "-o", "{}.out"],
    "respond": ["{}", "--perturbation-key", "a", "-o", "{}.out", "--table", "x={}"], "demo": None,
    "train": ["{}", "--perturbation-key", "a", "--control", "b", "--folder", "{}.out", "--table", "x={}"],
    "init": ["{}", "-o", "{}.out"],
    "plan": ["{}", "--perturbation-key", "a", "--control", "b", "--table", "x={}", "-o", "{}.out"],
}  # fmt: skip


def test_no_command_runs_code_of_a_file(planted):
    marker, paths = planted
    runner = typer.testing.CliRunner()
    assert {c.name or c.callback.__name__ for c in app.registered_commands} == set(COMMANDS)
    for name, arguments in COMMANDS.items():
        for path in (path for path in paths if arguments and path.name in _ONE_OF_A_KIND):
            result = runner.invoke(app, [name, *(argument.format(path) for argument in arguments)])
            assert not marker.exists(), f"{name} ran code of {path.name}"
            assert result.exit_code in (0, 1, 2), (name, path.name, result.output)
