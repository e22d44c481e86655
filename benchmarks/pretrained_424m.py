"""Time and memory of loading, resizing and exporting a network of 424 million parameters.

Writes weights of the shape of the largest published fine-tunes in Arc's format (18,080 genes in and out, 5,120-wide
perturbation features, 530 batches, 6 layers of 1,488; with the token table of zeros and an optimizer state), then times
each step in a process of its own::

    python benchmarks/pretrained_424m.py [FOLDER]

Where there is a GPU, the weights also go through it: there they predict twelve sets of 512 cells, and from there they
are exported; the bytes must be those of the export from main memory.

Aim: every step within 6 GB of memory, all of them within 60 s on two cores.
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

from scvi_tahoe.nn import SIZES, NetworkConfig
from scvi_tahoe.pretrained import (
    PerturbationTable,
    export_model,
    plan_warm_start,
    read_arc_folder,
    read_export,
    write_arc_folder,
)
from scvi_tahoe.pretrained._keys import key_entries
from scvi_tahoe.pretrained._shapes import target_shapes

if TYPE_CHECKING:
    from collections.abc import Callable

N_GENES, N_FEATURES, N_BATCHES, N_PERTURBATIONS = 18_080, 5_120, 530, 2_000
STEPS = (
    "load",
    "load and resize",
    "load, build, one prediction",
    "load and export",
    "read export",
    "load and export arc",
    "load, predict 12 x 512 cells on a GPU, export",
)


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


def resize(folder: Path) -> None:
    """Move the weights to 16,000 shuffled genes, half of the batches, and some new perturbations."""
    source = read_arc_folder(folder)
    rng = np.random.default_rng(0)
    genes = (*np.array(source.genes)[rng.permutation(N_GENES)[:15_000]].tolist(), *(f"NEW{i}" for i in range(1_000)))
    table = PerturbationTable(("control", "GENE5", "x"), rng.normal(size=(3, N_FEATURES)).astype(np.float32))
    labels = replace(source.labels, genes=genes, batches=source.batches[::2], perturbations=table)
    config = replace(source.config, n_input=len(genes), n_output=len(genes), n_batches=len(labels.batches))
    accept = ("drop_genes", "new_perturbation_encoder")
    _, report = plan_warm_start(source, config, labels, accept=accept)
    sys.stderr.write(report.text().splitlines()[0] + "\n")


def predict(folder: Path) -> None:
    """Build the network and predict one set of 64 cells."""
    network = read_arc_folder(folder).build()
    with torch.inference_mode():
        network(torch.rand(1, 64, N_GENES), torch.rand(1, N_FEATURES), torch.zeros(1, 1, dtype=torch.long))


def through_a_gpu(folder: Path) -> None:
    """Predict on a GPU, and export what is there; compare with the export from main memory."""
    source = read_arc_folder(folder)
    network = source.build().cuda()
    with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16):
        cells = torch.rand(12, 512, N_GENES, device="cuda")
        network(cells, torch.rand(12, N_FEATURES, device="cuda"), torch.zeros(12, 1, dtype=torch.long, device="cuda"))
    torch.cuda.synchronize()
    sys.stderr.write(f"largest memory of the GPU: {torch.cuda.max_memory_allocated() / 1e9:.2f} GB\n")
    state = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    export_model(replace(source, state_dict=state), folder / "gpu", overwrite=True)
    for name in sorted(path.name for path in (folder / "ours").glob("*.safetensors")):
        if (folder / "ours" / name).read_bytes() != (folder / "gpu" / name).read_bytes():
            raise SystemExit(f"{name}: other bytes after the GPU")


def run(step: str, folder: Path) -> None:
    """Run one step and print its time and the peak of its memory."""
    actions: dict[str, Callable[[], object]] = {
        STEPS[0]: lambda: read_arc_folder(folder),
        STEPS[1]: lambda: resize(folder),
        STEPS[2]: lambda: predict(folder),
        STEPS[3]: lambda: export_model(read_arc_folder(folder), folder / "ours", overwrite=True),
        STEPS[4]: lambda: read_export(folder / "ours"),
        STEPS[5]: lambda: write_arc_folder(read_arc_folder(folder), folder / "arc", overwrite=True),
        STEPS[6]: lambda: through_a_gpu(folder),
    }
    start = time.perf_counter()
    actions[step]()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    figures = {"step": step, "seconds": round(time.perf_counter() - start, 1), "peak_gb": round(peak, 2)}
    sys.stdout.write(json.dumps(figures) + "\n")


def main() -> None:
    """Write the weights if they are not there, then run every step in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--step", choices=STEPS)
    arguments = parser.parse_args()
    if arguments.step:
        run(arguments.step, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if not (folder / "checkpoints" / "final.ckpt").exists():
            write_weights(folder)
        size = (folder / "checkpoints" / "final.ckpt").stat().st_size / 1e9
        sys.stdout.write(f"checkpoint of {size:.2f} GB; {os.cpu_count()} cores\n")
        sys.stdout.flush()
        for step in STEPS if torch.cuda.is_available() else STEPS[:-1]:
            subprocess.run([sys.executable, __file__, str(folder), "--step", step], check=True)


if __name__ == "__main__":
    main()
