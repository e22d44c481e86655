"""Time and memory of loading, resizing and exporting a network of 424 million parameters.

Writes weights of the shape of the largest published fine-tunes in Arc's format (18,080 genes in and out, 5,120-wide
perturbation features, 530 batches, 6 layers of 1,488; with the token table of zeros and an optimizer state), then times
each step in a process of its own::

    python benchmarks/pretrained_424m.py [FOLDER] [--device cuda]

Aim: every step within 6 GB of memory, all of them within 60 s on two cores. With ``--device cuda`` the network lies on
the card in the steps that build one, is exported from there, and the memory of the card is printed beside that of the
machine.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from scvi_tahoe.data import EmbeddingTable
from scvi_tahoe.nn import SIZES, NetworkConfig, SetTransformer
from scvi_tahoe.pretrained import (
    export_model,
    plan_warm_start,
    read_arc_folder,
    read_export,
    write_arc_folder,
)
from scvi_tahoe.pretrained._arc_tensors import key_entries
from scvi_tahoe.pretrained._pretrained_model import target_shapes

if TYPE_CHECKING:
    from collections.abc import Callable

N_GENES, N_FEATURES, N_BATCHES, N_PERTURBATIONS = 18_080, 5_120, 530, 2_000
ON_CPU = (
    "load",
    "load and resize",
    "load, build, one prediction",
    "load and export",
    "read export",
    "load and export arc",
)
ON_GPU = (
    "load to the card, one prediction",
    "load and resize, to the card, one prediction",
    "load to the card, export from it",
    "read export to the card, one prediction",
)
STEPS = (*ON_CPU, *ON_GPU)


def write_weights(folder: Path) -> None:
    """Write a checkpoint as the peer leaves it: weights, table of zeros, optimizer state."""
    sizes = {"n_input": N_GENES, "n_output": N_GENES, "n_perturbation": N_FEATURES, "n_batches": N_BATCHES}
    config = NetworkConfig(**SIZES["tahoe"], **sizes, head="down_up")
    shapes, rng, state = target_shapes(config), torch.Generator().manual_seed(0), {}
    for entry in key_entries(config):
        shape = shapes[entry.ours]
        rows = entry.rows if len(entry.theirs) > 1 else (shape[0],)
        for name, n_rows in zip(entry.theirs, rows, strict=True):
            state[name] = torch.empty(n_rows, *shape[1:]).normal_(std=0.02, generator=rng)
    state["transformer_backbone.embed_tokens.weight"] = torch.zeros(32_000, config.hidden)
    hyper = {
        "transformer_backbone_key": "llama",
        "transformer_backbone_kwargs": {"num_attention_heads": 12, "head_dim": 124, "bidirectional_attention": True},
        "cell_set_len": 512,
        "output_space": "all",
        "embed_key": None,
        "predict_residual": True,
        "control_pert": "control",
        "gene_names": [f"GENE{i}" for i in range(N_GENES)],
    }
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    moments = [{"exp_avg": tensor, "exp_avg_sq": tensor.clone()} for tensor in list(state.values())[:6]]
    content = {"state_dict": state, "hyper_parameters": hyper, "optimizer_states": moments}
    torch.save(content, folder / "checkpoints" / "final.ckpt")
    features = torch.randn(N_PERTURBATIONS, N_FEATURES, generator=rng)
    names = ["control", *(f"GENE{i}" for i in range(N_PERTURBATIONS - 1))]
    torch.save(dict(zip(names, features, strict=True)), folder / "pert_onehot_map.pt")
    torch.save({f"batch{i}": row for i, row in enumerate(torch.eye(N_BATCHES))}, folder / "batch_onehot_map.torch")
    (folder / "var_dims.pkl").write_bytes(pickle.dumps({"gene_names": hyper["gene_names"]}))


def resize(folder: Path) -> tuple[NetworkConfig, dict[str, torch.Tensor]]:
    """Move the weights to 16,000 shuffled genes, half of the batches, and some new perturbations."""
    source = read_arc_folder(folder)
    rng = np.random.default_rng(0)
    genes = (*np.array(source.genes)[rng.permutation(N_GENES)[:15_000]].tolist(), *(f"NEW{i}" for i in range(1_000)))
    table = EmbeddingTable(("control", "GENE5", "x"), rng.normal(size=(3, N_FEATURES)).astype(np.float32))
    labels = replace(source.labels, genes=genes, batches=source.batches[::2], perturbations=table)
    config = replace(source.config, n_input=len(genes), n_output=len(genes), n_batches=len(labels.batches))
    accept = ("drop_genes", "new_perturbation_encoder")
    state, report = plan_warm_start(source, config, labels, accept=accept)
    sys.stderr.write(report.text().splitlines()[0] + "\n")
    return config, state


def build(config: NetworkConfig, state: dict[str, torch.Tensor], device: torch.device) -> SetTransformer:
    """Return the network with these weights on a device, in eval mode; on the CPU they are not copied."""
    with torch.device("meta"):
        network = SetTransformer(config)
    network.load_state_dict({name: tensor.to(device) for name, tensor in state.items()}, strict=True, assign=True)
    return network.eval()


def predict(network: SetTransformer, device: torch.device) -> None:
    """Predict one set of 64 cells."""
    inputs = torch.rand(1, 64, network.config.n_input), torch.rand(1, N_FEATURES), torch.zeros(1, 1, dtype=torch.long)
    with torch.inference_mode():
        output = network(*(tensor.to(device) for tensor in inputs)).prediction_SNG
    if not bool(output.isfinite().all()):
        raise RuntimeError("the prediction is not finite")


def load_predict(folder: Path, device: torch.device) -> None:
    """Load, build and predict."""
    source = read_arc_folder(folder)
    predict(build(source.config, source.state_dict, device), device)


def export_from(folder: Path, device: torch.device) -> None:
    """Load to a device and export what lies there."""
    source = read_arc_folder(folder)
    network = build(source.config, source.state_dict, device)
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    export_model(replace(source, state_dict=state), folder / "ours", overwrite=True)


def read_predict(folder: Path, device: torch.device) -> None:
    """Read our export, build and predict."""
    source = read_export(folder / "ours")
    predict(build(source.config, source.state_dict, device), device)


def run(step: str, folder: Path, device: torch.device) -> None:
    """Run one step and print its time and the peaks of its memory."""
    actions: dict[str, Callable[[], object]] = {
        "load": lambda: read_arc_folder(folder),
        "load and resize": lambda: resize(folder),
        "load, build, one prediction": lambda: load_predict(folder, device),
        "load and export": lambda: export_model(read_arc_folder(folder), folder / "ours", overwrite=True),
        "read export": lambda: read_export(folder / "ours"),
        "load and export arc": lambda: write_arc_folder(read_arc_folder(folder), folder / "arc", overwrite=True),
        "load to the card, one prediction": lambda: load_predict(folder, device),
        "load and resize, to the card, one prediction": lambda: predict(build(*resize(folder), device), device),
        "load to the card, export from it": lambda: export_from(folder, device),
        "read export to the card, one prediction": lambda: read_predict(folder, device),
    }
    start = time.perf_counter()
    actions[step]()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    figures = {"step": step, "seconds": round(time.perf_counter() - start, 1), "peak_gb": round(peak, 2)}
    if device.type == "cuda":
        figures["peak_gpu_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 2)
    sys.stdout.write(json.dumps(figures) + "\n")


def main() -> None:
    """Write the weights if they are not there, then run every step in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--step", choices=STEPS)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    if arguments.step:
        run(arguments.step, arguments.folder, torch.device(arguments.device))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        start = time.perf_counter()
        if not (folder / "checkpoints" / "final.ckpt").exists():
            write_weights(folder)
        written = time.perf_counter() - start
        size = (folder / "checkpoints" / "final.ckpt").stat().st_size / 1e9
        where = f"{os.cpu_count()} cores" if arguments.device == "cpu" else torch.cuda.get_device_name()
        sys.stdout.write(f"checkpoint of {size:.2f} GB, written in {written:.1f} s; {where}\n")
        sys.stdout.flush()
        for step in ON_CPU if arguments.device == "cpu" else ON_GPU:
            command = [sys.executable, __file__, str(folder), "--step", step, "--device", arguments.device]
            subprocess.run(command, check=True)
        sys.stdout.write(f"all of it in {time.perf_counter() - start:.1f} s\n")


if __name__ == "__main__":
    main()
