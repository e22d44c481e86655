"""Training from a store on disk: steps a second against the same model with expression in memory, and peak memory.

Simulates an atlas straight into a store (by default 5 million cells x 2,000 genes, 7.5 % non-zeros: 50 contexts with
200 perturbations of 475 cells and 5,000 controls each), checks rows against the simulation, and trains in processes of
their own: from disk on all cells, and from memory on the contexts that fit. Needs the extra `annbatch` and 5 GB on
disk.

    OMP_NUM_THREADS=1 python benchmarks/atlas.py --folder /tmp/atlas
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from lightning.pytorch import Callback
from tqdm.auto import tqdm

from scvi_tahoe import HeldOutPerturbations, TahoeST, read_store
from scvi_tahoe.data import make_store
from scvi_tahoe.data._store_folder import StoreWriter

N_CELLS, CONTROLS_FOR_EACH = 475, 5_000
SETS, SET_SIZE, EVERY, WARM_UP = 8, 64, 20, 40
GIB = 2**30


def conditions(arguments) -> list[tuple[int, int, int]]:
    """Context, perturbation (-1: control) and number of cells, in the order of the store."""
    share = arguments.cells / (arguments.contexts * (arguments.perturbations * N_CELLS + CONTROLS_FOR_EACH))
    n_cells, n_controls = round(share * N_CELLS), round(share * CONTROLS_FOR_EACH)
    sizes = [(-1, n_controls), *((p, n_cells) for p in range(arguments.perturbations))]
    return [(c, p, n) for c in range(arguments.contexts) for p, n in sizes]


def simulated(context: int, perturbation: int, n: int, arguments) -> sp.csr_matrix:
    """Cells of one condition, log1p of counts normalised to 10,000: the same ones whenever they are asked for."""
    genes = arguments.genes
    base = np.random.default_rng(0).gamma(1.0, 1.0, genes)
    base *= np.random.default_rng((1, context)).lognormal(0, 0.3, genes)
    effect = np.random.default_rng((2, perturbation + 1))
    if perturbation >= 0:
        base[effect.choice(genes, genes // 20, replace=False)] *= 3
    chance = np.minimum(base * arguments.density / base.mean(), 0.95).astype(np.float32)
    rng = np.random.default_rng((3, context, perturbation + 1))
    mask = rng.random((n, genes), dtype=np.float32) < chance
    indptr = np.append(0, np.cumsum(mask.sum(1)))
    counts = 1.0 + rng.poisson(0.7, indptr[-1])
    n_entries = np.diff(indptr)
    total = np.bincount(np.repeat(np.arange(n), n_entries), counts, minlength=n)
    values = np.log1p(counts * np.repeat(1e4 / np.maximum(total, 1), n_entries)).astype(np.float32)
    return sp.csr_matrix((values, np.flatnonzero(mask) % genes, indptr), shape=(n, genes))


def write(arguments) -> None:
    """The atlas, condition after condition."""
    partial = arguments.folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    writer = StoreWriter(partial, arguments.genes)
    listed = conditions(arguments)
    for context, perturbation, n in tqdm(listed, desc="simulating", mininterval=10):
        writer.append(simulated(context, perturbation, n, arguments))
    context, perturbation, n = (np.array(column) for column in zip(*listed, strict=True))
    names = ["control", *(f"perturbation_{i}" for i in range(arguments.perturbations))]
    obs = pd.DataFrame(
        {
            "perturbation": pd.Categorical.from_codes(np.repeat(perturbation + 1, n), names),
            "context": pd.Categorical.from_codes(
                np.repeat(context, n), [f"context_{i}" for i in range(context.max() + 1)]
            ),
        },
        index=[f"cell_{i}" for i in range(n.sum())],
    )
    writer.finish(obs, pd.DataFrame(index=[f"gene_{i}" for i in range(arguments.genes)]))
    partial.rename(arguments.folder)


def check(arguments) -> None:
    """Rows as training reads them, against the simulation."""
    listed = conditions(arguments)
    starts = np.append(0, np.cumsum([n for *_, n in listed]))
    store = make_store(read_store(arguments.folder).X, torch.device("cpu"), kind="disk")
    rng = np.random.default_rng(5)
    for i in rng.choice(len(listed), 20, replace=False):
        context, perturbation, n = listed[i]
        rows = rng.choice(n, 64)
        found = store.dense(store.fetch(starts[i] + rows), torch.device("cpu")).numpy()
        expected = simulated(context, perturbation, n, arguments)[rows].toarray()
        if not np.array_equal(found, expected):
            raise SystemExit(f"condition {i}: rows of the store are not those of the simulation")
    print(f"20 x 64 rows, random order and repeats: exactly those of the simulation, {store.n_features} genes")


def read_alone(arguments) -> None:
    """Sets a second that are read when nothing else runs: the ceiling of training from disk."""
    listed = [(start, n) for (_, p, n), start in zip(conditions(arguments), _starts(arguments), strict=True) if p >= 0]
    store = make_store(read_store(arguments.folder).X, torch.device("cpu"), kind="disk")
    rng, seconds = np.random.default_rng(6), []
    for _ in range(60):
        chosen = (listed[i] for i in rng.choice(len(listed), SETS))
        rows = np.stack([start + rng.choice(n, SET_SIZE, replace=False) for start, n in chosen])
        begin = time.perf_counter()
        store.fetch(rows)
        seconds.append(time.perf_counter() - begin)
    line("reading alone, perturbed cells", [SETS / s for s in seconds[10:]], "sets/s")


def _starts(arguments) -> np.ndarray:
    return np.append(0, np.cumsum([n for *_, n in conditions(arguments)]))[:-1]


class Clock(Callback):
    """Seconds of every so many steps: on the clock, of the processor in all threads, and in the one that trains."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {"wall": [], "processor": [], "thread": []}
        self._begin = (0.0, 0.0, 0.0)

    def on_train_batch_end(self, trainer, *args) -> None:
        step = trainer.global_step
        if step % EVERY:
            return
        now = time.perf_counter(), time.process_time(), time.thread_time()
        if step > WARM_UP:
            for found, begin, end in zip(self.seconds.values(), self._begin, now, strict=True):
                found.append((end - begin) / EVERY)
        self._begin = now


def train(arguments) -> None:
    """One training in this process; prints what it took as JSON."""
    begin = time.perf_counter()
    adata = read_store(arguments.folder)
    if arguments.part == "memory":
        n_cells = sum(n for context, _, n in conditions(arguments) if context < arguments.in_memory)
        adata = adata[:n_cells].to_memory()
    TahoeST.setup_anndata(adata, "perturbation", "control", context_key="context")
    torch.manual_seed(0)
    model = TahoeST(adata, size=arguments.size, set_size=SET_SIZE, prior="none")
    clock = Clock()
    held_out = HeldOutPerturbations(validation=["perturbation_0"])
    model.train(
        arguments.steps, batch_size=SETS, split=held_out, validate_every=arguments.steps, progress=False,
        store="host" if arguments.part == "memory" else "disk", callbacks=[clock], accelerator="cpu",
    )  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({
        **clock.seconds, "peak": peak, "n_cells": adata.n_obs, "whole": time.perf_counter() - begin,
        "parameters": sum(p.numel() for p in model.module.parameters()),
    }))  # fmt: skip


def line(name: str, values: list[float], unit: str, more: str = "") -> None:
    """One line of the table."""
    spread = f"({min(values):.4g} to {max(values):.4g})"
    print(f"{name:<40}{statistics.median(values):9.4g} {unit} {spread} {more}", flush=True)


def compare(arguments) -> None:
    """Train from memory and from disk in turn, so that both see the same machine."""
    results: dict[str, list[dict]] = {"memory": [], "disk": []}
    for _ in range(arguments.repeats):
        for part, found in results.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--part", part]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            found.append(json.loads(done.stdout.splitlines()[-1]))
    rate = {}
    for part, found in results.items():
        medians = {kind: [statistics.median(run[kind]) for run in found] for kind in ("wall", "processor", "thread")}
        rate[part] = 1 / statistics.median(medians["wall"])
        cells = f"{found[0]['n_cells']:,} cells, {found[0]['parameters'] / 1e6:.1f} M parameters"
        line(f"training, {part}", [1 / m for m in medians["wall"]], "steps/s", cells)
        line("  processor time, the training thread", [1000 * m for m in medians["thread"]], "ms a step")
        line("  processor time, all threads", [1000 * m for m in medians["processor"]], "ms a step")
        line(f"peak memory, {part}", [run["peak"] / GIB for run in found], "GiB")
        line(f"whole run of {arguments.steps} steps, {part}", [run["whole"] for run in found], "s")
    print(f"disk / memory: {rate['disk'] / rate['memory']:.3f}")


def main() -> None:
    """Run the parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("atlas.zarr"))
    parser.add_argument("--cells", type=int, default=5_000_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--contexts", type=int, default=50)
    parser.add_argument("--perturbations", type=int, default=200)
    parser.add_argument("--density", type=float, default=0.075, help="chance of a non-zero before it is cut at 0.95")
    parser.add_argument("--in-memory", type=int, default=4, help="contexts of the run in memory")
    parser.add_argument("--size", default="small")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="do not delete the folder")
    parser.add_argument("--part", choices=["all", "memory", "disk"], default="all")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.part != "all":
        train(arguments)
        return
    try:
        if not arguments.folder.exists():
            begin = time.perf_counter()
            write(arguments)
            size = sum(f.stat().st_size for f in arguments.folder.rglob("*") if f.is_file())
            print(f"written in {time.perf_counter() - begin:.0f} s: {size / GIB:.2f} GiB")
        adata = read_store(arguments.folder)
        share = adata.X.group["data"].shape[0] / adata.n_obs / adata.n_vars
        print(f"{adata.n_obs:,} cells x {adata.n_vars:,} genes, {share:.1%} non-zeros")
        check(arguments)
        read_alone(arguments)
        compare(arguments)
    finally:
        if not arguments.keep:
            shutil.rmtree(arguments.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
