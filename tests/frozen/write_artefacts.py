"""Files that version 0.1 of the package wrote, each with the numbers that belong to it.

They were written once, under Python 3.11 and scvi-tools 1.4.2, and are not to be written again by later versions::

    python tests/frozen/write_artefacts.py

Only the public interface is used.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # sums depend on the device and on the number of threads, which libraries read when they are imported
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    os.environ["NUMBA_NUM_THREADS"] = os.environ["POLARS_MAX_THREADS"] = os.environ["RAYON_NUM_THREADS"] = "1"

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from lightning.pytorch import Callback

sys.path.insert(0, str(Path(__file__).parent))

from frozen_numbers import header

import scvi_tahoe
from scvi_tahoe import EvaluationReference, TahoeEnsemble, TahoeST
from scvi_tahoe.datasets import simulate_screen
from scvi_tahoe.study import TahoeRun, finetune

FILES = Path(__file__).parents[1] / "files" / "0.1"

LABELS = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}
SETUP = {**LABELS, "batch_key": "batch", "perturbation_embedding_key": "perturbation_embedding"}
EMBEDDING = {"cell_embedding_key": "X_embedding"}
SIZE = {"hidden": 8, "n_layers": 2, "intermediate": 16, "n_heads": 2, "dropout": 0.2}
BRIEF = {"max_steps": 6, "validate_every": 2, "batch_size": 2, "progress": False, "lr": 0.01}
LONG = {**BRIEF, "max_steps": 12, "validate_every": 3, "plan_kwargs": {"log_every": 2, "ema": 0.9}}
LORA = {**BRIEF, "recipe": "lora", "plan_kwargs": {"lora_rank": 2}}
GENE_DECODER = {"gene_decoder": {"n_genes": 12, "hidden": (16, 16)}}

#: what each saved model was made with, beside the screen
MODELS: dict[str, dict[str, Any]] = {
    "model_prior_cells": {"prior": "cells", "setup": {"perturbation_embedding_key": None}},
    "model_prior_transfer": {"prior": "transfer", "batch_encoder": True},
    "model_embedding": {"representation": "embedding", "network": GENE_DECODER, "setup": EMBEDDING},
    "model_both": {"representation": "expression+embedding", "setup": EMBEDDING},
}
RUN: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "data": {"dataset": "simulated", "n_genes": 12},
    "split": {
        "kind": "few_shot_context",
        "context": "context_1",
        "validation": ["perturbation_01", "perturbation_02"],
        "test": ["perturbation_03", "perturbation_04", "perturbation_05"],
    },
    "model": {"size": {"hidden": 8, "n_layers": 1, "intermediate": 16, "n_heads": 2}, "set_size": 8, "prior": "none"},
    "train": {"max_steps": 6, "batch_size": 2, "validate_every": 2, "accelerator": "cpu", "lr": 0.01, "threads": 1},
    "score": {"preset": "quick"},
}


class Interrupt(Callback):
    """Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Interrupt."""
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def small_screen(**sizes: int) -> Any:
    """Two contexts, three perturbations, twelve genes."""
    return simulate_screen(2, 3, **{"n_genes": 12, "n_cells": 6, "n_control_cells": 8, **sizes})


def make(*, setup: dict[str, Any] | None = None, **options: Any) -> TahoeST:
    """A model of the small screen."""
    adata = small_screen()
    TahoeST.setup_anndata(adata, **{**SETUP, **(setup or {})})
    return TahoeST(adata, **{"size": SIZE, "set_size": 4, "prior": "none", **options})


def train(model: TahoeST, **changes: Any) -> TahoeST:
    """Train six steps."""
    model.train(**{**BRIEF, **changes})
    return model


def predict(model: Any, *args: Any, **options: Any) -> np.ndarray:
    """Expression of four cells of each condition."""
    return model.predict(*args, **{"n_cells": 4, "progress": False, **options}).X


def losses(model: TahoeST) -> dict[str, np.ndarray]:
    """What was logged of training and of validation."""
    names = ("train_loss", "validation_loss")
    return {k: model.history[k].sort_index().to_numpy(dtype=float).ravel() for k in names}


def from_export(name: str = "export", **options: Any) -> TahoeST:
    """A model that starts from a written export, on the small screen."""
    adata = small_screen()
    TahoeST.setup_anndata(adata, **SETUP)
    return TahoeST.from_pretrained(FILES / name, adata, check_scale=False, **options)


def held_out() -> tuple[Any, Any, Any]:
    """Training cells, held-out cells, and a prediction: their cells of other contexts, shifted by the controls."""
    screen = small_screen(n_cells=16, n_control_cells=20)
    labels = screen.obs["perturbation"].astype(str)
    first = ((labels == "perturbation_1") | (labels == "perturbation_2")) & (screen.obs["context"] == "context_1")
    known, truth = screen[~first.to_numpy()].copy(), screen[(first | (labels == "control")).to_numpy()].copy()
    truth = truth[(truth.obs["context"] == "context_1").to_numpy()].copy()
    return known, truth, shifted_cells(known, truth)


def shifted_cells(known: Any, truth: Any) -> Any:
    """Draw observed cells of other contexts and shift them, as the baseline of version 0.1 did."""
    expression = np.asarray(known.X.toarray())
    label, context = (known.obs[key].astype(str).to_numpy() for key in ("perturbation", "context"))
    control = truth[(truth.obs["perturbation"] == "control").to_numpy()].X.mean(axis=0, dtype=np.float64)
    rng, blocks, labels = np.random.default_rng(0), [], []
    for name in sorted(set(truth.obs["perturbation"].astype(str)) - {"control"}):
        others = sorted(set(context[label == name]) - {"context_1"})
        n = int((truth.obs["perturbation"] == name).sum())
        pools = [expression[(label == name) & (context == c)] for c in others]
        shifts = [
            np.asarray(control).ravel()
            - np.asarray(known[(label == "control") & (context == c)].X.mean(axis=0, dtype=np.float64)).ravel()
            for c in others
        ]
        starts = np.cumsum([0, *map(len, pools)])
        chosen, block = rng.choice(starts[-1], n, replace=n > starts[-1]), np.empty((n, known.n_vars), np.float32)
        for pool, shift, start, stop in zip(pools, shifts, starts[:-1], starts[1:], strict=True):
            here = (chosen >= start) & (chosen < stop)
            block[here] = np.maximum(pool[chosen[here] - start] + shift, 0)
        blocks.append(block)
        labels += [name] * n
    obs = pd.DataFrame({"perturbation": labels, "context": "context_1"}, index=[f"p{i}" for i in range(len(labels))])
    return AnnData(np.concatenate(blocks), obs, truth.var[[]])


def evaluated(preset: str = "vcc2025") -> Any:
    """A result to be saved."""
    known, truth, predicted = held_out()
    reference = EvaluationReference.from_adata(truth, baseline_from=known, num_threads=1, de_backend="cpu", **LABELS)
    # as they were: all predicted cells are scored
    return scvi_tahoe.evaluate(predicted, reference, preset=preset, representation_check="off", match_cells=False)


def write_models() -> None:
    """Saved models, with what they predicted and what they predict after some more training."""
    for name, options in MODELS.items():
        model = train(make(**options))
        model.save(FILES / name)
        np.savez(FILES / name / "numbers.npz", prediction=predict(model), **losses(model))
        train(model, recipe="full")
        np.save(FILES / name / "trained_on.npy", predict(model))


def write_exports() -> None:
    """An export of ours with its prior, one in Arc's format, and adapters trained beside the first."""
    model = train(make(prior="transfer"))
    model.export(FILES / "export")
    np.save(FILES / "export" / "prediction.npy", predict(model))
    arc = train(make(network={"head": "hidden_residual"}))
    arc.export(FILES / "export_arc", format="arc")
    np.save(FILES / "export_arc" / "prediction.npy", predict(arc))
    adapted = from_export()
    adapted.train(**LORA)
    adapted.save_adapters(FILES / "adapters")
    adapted.save(FILES / "model_adapters")
    np.savez(FILES / "model_adapters" / "numbers.npz", prediction=predict(adapted), **losses(adapted))


def write_broken_run() -> None:
    """A run that was interrupted, and what it would have come to."""
    folder = FILES / "broken_run"
    try:
        make(prior="cells").train(**LONG, save_dir=folder, callbacks=[Interrupt(8)])
    except KeyboardInterrupt:
        pass
    model = make(prior="cells")
    model.train(**LONG)
    np.savez(folder / "whole.npz", prediction=predict(model), **losses(model))


def write_store() -> None:
    """A store on disk, with its matrix and what a model trained on it predicts."""
    screen = small_screen()
    kept = {k: np.asarray(v.todense() if hasattr(v, "todense") else v) for k, v in (("X", screen.X),)}
    screen.uns, screen.obsm = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        screen.write_h5ad(Path(folder) / "screen.h5ad")
        scvi_tahoe.write_store(Path(folder) / "screen.h5ad", FILES / "store.zarr", **LABELS)
    store = scvi_tahoe.read_store(FILES / "store.zarr")
    order = screen.obs_names.get_indexer(store.obs_names)
    TahoeST.setup_anndata(store, **LABELS)
    model = train(TahoeST(store, size=SIZE, set_size=4, prior="none"))
    np.savez(FILES / "store.npz", X=kept["X"][order], cells=list(store.obs_names), prediction=predict(model))


def write_result() -> None:
    """An evaluation."""
    result, quick = evaluated(), evaluated("quick")
    result.save(FILES / "scores")
    numbers: dict[str, Any] = {"metrics": list(result.summary.index), "quick_metrics": list(quick.summary.index)}
    for name in ("value", "baseline", "ceiling", "scaled"):
        numbers |= {name: result.summary[name].to_numpy(float), f"quick_{name}": quick.summary[name].to_numpy(float)}
    np.savez(FILES / "scores.npz", overall=np.asarray(result.vcc["overall"]), **numbers)


def write_run() -> None:
    """The folder of a run, without its figures."""
    result = finetune(TahoeRun.from_dict(json.loads(json.dumps(RUN))), FILES / "run", progress=False)
    shutil.rmtree(FILES / "run" / "figures")
    log = pd.read_csv(FILES / "run" / "metrics.csv")
    predicted = predict(TahoeST.load(FILES / "run" / "model", adata=False), run_cells())
    summary = result.scores.summary["value"]
    np.savez(
        FILES / "run.npz", prediction=predicted, metrics=list(summary.index), value=summary.to_numpy(dtype=float),
        validation_loss=log["validation_loss"].dropna().to_numpy(), best_step=np.asarray(result.best_step),
    )  # fmt: skip


def run_cells() -> Any:
    """Cells with the genes and labels of the run."""
    return simulate_screen(n_genes=12, n_cells=1, n_control_cells=8)


def write_ensemble() -> None:
    """Two members."""
    adata = small_screen()
    TahoeST.setup_anndata(adata, **SETUP)
    options = {"size": {**SIZE, "n_layers": 1}, "set_size": 4, "prior": "none"}
    ensemble = TahoeEnsemble.train(adata, seeds=(1, 2), model_kwargs=options, **BRIEF)
    ensemble.save(FILES / "ensemble")
    predicted = ensemble.predict(n_cells=4, progress=False)
    np.savez(FILES / "ensemble.npz", prediction=predicted.X, sd=predicted.varm["ensemble_sd"])


def main() -> None:
    """Write everything anew."""
    if FILES.exists():
        shutil.rmtree(FILES)
    FILES.mkdir(parents=True)
    (FILES / "environment.json").write_text(json.dumps(header(), indent=1) + "\n")
    for write in (
        write_models, write_exports, write_broken_run, write_store, write_result, write_run, write_ensemble,
    ):  # fmt: skip
        write()


if __name__ == "__main__":
    main()
