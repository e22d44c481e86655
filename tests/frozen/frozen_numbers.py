"""Hashes of what the package computes: losses, weights, predictions, scores. Not one of them may change by a bit.

::

    python tests/frozen/frozen_numbers.py --compare tests/frozen/python3.11.json      # exit code 1 if any differs
    python tests/frozen/frozen_numbers.py --compare FILE --only evaluate/ --only priors/
    python tests/frozen/frozen_numbers.py --write FILE
    python tests/frozen/frozen_numbers.py --list

A hash is that of the bytes, so it belongs to a kind of processor and to releases of torch, numpy and scvi-tools; the
header of the file names them. Only the public interface is used, so that older and newer code can be compared.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # sums depend on the device and on the number of threads, which libraries read when they are imported
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    os.environ["NUMBA_NUM_THREADS"] = os.environ["POLARS_MAX_THREADS"] = os.environ["RAYON_NUM_THREADS"] = "1"

import argparse
import hashlib
import importlib
import json
import platform
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from functools import cache, singledispatch
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy
import scipy.sparse as sp
import scvi
import torch

import scvi_tahoe
from scvi_tahoe import (
    EvaluationReference,
    FewShotContext,
    FractionSplit,
    HeldOutConditions,
    HeldOutContexts,
    HeldOutPerturbations,
    TahoeEnsemble,
    TahoeST,
    nn,
)
from scvi_tahoe import datasets as shipped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SETUP = {"perturbation_key": "perturbation", "control": "control", "context_key": "context", "batch_key": "batch"}
LABELS = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}
SIZE = {"hidden": 16, "n_layers": 3, "intermediate": 32, "n_heads": 2, "dropout": 0.2}
BRIEF = {"max_steps": 8, "validate_every": 4, "batch_size": 2, "progress": False}
TABLE = {"perturbation_embedding_key": "perturbation_embedding"}
EMBEDDING = {"cell_embedding_key": "X_embedding"}
GOLDEN = Path(__file__).resolve().parents[1] / "golden"

#: columns of the history that are a matter of the clock or of memory
CLOCK = ("sets_per_second", "mfu", "peak_memory_gb")

CASES: dict[str, Callable[[], dict[str, Any]]] = {}


def case(name: str, **options: Any) -> Callable:
    """Register a function that returns what is to be hashed, by name."""

    def register(function: Callable) -> Callable:
        CASES[name] = lambda: function(**options)
        return function

    return register


def cases(family: str, options: Iterable[str]) -> Callable:
    """Register a function once for each of its options."""

    def register(function: Callable) -> Callable:
        for option in options:
            CASES[f"{family}/{option}"] = lambda option=option: function(option)
        return function

    return register


# ---------------------------------------------------------------- hashes


@singledispatch
def chunks(value: Any) -> Iterator[bytes]:
    """The bytes of a value, in an order that its content decides."""
    yield repr(value).encode()


@chunks.register
def _(value: pd.DataFrame) -> Iterator[bytes]:
    yield from chunks([[str(c) for c in value.columns], value.index, *(value[column] for column in value.columns)])


@chunks.register
def _(value: pd.MultiIndex) -> Iterator[bytes]:
    yield from chunks([str(tuple(map(str, row))) for row in value])


@chunks.register(pd.Series)
@chunks.register(pd.Index)
def _(value: Any) -> Iterator[bytes]:
    numeric = pd.api.types.is_numeric_dtype(value.dtype) and not isinstance(value.dtype, pd.CategoricalDtype)
    yield from chunks(value.to_numpy() if numeric else [str(v) for v in value])


@chunks.register(sp.spmatrix)
@chunks.register(sp.sparray)
def _(value: Any) -> Iterator[bytes]:
    value = value.tocsr().sorted_indices()
    parts = (np.asarray(value.shape), value.indptr.astype(np.int64), value.indices.astype(np.int64), value.data)
    yield from chunks(parts)


@chunks.register
def _(value: torch.Tensor) -> Iterator[bytes]:
    yield from chunks(value.detach().cpu().numpy())


@chunks.register
def _(value: np.ndarray) -> Iterator[bytes]:
    if value.dtype.kind not in "biuf":
        yield from chunks([value.shape, *map(str, value.ravel())])
        return
    if value.dtype.kind == "f":
        value = np.where(np.isnan(value), np.array(np.nan, value.dtype), value)  # whatever the payload
    yield f"{value.dtype.str}{value.shape}".encode()
    yield np.ascontiguousarray(value).tobytes()


@chunks.register
def _(value: np.generic) -> Iterator[bytes]:
    yield from chunks(np.asarray(value))


@chunks.register
def _(value: dict) -> Iterator[bytes]:
    for key in sorted(value, key=str):
        yield str(key).encode()
        yield from chunks(value[key])


@chunks.register(list)
@chunks.register(tuple)
def _(value: Any) -> Iterator[bytes]:
    yield f"[{len(value)}]".encode()
    for entry in value:
        yield from chunks(entry)


def digest(value: Any) -> str:
    """A short hash of a value."""
    sha = hashlib.sha256()
    for chunk in chunks(value):
        sha.update(chunk)
    return sha.hexdigest()[:24]


def rounded(value: Any) -> Any:
    """Numbers to ten digits, where threads of another program add up in the order they finish."""
    if isinstance(value, pd.DataFrame):
        return value.map(rounded)
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return float(f"{value:.10g}") if isinstance(value, float | np.floating) else value


# ---------------------------------------------------------------- what is hashed of a model


@cache
def _simulated(n_perturbations: int = 6, n_genes: int = 60, n_cells: int = 24, n_control_cells: int = 40) -> ad.AnnData:
    return shipped.simulate_screen(
        2, n_perturbations, n_genes=n_genes, n_cells=n_cells, n_control_cells=n_control_cells
    )


def simulated(**sizes: int) -> ad.AnnData:
    """Two contexts, six perturbations, two batches, 60 genes; a copy of one's own."""
    return _simulated(**sizes).copy()


def without(adata: ad.AnnData, *conditions: tuple[str, str]) -> ad.AnnData:
    """Leave out conditions (context, perturbation); an empty context stands for all."""
    gone = np.zeros(adata.n_obs, dtype=bool)
    for context, perturbation in conditions:
        gone |= ((adata.obs["perturbation"] == perturbation) & adata.obs["context"].isin([context])).to_numpy()
    adata = adata[~gone].copy()
    for key in ("perturbation", "context"):
        adata.obs[key] = adata.obs[key].astype(str).astype("category")
    return adata


def make(adata: ad.AnnData | None = None, *, setup: dict[str, Any] | None = None, **options: Any) -> TahoeST:
    """A tiny model without a prior."""
    adata = simulated() if adata is None else adata
    TahoeST.setup_anndata(adata, **{**SETUP, **(setup or {})})
    return TahoeST(adata, **{"size": SIZE, "set_size": 8, "prior": "none", **options})


def train(model: TahoeST, **changes: Any) -> TahoeST:
    """Train eight steps."""
    model.train(**{**BRIEF, **changes})
    return model


def predict(model: Any, *args: Any, **options: Any) -> ad.AnnData:
    """Nine cells of each condition."""
    return model.predict(*args, **{"n_cells": 9, "progress": False, **options})


def history(model: TahoeST) -> dict[str, Any]:
    """Everything that was logged but what the clock decides: losses apart from rates."""
    logged = {k: v.sort_index() for k, v in model.history.items() if not k.startswith(CLOCK)}
    losses = {k: v for k, v in logged.items() if k.startswith(("train_", "validation_"))}
    return {"losses": losses, "rates": {k: v for k, v in logged.items() if k not in losses}}


def weights(model: TahoeST) -> list[torch.Tensor]:
    """All tensors in their order."""
    return list(model.module.state_dict().values())


def prediction(adata: ad.AnnData) -> dict[str, Any]:
    """Cells and labels of a prediction."""
    return {"X": adata.X, "obs": adata.obs, "genes": adata.var_names}


def trained(model: TahoeST, *args: Any, **options: Any) -> dict[str, Any]:
    """Losses, rates, weights and a prediction of a trained model."""
    kept = model.training_config_ or {}
    best = {name: kept.get(name) for name in ("best_step", "best_value", "correction_share")}
    found = {**history(model), "weights": weights(model), "best": best}
    return {**found, "prediction": prediction(predict(model, *args, **options))}


def same(first: ad.AnnData, second: ad.AnnData) -> None:
    """Stop where two predictions that must be equal are not."""
    if not np.array_equal(np.asarray(first.X), np.asarray(second.X)):
        raise RuntimeError("two predictions that must be the same differ")


# ---------------------------------------------------------------- kinds of models

KINDS: dict[str, dict[str, Any]] = {
    "expression": {},
    "embedding": {"representation": "embedding"},
    "expression+embedding": {"representation": "expression+embedding"},
    "batch encoder": {"batch_encoder": True},
    "confidence": {"network": {"confidence_token": True}},
    "one-hot": {"setup": {}},
    "prior of means": {"prior": "transfer"},
    "prior of cells": {"prior": "cells"},
}


@cases("kinds", KINDS)
def kinds(kind: str) -> dict[str, Any]:
    """Train, predict, save, load with and without data: all the same."""
    model = train(make(**{"setup": {**TABLE, **EMBEDDING}, **KINDS[kind]}))
    expected = predict(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model")
        same(predict(TahoeST.load(f"{folder}/model", simulated())), expected)
        same(predict(TahoeST.load(f"{folder}/model", adata=False), simulated()), expected)
        again = train(TahoeST.load(f"{folder}/model", simulated()), recipe="full", max_steps=4, validate_every=2)
    return {**trained(model), "trained on": trained(again)["prediction"]}


NETWORKS: dict[str, dict[str, Any]] = {
    "causal": {"attention": "causal"},
    "causal_rope": {"attention": "causal_rope"},
    "self_only": {"attention": "self_only"},
    "gpt2": {"backbone": "gpt2", "backbone_dropout": 0.1, "attention_dropout": 0.1},
    "linear control encoder": {"control_encoder": "linear"},
    "hidden_residual": {"head": "hidden_residual"},
    "absolute": {"head": "absolute"},
    "down_up": {"head": "down_up"},
    "shared heads": {"n_kv_heads": 1, "head_dim": 6},
    "batch token": {"batch_token": True, "n_batch_classes": 2},
    "zeros change": {"keep_zeros": False, "rectify": False},
    "selu": {"activation": "selu", "n_encoder_layers": 1, "n_decoder_layers": 3},
}


@cases("networks", NETWORKS)
def networks(name: str) -> dict[str, Any]:
    """Every part that a network can be made of."""
    return trained(train(make(network=NETWORKS[name], seed=2)))


@cases("sizes", ["mini"])
def sizes(name: str) -> dict[str, Any]:
    """A size that has a name, and the default size of a set."""
    return trained(train(make(size=name, set_size=None), max_steps=3, validate_every=1))


# ---------------------------------------------------------------- priors

PRIORS = ("none", "mean", "transfer", "cells")


def prior_of(model: TahoeST, asked: dict[str, Any], **options: Any) -> dict[str, Any]:
    """What a prior predicts before training, and what the model does after it."""
    found = {}
    if model.prior != "none":
        found["before"] = prediction(predict(model, output="prior", **asked))
    train(model, **options)
    if model.prior != "none":
        found["after"] = prediction(predict(model, output="prior", **asked))
    return {"which": model.prior, **found, **trained(model, **asked)}


@cases("priors/contexts", PRIORS)
def priors_contexts(prior: str) -> dict[str, Any]:
    """One-hot labels in two contexts, one condition not measured."""
    return prior_of(make(without(simulated(), ("context_2", "perturbation_3")), prior=prior), {})


@cases("priors/table", PRIORS)
def priors_table(prior: str) -> dict[str, Any]:
    """A table of embeddings, one condition and one perturbation not measured."""
    gone = [("context_2", "perturbation_3"), ("context_1", "perturbation_6"), ("context_2", "perturbation_6")]
    labels = [f"perturbation_{i}" for i in range(1, 7)]
    return prior_of(make(without(simulated(), *gone), setup=TABLE, prior=prior), {"perturbations": labels})


def pairs() -> ad.AnnData:
    """Four single perturbations and two pairs, and two tables, one of which lacks a label."""
    adata = simulated()
    names = dict(zip([f"perturbation_{i}" for i in range(1, 7)], ["A", "B", "C", "D", "A+B", "C+B"]))
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).replace(names)
    rng = np.random.default_rng(0)
    adata.uns["table"] = pd.DataFrame(rng.normal(size=(5, 4)), index=list("ABCDE")).astype(np.float32)
    adata.uns["second"] = pd.DataFrame(rng.normal(size=(3, 3)), index=list("ACE")).astype(np.float32)
    return adata


@cases("priors/pairs", PRIORS)
def priors_pairs(prior: str) -> dict[str, Any]:
    """One context, labels with a separator."""
    adata = pairs()
    one = adata[(adata.obs["context"] == "context_1").to_numpy()].copy()
    return prior_of(
        make(one, setup={"combination_separator": "+"}, prior=prior), {"perturbations": ["A", "A+B", "D+A"]}
    )


def doses() -> ad.AnnData:
    """Two drugs at three doses each."""
    adata = simulated()
    number = pd.to_numeric(adata.obs["perturbation"].astype(str).str[-1], errors="coerce").to_numpy() - 1
    adata.obs["drug"] = np.where(np.isnan(number), "DMSO", np.where(number < 3, "P", "Q"))
    adata.obs["dose"] = 10.0 ** (number % 3)
    return adata


DOSES = {"perturbation_key": "drug", "control": "DMSO", "dose_key": "dose"}


@cases("priors/doses", PRIORS)
def priors_doses(prior: str) -> dict[str, Any]:
    """Doses that were measured, lie between and lie beyond."""
    asked = {"perturbations": ["P@1", "P@3", "Q@100", "Q@1000"]}
    return prior_of(make(doses(), setup=DOSES, prior=prior), asked)


@cases("priors/fused", PRIORS)
def priors_fused(prior: str) -> dict[str, Any]:
    """Two tables side by side, with pairs."""
    setup = {"combination_separator": "+", "perturbation_embedding_key": ["table", "second"]}
    return prior_of(make(pairs(), setup=setup, prior=prior), {"perturbations": ["A", "E", "E+A", "C+B"]})


@cases("priors/learned", ["none", "cells"])
def priors_learned(prior: str) -> dict[str, Any]:
    """Parts of pairs that the network sums itself."""
    setup = {"combination_separator": "+", "combination": "learned"}
    return prior_of(make(pairs(), setup=setup, prior=prior), {"perturbations": ["A", "D+A", "C+B"]})


@cases("prior_report", ["none", "mean", "transfer", "cells"])
def prior_report(prior: str) -> dict[str, Any]:
    """What predictions say they start from."""
    report = make(without(simulated(), ("context_2", "perturbation_3")), prior=prior).prior_report()
    return {"numbers": report.select_dtypes("number"), "texts": report.select_dtypes(exclude="number")}


# ---------------------------------------------------------------- objectives

OBJECTIVES: dict[str, dict[str, Any]] = {
    **{name: {"terms": {"energy": 1.0, name: 2.0}} for name in ("delta_mse", "mse", "de_weighted", "contrastive")},
    "energy": {"terms": {"energy": 1.0}},
    "mse alone": {"terms": {"mse": 1.0}},
    "sinkhorn": {"terms": {"sinkhorn": 1.0}, "blur": 1.0},
    "mmd": {"terms": {"mmd": 1.0}, "blur": 1.0},
    "mmd, laplacian": {"terms": {"mmd": 1.0}, "kernel": "laplacian", "blur": 1.0},
    "diagonal zero": {"energy_diagonal": "zero"},
    "diagonal rounded": {"energy_diagonal": "rounded"},
    "chunks": {"chunks": 3},
    "shift": {"shift_weight": 0.5},
}


@cases("objectives", OBJECTIVES)
def objectives(name: str) -> dict[str, Any]:
    """Every term, with a table of embeddings."""
    return trained(train(make(setup=TABLE, objective=OBJECTIVES[name])))


BESIDE: dict[str, tuple[str, dict[str, Any]]] = {
    "distillation": ("expression+embedding", {"embedding_terms": {"distillation": 1.0}}),
    "alignment": ("expression+embedding", {"embedding_terms": {"alignment": 1.0}, "temperature": 0.3}),
    "no embedding terms": ("expression+embedding", {"embedding_terms": {}}),
    "decoder weight auto": ("embedding", {"decoder_weight": "auto"}),
    "decoder weight 0.1": ("embedding", {"decoder_weight": 0.1, "terms": {"energy": 1.0}}),
}


@cases("objectives", BESIDE)
def objectives_beside(name: str) -> dict[str, Any]:
    """Terms of a cell embedding and of a gene decoder."""
    representation, objective = BESIDE[name]
    model = train(make(setup=EMBEDDING, representation=representation, objective=objective))
    return {**trained(model), "weight": model.decoder_weight_}


@case("objectives/suggested weight")
def suggested_weight() -> dict[str, Any]:
    """The ratio of distances in two spaces."""
    adata = make(setup=EMBEDDING).adata
    return {
        "all": scvi_tahoe.suggest_decoder_weight(adata),
        "few": scvi_tahoe.suggest_decoder_weight(adata, n_cells=30),
    }


@case("objectives/losses of tensors")
def losses_of_tensors() -> dict[str, Any]:
    """Every loss and its gradient."""
    rng = torch.Generator().manual_seed(0)
    y, control = (torch.rand(4, 7, 12, generator=rng) for _ in range(2))
    start = torch.rand(4, 6, 12, generator=rng)
    mean, weight, perturbation = (torch.rand(4, n, generator=rng) for n in (12, 12, 5))
    weight = weight / weight.sum(1, keepdim=True)
    losses: dict[str, Callable] = {
        **{f"energy {d}": lambda x, d=d: nn.energy_distance(x, y, diagonal=d) for d in ("zero", "excluded", "rounded")},
        "sinkhorn": lambda x: nn.sinkhorn_divergence(x, y, blur=0.5),
        "mmd": lambda x: nn.kernel_mmd(x, y, blur=0.5),
        "mse": lambda x: nn.mse(x, y[:, :6]),
        "delta_mse": lambda x: nn.delta_mse(x, y),
        "de_weighted": lambda x: nn.de_weighted_mse(x, y, weight),
        "contrastive": lambda x: nn.contrastive_delta(x, y, control, mean, perturbation),
        "alignment": lambda x: nn.contrastive_alignment(x, y, perturbation),
        "distillation": lambda x: nn.distillation(x, y),
        "shift": lambda x: nn.control_shift(x, control[:, :6]),
    }
    found = {}
    for name, loss in losses.items():
        x = start.clone().requires_grad_()
        value = loss(x)
        value.sum().backward()
        found[name] = [value, x.grad]
    return found


# ---------------------------------------------------------------- warm starts and recipes


@cache
def _exports() -> tempfile.TemporaryDirectory:
    """A folder with an export of ours and one in Arc's format, each with what was predicted."""
    folder = tempfile.TemporaryDirectory()
    train(make(set_size=8)).export(f"{folder.name}/ours")
    train(make(set_size=8, prior="cells")).export(f"{folder.name}/prior")
    arc = train(make(network={"head": "hidden_residual"}, batch_encoder=True, setup=TABLE), lr=0.01)
    arc.export(f"{folder.name}/arc", format="arc")
    return folder


def start(
    name: str, adata: ad.AnnData | None = None, *, setup: dict[str, Any] | None = None, **options: Any
) -> TahoeST:
    """Start from exported weights."""
    adata = simulated() if adata is None else adata
    if name != "no data":
        TahoeST.setup_anndata(adata, **{**SETUP, **(TABLE if name == "arc" else {}), **(setup or {})})
    return TahoeST.from_pretrained(f"{_exports().name}/{name}", adata, check_scale=False, **options)


RECIPES: dict[str, dict[str, Any]] = {
    "freeze_then_unfreeze": {},
    "full": {"recipe": "full"},
    "heads": {"recipe": "heads"},
    "lora": {"recipe": "lora", "lr": 0.01, "plan_kwargs": {"lora_rank": 2}},
    "lora, rates by depth": {"recipe": "lora", "plan_kwargs": {"lora_rank": 2, "lora_alpha": 3, "layer_decay": 0.5}},
    "frozen": {"freeze_backbone": True},
    "never frozen": {"freeze_backbone": False},
    "unfrozen at a step": {"freeze_backbone": 5},
    "rates by depth": {"recipe": "full", "plan_kwargs": {"layer_decay": 0.7, "log_every": 1}},
}


@cases("recipes/ours", RECIPES)
def recipes_ours(name: str) -> dict[str, Any]:
    """Every recipe from an export of ours."""
    model = train(start("ours"), **RECIPES[name])
    found = trained(model)
    if name == "lora":
        with tempfile.TemporaryDirectory() as folder:
            model.save_adapters(folder)
            again = start("ours")
            again.load_adapters(folder)
        same(predict(again), predict(model))
        again.merge_adapters()
        found |= {"merged": weights(again), "merged prediction": prediction(predict(again))}
    return found


@cases("recipes/arc", ["freeze_then_unfreeze", "full", "heads", "lora"])
def recipes_arc(name: str) -> dict[str, Any]:
    """Recipes from a folder in Arc's format."""
    model = start("arc")
    before = prediction(predict(model))
    return {"before": before, **trained(train(model, **RECIPES[name]))}


@case("starts/prior")
def start_prior() -> dict[str, Any]:
    """An export that brings its prior."""
    model = start("prior")
    return {"before": prediction(predict(model)), **trained(train(model, recipe="full"))}


@case("starts/other genes and labels")
def start_other() -> dict[str, Any]:
    """New and missing genes, and a label that the weights do not know."""
    adata = simulated()[:, 3:].copy()
    adata.var_names = [*adata.var_names[:-2], "new_1", "new_2"]
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).replace({"perturbation_6": "unknown"})
    model = start("ours", adata, accept=["new_genes", "drop_genes"], seed=3)
    report = model.loading_report_
    tensors = sorted(map(repr, report.records))
    return {
        "tensors": tensors,
        "labels": sorted(map(repr, report.matches)),
        "before": prediction(predict(model)),
        **trained(train(model)),
    }


@case("starts/other options")
def start_options() -> dict[str, Any]:
    """Another size of sets, another attention, another head."""
    accept = ["other_set_size", "other_attention", "other_head"]
    network = {"attention": "causal", "dropout": 0.1, "head": "hidden_residual", "keep_zeros": False}
    model = start("ours", set_size=6, network=network, accept=accept, objective={"terms": {"energy": 1.0}})
    return trained(train(model))


@case("starts/without data")
def start_alone() -> dict[str, Any]:
    """Weights without data predict from other cells."""
    found = {}
    for name in ("ours", "arc", "prior"):
        model = TahoeST.from_pretrained(f"{_exports().name}/{name}")
        adata = simulated()
        if name == "arc":  # a folder of Arc's names columns, not the control cells of anybody's data
            sets = torch.from_numpy(adata.X[:16].toarray()).reshape(2, 8, -1)
            rows = torch.arange(32, dtype=torch.float32).reshape(2, 16) / 32
            with torch.inference_mode():
                found[name] = model.module(sets, rows, torch.zeros(2, 8, dtype=torch.long)).prediction_SNG
        else:
            found[name] = prediction(predict(model, adata))
    return found


@case("starts/attention diagnosed")
def start_attention() -> dict[str, Any]:
    """Losses under every kind of attention."""
    found = start("ours").diagnose_attention(n_sets=8)
    return {"losses": found.losses, "best": found.best, "certainty": found.certainty}


def golden_folder(name: str, folder: Path) -> dict[str, np.ndarray]:
    """Write golden arrays as a folder in Arc's format, and return them."""
    import pickle

    arrays = dict(np.load(GOLDEN / f"{name}.npz"))
    facts = json.loads((GOLDEN / f"{name}.json").read_text())
    hyper = facts["hyper_parameters"]
    state = {k.removeprefix("weights/"): torch.from_numpy(x) for k, x in arrays.items() if k.startswith("weights/")}
    infix = "base_model.model." if hyper.get("lora") else ""
    state[f"transformer_backbone.{infix}embed_tokens.weight"] = torch.zeros(256, hyper["hidden_dim"])
    (folder / "checkpoints").mkdir(parents=True)
    content = {"epoch": 0, "global_step": 1, "pytorch-lightning_version": "2.5.0", "state_dict": state}
    torch.save({**content, "hyper_parameters": hyper}, folder / "checkpoints" / "final.ckpt")
    (folder / "var_dims.pkl").write_bytes(pickle.dumps({"gene_names": hyper.get("gene_names")}))
    rows = dict(zip(facts["perturbations"], torch.from_numpy(arrays["perturbations"])))
    torch.save(rows, folder / "pert_onehot_map.pt")
    for stem, labels in (("batch_onehot_map", facts["batches"]), ("cell_type_onehot_map", facts["contexts"])):
        torch.save(dict(zip(labels, torch.eye(len(labels)))), folder / f"{stem}.torch")
    return arrays


@cases("golden", sorted(path.stem for path in GOLDEN.glob("*.npz")))
def golden(name: str) -> dict[str, Any]:
    """Folders in Arc's format, read and run."""
    read_arc_folder = importlib.import_module("scvi_tahoe.pretrained").read_arc_folder
    with tempfile.TemporaryDirectory() as folder:
        arrays = golden_folder(name, Path(folder) / name)
        read = read_arc_folder(Path(folder) / name)
        network = read.build().eval()
        config, state = json.dumps(read.config.to_kwargs(), sort_keys=True), list(network.state_dict().values())
    found: dict[str, Any] = {"config": config, "weights": state}
    for part, n_sets in (("padded", 2), ("ragged", 1)):
        inputs = {}
        for key in ("ctrl_cell_emb", "pert_emb", "batch"):
            array = torch.from_numpy(arrays[f"{part}/in/{key}"])
            inputs[key] = array.reshape(n_sets, -1, *array.shape[1:])
        with torch.inference_mode():
            out = network(inputs["ctrl_cell_emb"], inputs["pert_emb"], inputs["batch"])
        found[part] = [out.prediction_SNG, out.genes_SNG, out.confidence_S]
    return found


# ---------------------------------------------------------------- training

TRAININGS: dict[str, dict[str, Any]] = {
    "averaged": {"plan_kwargs": {"ema": 0.9}},
    "accumulated": {"accumulate_grad_batches": 2},
    "warm-up": {"plan_kwargs": {"warmup": 0.5, "log_every": 1}},
    "one_cycle": {"plan_kwargs": {"schedule": "one_cycle", "log_every": 1}},
    "constant": {"plan_kwargs": {"schedule": "constant", "log_every": 1}},
    "cosine": {"plan_kwargs": {"min_lr_ratio": 0.5, "log_every": 1}},
    "decay": {"plan_kwargs": {"weight_decay": 0.3, "betas": [0.8, 0.9], "eps": 1e-6, "gradient_clip": None}},
    "clipped": {"plan_kwargs": {"gradient_clip": 0.01, "dropout": 0.5}},
    "seed": {"seed": 7, "batch_size": 3, "lr": 0.01},
    "pds": {"monitor": "validation_pds", "patience": 1, "max_steps": 12, "validate_every": 2},
    "pearson": {"monitor": "validation_pearson_delta"},
    "overlap": {"monitor": "validation_overlap"},
    "one term": {"monitor": "validation_energy"},
    "bfloat16": {"precision": "bf16-mixed"},
    "device": {"store": "device"},
    "host": {"store": "host"},
}


@cases("training", TRAININGS)
def trainings(name: str) -> dict[str, Any]:
    """Options of training."""
    return trained(train(make(batch_encoder=True), **TRAININGS[name]))


@cases("training", ["correction kept whole", "correction shrunk"])
def corrections(name: str) -> dict[str, Any]:
    """With a prior, and enough conditions that validate."""
    split = HeldOutConditions(validation=0.4)
    options = {"max_steps": 20, "validate_every": 5, "lr": 0.01, "batch_size": 4}
    return trained(train(make(prior="cells"), split=split, shrink_correction=name == "correction shrunk", **options))


@cases("training", ["set of 1", "set of 24", "set of 70"])
def set_sizes(name: str) -> dict[str, Any]:
    """Sizes of sets, up to more than there are cells."""
    return trained(train(make(set_size=int(name.split()[-1])), max_steps=4, validate_every=2))


@cases("training/resumed", ["plain", "averaged", "accumulated", "scored", "unfrozen", "lora"])
def resumed(name: str) -> dict[str, Any]:
    """A run that goes on from its middle ends as the whole one."""
    options: dict[str, Any] = {
        "plain": {},
        "averaged": {"plan_kwargs": {"ema": 0.9, "dropout": 0.4}},
        "accumulated": {"accumulate_grad_batches": 2},
        "scored": {"monitor": "validation_pearson_delta", "patience": 9},
        "unfrozen": {"freeze_backbone": 5},
        "lora": {"recipe": "lora", "lr": 0.01},
    }[name]
    begin = (lambda: start("ours")) if name in ("unfrozen", "lora") else make
    long = {"max_steps": 12, "validate_every": 3, "save_steps": 6, **options}
    with tempfile.TemporaryDirectory() as folder:
        whole = train(begin(), save_dir=folder, **long)
        again = train(begin(), save_dir=folder, resume_from=f"{folder}/step=000006.ckpt", **long)
    first, second = trained(whole), trained(again)
    for key in ("weights", "prediction", "best"):
        if digest(first[key]) != digest(second[key]):
            raise RuntimeError(f"{key} of a resumed run differ from those of an uninterrupted one")
    return second


SPLITS: dict[str, Any] = {
    "fraction": FractionSplit(validation=0.2, test=0.1),
    "conditions": HeldOutConditions(validation=0.3, test=0.1),
    "perturbations": HeldOutPerturbations(validation=("perturbation_1",), test=("perturbation_2",)),
    "contexts": HeldOutContexts(validation=("context_2",)),
    "few shot": FewShotContext(
        context="context_1", validation=("perturbation_1", "perturbation_3"), test=("perturbation_2",)
    ),
}


@cases("splits", SPLITS)
def splits(name: str) -> dict[str, Any]:
    """Which cells train, validate and test; and a training with it."""
    data = importlib.import_module("scvi_tahoe.data")
    model = make(setup=TABLE)
    index = data.ConditionIndex.from_screen(data.read_screen(model.adata, model.keys))
    found = {}
    for seed in (0, 5):
        parts = SPLITS[name].assign(index, seed=seed)
        found[f"parts, seed {seed}"] = [parts.train, parts.validation, parts.test]
    return {**found, **trained(train(model, split=SPLITS[name]))}


@cases("splits/default", ["none", "cells"])
def default_splits(prior: str) -> dict[str, Any]:
    """What validates unless something is said; enough perturbations for conditions to be held out."""
    model = train(make(simulated(n_perturbations=24, n_cells=6), prior=prior))
    return {"split": json.dumps(model.split_, sort_keys=True, default=list), **trained(model, n_cells=3)}


# ---------------------------------------------------------------- prediction


@cache
def _predictor(prior: str = "cells") -> TahoeST:
    return train(make(setup={**TABLE, **EMBEDDING}, prior=prior), lr=0.01)


OUTPUTS = ("expression", "delta", "counts", "prior")


@cases("prediction/output", OUTPUTS)
def outputs(output: str) -> dict[str, Any]:
    """Every output, on top of a prior of cells and without one."""
    found = {"cells": prediction(predict(_predictor(), output=output))}
    if output != "prior":
        found["none"] = prediction(predict(_predictor("none"), output=output))
    return found


@case("prediction/output/counts of a layer")
def counts_of_layer() -> dict[str, Any]:
    """Library sizes of raw counts."""
    options = {"output": "counts", "counts_layer": "counts", "seed": 3}
    return {p: prediction(predict(_predictor(p), **options)) for p in ("cells", "none")}


@case("prediction/output/embedding")
def embedding_output() -> dict[str, Any]:
    """The predicted cell embedding, and its genes."""
    model = train(make(setup=EMBEDDING, representation="embedding"), lr=0.01)
    return {name: predict(model, output=name).X for name in ("embedding", "expression", "counts")}


NUMBERS: dict[str, Any] = {
    "all controls": {"n_cells": None},
    "one": {"n_cells": 1},
    "more than controls": {"n_cells": 50},
    "by condition": {"n_cells": {("context_1", "perturbation_1"): 3, ("context_2", "perturbation_4"): 11}},
    "seed": {"seed": 4},
    "chosen": {"perturbations": ["perturbation_5", "perturbation_2"], "contexts": ["context_2"]},
    "small batches": {"batch_size": 1},
    "control layer": {"control_layer": True},
    "bfloat16": {"precision": "bf16"},
    "on the host": {"store": "host"},
}


@cases("prediction/options", NUMBERS)
def prediction_options(name: str) -> dict[str, Any]:
    """How many cells, of what, from where."""
    found = {}
    for prior in ("cells", "none"):
        options = {**NUMBERS[name]}
        if isinstance(options.get("n_cells"), dict):
            options |= {"perturbations": ["perturbation_1", "perturbation_4"]}
            options["n_cells"] = {
                (c, f"perturbation_{p}"): 2 + p + (c == "context_2") for c in ("context_1", "context_2") for p in (1, 4)
            }
        predicted = predict(_predictor(prior), **options)
        found[prior] = {**prediction(predicted), "layers": dict(predicted.layers)}
    return found


@case("prediction/other data")
def prediction_other_data() -> dict[str, Any]:
    """Genes missing and in another order, and a row that only these data bring."""
    adata = simulated()[:, np.random.default_rng(0).permutation(60)[:57]].copy()
    table = adata.uns["perturbation_embedding"]
    adata.uns["perturbation_embedding"] = pd.concat([table, (table.iloc[:1] + 1).rename(index=lambda _: "new")])
    adata = adata[adata.obs["perturbation"].isin(["control", "perturbation_1"]).to_numpy()].copy()
    asked = {"perturbations": ["new", "perturbation_1"]}
    return {p: prediction(predict(_predictor(p), adata, **asked)) for p in ("cells", "none")}


@case("prediction/written to a file")
def prediction_file() -> dict[str, Any]:
    """In chunks, into an h5ad and into a zarr."""
    expected = predict(_predictor())
    with tempfile.TemporaryDirectory() as folder:
        for name in ("p.h5ad", "p.zarr"):
            written = predict(_predictor(), path=f"{folder}/{name}").to_memory()
            x = written.X.toarray() if sp.issparse(written.X) else written.X
            same(ad.AnnData(x), expected)
    return {"X": expected.X}


@case("prediction/ensemble")
def ensemble() -> dict[str, Any]:
    """Mean, spread and uncertainty of members; saved and loaded."""
    found = {}
    for prior in ("none", "cells"):
        adata = simulated()
        TahoeST.setup_anndata(adata, **SETUP)
        options = {"size": SIZE, "set_size": 8, "prior": prior}
        members = TahoeEnsemble.train(adata, seeds=(3, 5), model_kwargs=options, **BRIEF, lr=0.01)
        predicted = predict(members)
        with tempfile.TemporaryDirectory() as folder:
            members.save(f"{folder}/ensemble")
            same(predict(TahoeEnsemble.load(f"{folder}/ensemble", simulated())), predicted)
        spread = {k: predicted.varm[k] for k in ("ensemble_delta", "ensemble_sd")}
        found[prior] = {**prediction(predicted), **spread, "table": predicted.uns["scvi_tahoe_ensemble"]}
    return found


# ---------------------------------------------------------------- data


def _file(folder: str, adata: ad.AnnData | None = None) -> str:
    adata = simulated() if adata is None else adata
    adata.uns = {}
    adata.write_h5ad(f"{folder}/screen.h5ad")
    return f"{folder}/screen.h5ad"


@cases("data/kept", ["none", "cells"])
def stores(prior: str) -> dict[str, Any]:
    """In memory as CSR, CSC and dense, backed, and as a store on disk."""
    found = {"csr": trained(train(make(prior=prior)))}
    for form in ("csc", "dense"):
        adata = simulated()
        adata.X = adata.X.tocsc() if form == "csc" else adata.X.toarray()
        found[form] = trained(train(make(adata, prior=prior)))
    with tempfile.TemporaryDirectory() as folder:
        path = _file(folder)
        backed = ad.read_h5ad(path, backed="r")
        found["backed"] = trained(train(make(backed, prior=prior)))
        backed.file.close()
        scvi_tahoe.write_store(path, f"{folder}/store", **LABELS)
        store = scvi_tahoe.read_store(f"{folder}/store")
        found["store, content"] = {"X": store.to_memory().X, "obs": store.obs, "genes": store.var_names}
        found["store"] = trained(train(make(store, prior=prior), store="disk"))
        found["store, read"] = trained(train(make(scvi_tahoe.read_store(f"{folder}/store"), prior=prior), store="host"))
    return found


@case("data/mudata")
def mudata() -> dict[str, Any]:
    """Expression and embedding as modalities."""
    from mudata import MuData

    adata = simulated()
    rna = ad.AnnData(adata.X, obs=adata.obs[[]].copy(), var=adata.var)
    state = ad.AnnData(adata.obsm["X_embedding"], obs=adata.obs[[]].copy())
    mdata = MuData({"rna": rna, "state": state})
    for column in ("perturbation", "context", "batch"):
        mdata.obs[column] = adata.obs[column].reindex(mdata.obs_names)
    modalities = {"expression": "rna", "cell_embedding": "state"}
    TahoeST.setup_mudata(mdata, **LABELS, modalities=modalities)
    options = {"size": SIZE, "set_size": 8, "prior": "none", "representation": "expression+embedding"}
    return trained(train(TahoeST(mdata, **options)))


@case("data/layer and order of genes")
def layer() -> dict[str, Any]:
    """A layer; and data with genes in another order that a loaded model trains on."""
    adata = simulated()
    adata.layers["lognorm"], adata.X = adata.X, adata.layers["counts"]
    model = train(make(adata, setup={"layer": "lognorm"}))
    shuffled = adata[:, np.random.default_rng(0).permutation(60)].copy()
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model")
        loaded = TahoeST.load(f"{folder}/model", shuffled)
    return {**trained(model), "shuffled": trained(train(loaded, recipe="full"))["prediction"]}


@case("data/tables")
def tables() -> dict[str, Any]:
    """Embedding tables from files, fingerprints, labels of doses."""
    table = simulated().uns["perturbation_embedding"]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        table.to_csv(f"{folder}/t.csv")
        table.to_csv(f"{folder}/t.tsv", sep="\t")
        table.to_parquet(f"{folder}/t.parquet")
        rows = {name: torch.from_numpy(row.to_numpy().copy()) for name, row in table.iterrows()}
        torch.save(rows, f"{folder}/t.pt")
        for ending in ("csv", "tsv", "parquet", "pt"):
            read = scvi_tahoe.read_embedding_table(f"{folder}/t.{ending}")
            found[ending] = [read["matrix"], list(map(str, read["names"]))]
    if importlib.util.find_spec("rdkit"):
        smiles = {"aspirin": "CC(=O)Oc1ccccc1C(=O)O", "caffeine": "Cn1cnc2c1c(=O)n(C)c(=O)n2C"}
        prints = scvi_tahoe.smiles_fingerprints(smiles, radius=2, n_bits=128)
        found["fingerprints"] = [prints["matrix"], list(map(str, prints["names"]))]
    found["doses"] = [scvi_tahoe.dose_label("A", 10.0), scvi_tahoe.dose_label("A", 0.3)]
    return found


@case("data/scale")
def scale() -> dict[str, Any]:
    """What scale expression is on."""
    data = importlib.import_module("scvi_tahoe.data")
    adata = simulated()
    return {name: str(data.infer_scale(x)) for name, x in (("log1p", adata.X), ("counts", adata.layers["counts"]))}


def content(adata: ad.AnnData) -> dict[str, Any]:
    """All of an AnnData."""
    parts = {"X": adata.X, "obs": adata.obs, "genes": adata.var_names}
    return {**parts, "layers": dict(adata.layers), "obsm": dict(adata.obsm)}


@cases(
    "datasets", ["simulated", "simulated, other options", "papalexi", "papalexi, counts", "few shot", "norman", "lines"]
)
def datasets(name: str) -> dict[str, Any]:
    """Screens that ship with the package, and simulated ones."""
    if name == "few shot":
        task = shipped.papalexi_few_shot()
        facts = [task.targets, task.validation_targets, task.context, task.control, task.perturbation_key]
        return {"train": content(task.train), "held out": content(task.held_out), "facts": facts}
    adata = {
        "simulated": shipped.simulate_screen,
        "simulated, other options": lambda: shipped.simulate_screen(
            2, 5, n_genes=30, n_cells=7, n_control_cells=9, n_batches=3, n_embedding=5, effect_size=0.5, seed=4
        ),
        "papalexi": shipped.papalexi_thp1,
        "papalexi, counts": lambda: shipped.papalexi_thp1(normalize=False),
        "norman": shipped.norman_k562,
        "lines": lambda: shipped.norman_k562(all_lines=True),
    }[name]()
    truth = {k: adata.uns[k] for k in ("perturbation_embedding", "true_delta") if k in adata.uns}
    return {**content(adata), "truth": truth}


@case("datasets/trained on")
def real_screens() -> dict[str, Any]:
    """The shipped screens, a prior of cells, a few steps."""
    task = shipped.papalexi_few_shot()
    TahoeST.setup_anndata(task.train, task.perturbation_key, task.control, context_key=task.context_key)
    options = {"size": {**SIZE, "n_layers": 1}, "set_size": 16}
    model = train(TahoeST(task.train, prior="cells", **options), max_steps=4, validate_every=2)
    found = {"papalexi": trained(model, perturbations=list(task.targets), contexts=[task.context], n_cells=5)}
    adata = shipped.norman_k562()
    TahoeST.setup_anndata(adata, "perturbation", "control", combination_separator="+")
    model = train(TahoeST(adata, prior="cells", **options), max_steps=4, validate_every=2)
    found["norman"] = trained(model, perturbations=["KLF1+MAP2K6", "KLF1", "MAP2K6+CEBPE"], n_cells=5)
    return found


# ---------------------------------------------------------------- evaluation


@cache
def _task() -> tuple[ad.AnnData, ad.AnnData, ad.AnnData, TahoeST]:
    """Training cells, held-out cells, a prediction of them, and the model."""
    whole = simulated(n_perturbations=8, n_cells=40, n_control_cells=60)
    labels = [f"perturbation_{i}" for i in (1, 2, 3, 4, 5)]
    context, label = (whole.obs[key].astype(str).to_numpy(dtype=str) for key in ("context", "perturbation"))
    held = np.isin(label, labels) & (context == "context_1") | np.isin(label, labels[:3]) & (context == "context_2")
    known, held_out = whole[~held].copy(), whole[held | (label == "control")].copy()
    model = train(make(known, setup=TABLE, prior="transfer"), max_steps=20, validate_every=10, lr=0.01)
    asked = {"perturbations": labels, "progress": False, "n_cells": 30}
    return known, held_out, model.predict(held_out, **asked), model


def reference(*, with_train: bool = True, **options: Any) -> EvaluationReference:
    """The truth of the task."""
    known, held_out, _, _ = _task()
    table = simulated(n_perturbations=8, n_cells=40, n_control_cells=60).uns["perturbation_embedding"]
    if with_train:
        options |= {"baseline_from": known, "perturbation_embedding": table}
    return EvaluationReference.from_adata(held_out, **LABELS, num_threads=1, de_backend="cpu", **options)


def scores(result: Any) -> dict[str, Any]:
    """All numbers of a result."""
    numbers = result.checks[["value"]] if "value" in result.checks else result.checks
    found = {
        "summary": result.summary,
        "per perturbation": result.per_perturbation,
        "vcc": None if result.vcc is None else json.loads(json.dumps(dict(result.vcc), default=float)),
        "checks": [numbers, result.checks["status"]],
        "effects": [result.effects.observed, result.effects.predicted],
        "cells": result.cells,
    }
    for name in ("baseline_per_perturbation", "halves_per_perturbation", "de_observed", "de_predicted"):
        if getattr(result, name) is not None:
            found[name] = getattr(result, name)
    return found


@cases("evaluate/preset", ["quick", "vcc2025", "minimal", "full"])
def presets(preset: str) -> dict[str, Any]:
    """Scores, baseline, ceiling, intervals, checks and tables."""
    _, _, predicted, _ = _task()
    result = scvi_tahoe.evaluate(predicted, reference(), preset=preset)
    found = {**scores(result), "strata": result.strata(n_groups=2)}
    with tempfile.TemporaryDirectory() as folder:
        result.save(f"{folder}/scores")
        again = scvi_tahoe.EvaluationResult.load(f"{folder}/scores")
    return {**found, "saved": {k: v for k, v in scores(again).items() if k not in ("vcc", "checks")}}


@case("evaluate/preset/vcc2026")
def vcc2026() -> dict[str, Any]:
    """Scores of raw counts."""
    if not importlib.util.find_spec("cell_eval2"):
        return {}
    known, held_out, _, model = _task()
    options = {"preset": "vcc2026", "counts_layer": "counts", "progress": False}
    result = model.evaluate(held_out, **options)
    parts = scores(result)
    return {"effects": parts["effects"], **{k: rounded(parts[k]) for k in ("summary", "per perturbation", "vcc")}}


@case("evaluate/by the model")
def evaluated_by_model() -> dict[str, Any]:
    """The model predicts what was observed; and a reference that is ready."""
    _, held_out, _, model = _task()
    first = scores(model.evaluate(held_out, preset="quick", progress=False, seed=2))
    ready = scores(model.evaluate(reference(), preset="vcc2025", progress=False))
    return {"from cells": first, "from a reference": ready}


BASELINES = (
    *("control", "train_mean", "train_mean_pooled", "context_transfer"),
    *("cells_shifted", "cells_quantile", "ridge", "nearest"),
)


@cases("evaluate/baseline", BASELINES)
def baselines(name: str) -> dict[str, Any]:
    """Cells of a baseline, and a prediction beside it."""
    known, held_out, predicted, _ = _task()
    table = simulated(n_perturbations=8, n_cells=40, n_control_cells=60).uns["perturbation_embedding"]
    embedding = {"perturbation_embedding": table} if name in ("ridge", "nearest") else {}
    cells = scvi_tahoe.baseline_prediction(name, held_out, known, **LABELS, **embedding, seed=1)
    result = scvi_tahoe.evaluate(predicted, reference(), preset="quick", baseline=name)
    return {"cells": prediction(cells), "summary": result.summary, "per": result.baseline_per_perturbation}


@case("evaluate/options")
def evaluation_options() -> dict[str, Any]:
    """No baseline, another prediction as baseline, no ceiling, predicted controls, another seed, no contexts."""
    known, held_out, predicted, _ = _task()
    quick = {"preset": "quick"}
    other = scvi_tahoe.baseline_prediction("cells_shifted", held_out, known, **LABELS)
    controls = held_out[(held_out.obs["perturbation"] == "control").to_numpy()].copy()
    both = ad.concat([predicted, controls])
    both.obs_names_make_unique()
    one = held_out[(held_out.obs["context"] == "context_1").to_numpy()].copy()
    mine = predicted[(predicted.obs["context"] == "context_1").to_numpy()].copy()
    keys = {k: v for k, v in LABELS.items() if k != "context_key"}
    results = {
        "no baseline": scvi_tahoe.evaluate(predicted, reference(with_train=False), baseline=None, **quick),
        "another prediction": scvi_tahoe.evaluate(predicted, reference(), baseline=other, **quick),
        "no ceiling": scvi_tahoe.evaluate(predicted, reference(ceiling=False), **quick),
        "predicted controls": scvi_tahoe.evaluate(
            both, reference(), control_cells="predicted", representation_check="off", **quick
        ),
        "seed": scvi_tahoe.evaluate(predicted, reference(), seed=5, **quick),
        "one context": scvi_tahoe.evaluate(mine, one, baseline=None, representation_check="off", **keys, **quick),
    }
    return {name: scores(result) for name, result in results.items()}


@case("evaluate/compared")
def compared() -> dict[str, Any]:
    """Results side by side."""
    evaluation = importlib.import_module("scvi_tahoe.evaluate")
    _, _, predicted, _ = _task()
    truth = reference()
    mine = scvi_tahoe.evaluate(predicted, truth, preset="quick")
    others = evaluation.baseline_results(truth, preset="quick")
    table = evaluation.compare_results({"mine": mine, **others})
    return {"table": table, "others": {k: v.summary for k, v in others.items()}}


@case("evaluate/metrics of arrays")
def metrics() -> dict[str, Any]:
    """Single metrics."""
    evaluation = importlib.import_module("scvi_tahoe.evaluate")
    rng = np.random.default_rng(0)
    predicted, observed, weight = (rng.normal(size=(6, 9)) for _ in range(3))
    target = np.array([0, 3, -1, 5, 5, -1])
    weight = np.abs(weight) / np.abs(weight).sum(1, keepdims=True)
    cells, source, other = (rng.random((n, 4)) * (rng.random((n, 4)) < 0.7) for n in (8, 12, 10))
    return {
        "l1": evaluation.discrimination_score_l1(predicted, observed, target),
        "cosine": evaluation.pds_cosine(predicted, observed, target),
        "centroid": evaluation.centroid_accuracy(predicted, observed),
        "pearson": evaluation.pearson(predicted, observed),
        "wmse": evaluation.wmse(predicted, observed, weight),
        "r2": evaluation.r2_weighted(predicted, observed, weight),
        "size": evaluation.effect_size_ratio(predicted, observed),
        "mean cosine": evaluation.mean_cosine(predicted),
        "collapse": evaluation.check_collapse(predicted, 0.1).value,
        "energy": evaluation.energy_distance(predicted, observed),
        "quantiles": evaluation.quantile_map(
            *(x.astype(np.float32) for x in (cells, source, other)), rng.random(cells.shape)
        ),
    }


@case("evaluate/submission 2026")
def submission() -> dict[str, Any]:
    """What the file for the challenge of 2026 holds."""
    evaluation = importlib.import_module("scvi_tahoe.evaluate")
    _, _, _, model = _task()
    asked = {"perturbations": ["perturbation_1", "perturbation_2"], "n_cells": 20, "output": "counts"}
    predicted = predict(model, **asked)
    rules = evaluation.Rules2026(n_genes=60, n_targets=2, n_contexts=2, cells_per_condition=20)
    with tempfile.TemporaryDirectory() as folder:
        path = scvi_tahoe.submission(
            predicted, f"{folder}/mine.h5ad", year=2026, genes=list(predicted.var_names[::-1]), rules=rules, **LABELS
        )
        return content(ad.read_h5ad(path))


# ---------------------------------------------------------------- runs, studies, the demo

RUN: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "data": {"dataset": "simulated", "n_genes": 40, "cell_embedding_components": 6},
    "split": {
        "kind": "few_shot_context",
        "context": "context_1",
        "validation": ["perturbation_01", "perturbation_02"],
        "test": ["perturbation_03", "perturbation_04", "perturbation_05"],
    },
    "model": {"size": {"hidden": 16, "n_layers": 1, "intermediate": 32, "n_heads": 2}, "set_size": 8, "prior": "cells"},
    "train": {"max_steps": 6, "batch_size": 2, "validate_every": 2, "accelerator": "cpu", "lr": 0.01, "threads": 1},
    "score": {"preset": "quick"},
}


def of_run(folder: Path, result: Any) -> dict[str, Any]:
    """Numbers of a run's folder."""
    log = pd.read_csv(folder / "metrics.csv")
    found = {"log": log.drop(columns=[c for c in log if c.startswith(CLOCK)]), "best": result.best_step}
    if (folder / "prediction.h5ad").exists():
        found["prediction"] = prediction(ad.read_h5ad(folder / "prediction.h5ad"))
    if result.scores is not None:
        found["summary"] = result.scores.summary
    return found


@cases("study", ["run", "run on an embedding"])
def run(name: str) -> dict[str, Any]:
    """A run from its configuration."""
    study = importlib.import_module("scvi_tahoe.study")
    values = json.loads(json.dumps(RUN))
    if name != "run":
        values["model"] |= {"representation": "embedding", "prior": "none"}
        values["model"]["network"] = {"gene_decoder": {"hidden": [16]}}
        values["score"] |= {"representation_check": "warn"}
    with tempfile.TemporaryDirectory() as folder:
        result = study.finetune(study.TahoeRun.from_dict(values), Path(folder) / "run", progress=False)
        return of_run(result.folder, result)


@case("study/rounds")
def rounds() -> dict[str, Any]:
    """A study whose rounds start from each other."""
    study = importlib.import_module("scvi_tahoe.study")
    shared = {k: v for k, v in json.loads(json.dumps(RUN)).items() if k != "name"}
    shared["model"]["prior"] = "none"
    ladder = [
        {"name": "backbone", "role": "pretraining", "train": {"max_steps": 2}},
        {"name": "first", "start": {"round": "backbone"}},
        {"name": "second", "start": {"round": "first", "checkpoint": "last"}, "train": {"recipe": "full"}},
    ]
    values = {"name": "ladder", **shared, "lesson": [["first"], ["second"]], "rounds": ladder}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.yaml"
        path.write_text(json.dumps(values))  # JSON is YAML
        result = study.run_study(path, folder=Path(folder) / "out", progress=False)
        table = result.table.select_dtypes("number")
        table = table[[c for c in table if "second" not in c.lower() and "minute" not in c.lower()]]
        return {"table": table, **{k: of_run(r.folder, r) for k, r in result.runs.items()}}


def demo() -> dict[str, Any]:
    """The demo with few steps."""
    run_demo = importlib.import_module("scvi_tahoe.demo").run_demo
    with tempfile.TemporaryDirectory() as folder:
        result = run_demo(Path(folder) / "demo", max_steps=20)
        table = pd.read_csv(result.folder / "scores.csv")
        return {"scores": table, "prediction": prediction(ad.read_h5ad(result.folder / "prediction.h5ad"))}


# ---------------------------------------------------------------- the program

#: a few seconds that see most of the package: what the test runs
FAST = (
    *("kinds/expression", "kinds/embedding", "kinds/prior of cells"),
    *("priors/pairs/cells", "priors/doses/transfer", "priors/table/mean"),
    *("recipes/arc/full", "splits/few shot", "training/averaged", "objectives/losses of tensors"),
    *("prediction/output/counts", "evaluate/baseline/cells_quantile", "golden/expr_all_feat", "datasets/simulated"),
)


def header() -> dict[str, Any]:
    """What decides about the last bit of a number."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "scvi-tools": scvi.__version__,
        "torch": torch.__version__,
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "pandas": version("pandas"),
        "anndata": version("anndata"),
    }


def computed(name: str) -> dict[str, str]:
    """Hashes of a case, each under the case's name and its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {f"{name}/{part}": digest(value) for part, value in CASES[name]().items()}


def compute(names: Iterable[str], *, report: Callable[[str], None] = lambda _: None) -> dict[str, str]:
    """Hashes of several cases; one that fails says so in place of its hashes."""
    found: dict[str, str] = {}
    torch.set_num_threads(1)
    for name in names:
        began = time.perf_counter()
        try:
            found |= computed(name)
        except Exception as error:  # noqa: BLE001 - the other cases are still of interest
            report(traceback.format_exc())
            found[name] = f"failed: {type(error).__name__}: {str(error)[:200]}"
        report(f"{time.perf_counter() - began:6.1f} s  {name}")
    return found


def differences(expected: dict[str, str], found: dict[str, str], names: Iterable[str]) -> list[str]:
    """One line for each hash that is another, or is there on one side only."""
    names = list(names)
    wanted = {k: v for k, v in expected.items() if any(k == n or k.startswith(f"{n}/") for n in names)}
    lines = []
    for key in dict.fromkeys([*wanted, *found]):
        if wanted.get(key) != found.get(key):
            lines.append(f"{key}: was {wanted.get(key, 'not there')}, is {found.get(key, 'not there')}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Write or compare; 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", metavar="FILE", type=Path)
    parser.add_argument("--compare", metavar="FILE", type=Path)
    parser.add_argument("--only", metavar="SUBSTRING", action="append", help="cases whose name contains it; repeatable")
    parser.add_argument("--fast", action="store_true", help="the subset that the test runs")
    parser.add_argument("--demo", action="store_true", help="the demo with few steps, too (slow)")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--quiet", action="store_true", help="say nothing of cases that agree")
    options = parser.parse_args(arguments)
    if options.demo:
        CASES["demo"] = demo
    names = [n for n in (FAST if options.fast else CASES) if not options.only or any(o in n for o in options.only)]
    if options.list:
        print("\n".join(names))
        return 0
    report = (lambda _: None) if options.quiet else (lambda line: print(line, file=sys.stderr, flush=True))
    report(f"{scvi_tahoe.__file__}, {header()}")
    scvi.settings.verbosity = 30  # of loading it says where it did not download from
    began = time.perf_counter()
    found = compute(names, report=report)
    print(f"{len(found)} hashes of {len(names)} cases in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    failed = [k for k, v in found.items() if v.startswith("failed")]
    if options.write:
        options.write.write_text(json.dumps({"header": header(), **found}, indent=1) + "\n")
    if not options.compare:
        print("\n".join(f"{k}: {found[k]}" for k in (failed if options.write else found)))
        return int(bool(failed))
    expected = json.loads(options.compare.read_text())
    was = expected.pop("header")
    if (now := header()) != was:
        changed = {k: (was.get(k), v) for k, v in now.items() if was.get(k) != v}
        print(f"written under other releases or on another processor, so hashes may differ: {changed}", file=sys.stderr)
    if "demo" in names and not any(k.startswith("demo/") for k in expected):
        print(f"{options.compare} was written without --demo", file=sys.stderr)
    lines = differences(expected, found, names)
    print("\n".join(lines) if lines else "no difference")
    return int(bool(lines))


if __name__ == "__main__":
    raise SystemExit(main())
