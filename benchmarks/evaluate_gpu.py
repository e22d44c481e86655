"""Differential expression on a GPU against the CPU: 100 perturbations x 1,000 cells x 18,080 genes, 1,000 controls.

``python benchmarks/evaluate_gpu.py`` on a machine with a CUDA device and the extra ``gpu``. Counts are drawn there
(a core would take some minutes); the CPU takes all cores that the process may use. It tests perturbation by
perturbation, so ``--cpu-perturbations 20`` tests the first 20 and scales the time; ranks are compared on those tested
by both. ``--perturbations``, ``--cells`` and ``--genes`` make everything smaller.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import scipy.sparse as sp
import torch

from scvi_tahoe.evaluate._cells import CellTable
from scvi_tahoe.evaluate._differential_expression import (
    available_cores,
    chosen_backend,
    differential_expression,
    fold_changes,
)

CONTROL = "control"


def log1p_counts(rate, sizes, generator):
    """Poisson counts of rates ``[G]`` and cell sizes ``[C]``, normalised to 10,000, log1p, CSR float32."""
    rates = torch.as_tensor(sizes, device=generator.device)[:, None] * torch.as_tensor(rate, device=generator.device)
    counts = torch.poisson(rates.float(), generator=generator)
    values = torch.log1p(counts / counts.sum(1, keepdim=True).clamp(min=1) * 1e4)
    rows, columns = values.nonzero(as_tuple=True)
    ends = torch.cumsum(torch.bincount(rows, minlength=len(values)), 0)
    parts = (values[rows, columns], columns.int(), torch.nn.functional.pad(ends, (1, 0)).int())
    return sp.csr_matrix(tuple(part.cpu().numpy() for part in parts), shape=tuple(values.shape))


def screen(n_perturbations, n_cells, n_genes, device):
    """Poisson-gamma counts as log1p expression; 300 genes of each perturbation change."""
    rng = np.random.default_rng(0)
    generator = torch.Generator(device).manual_seed(0)
    base = rng.gamma(0.2, 2.0, n_genes)
    blocks = []
    for index in range(n_perturbations + 1):
        rate = base.copy()
        if index:
            moved = rng.choice(n_genes, min(300, n_genes // 4), replace=False)
            rate[moved] *= np.exp(rng.normal(0, 0.7, len(moved)))
        blocks.append(log1p_counts(rate, rng.gamma(8, 1 / 8, n_cells), generator))
    labels = np.repeat([CONTROL, *(f"gene_{i:03}" for i in range(n_perturbations))], n_cells)
    n = len(labels)
    return CellTable(
        sp.vstack(blocks, format="csr"),
        labels,
        np.full(n, "all"),
        np.array([f"gene_{i}" for i in range(n_genes)]),
        np.array([f"cell_{i}" for i in range(n)]),
    )


def first(cells, n_perturbations):
    """Cells of the first perturbations and of the controls."""
    (context,) = cells.contexts
    chosen = [CONTROL, *cells.perturbations(context, control=CONTROL)[:n_perturbations]]
    return cells.take(np.isin(cells.perturbation, chosen))


def timed(call, repeats):
    """Result of the last call, and the seconds of all."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        table = call()
        seconds.append(time.perf_counter() - start)
    return table, seconds


def print_agreement(cpu, gpu):
    """Ranks, calls and p-values of both sides; only perturbations that both tested."""
    gpu = gpu.filter(gpu["target"].is_in(cpu["target"].unique().to_list()))
    cpu, gpu = (table.sort(["target", "feature"]).to_pandas() for table in (cpu, gpu))
    for name in ("p_value", "log2_fold_change"):
        ranks = [table.groupby("target")[name].rank().to_numpy() for table in (cpu, gpu)]
        print(f"ranks by {name} that differ: {int((ranks[0] != ranks[1]).sum())} of {len(ranks[0])}")
    p_cpu, p_gpu = (table["p_value"].to_numpy() for table in (cpu, gpu))
    seen = p_cpu > np.finfo(float).tiny
    apart = np.abs(p_gpu[seen] / p_cpu[seen] - 1).max()
    print(f"p-values differ by {apart:.1e} of themselves at most; smallest {p_cpu.min():.1e}")
    significant = [(table["fdr"] < 0.05).to_numpy() for table in (cpu, gpu)]
    print(f"genes called on one side only: {int((significant[0] != significant[1]).sum())} of {significant[0].sum()}")


def main():
    """Test on both, compare, print."""
    parser = argparse.ArgumentParser()
    for name, value in (("perturbations", 100), ("cells", 1000), ("genes", 18_080), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--cpu-perturbations", type=int, default=None, help="tested on the CPU (default: all)")
    options = parser.parse_args()
    backend = chosen_backend("gpu")
    print(f"{torch.cuda.get_device_name()}, {available_cores()} cores", flush=True)
    small = screen(2, 50, 200, "cuda")
    cells, (seconds,) = timed(lambda: screen(options.perturbations, options.cells, options.genes, "cuda"), 1)
    filled = cells.expression.nnz / cells.n_cells / len(cells.genes)
    print(f"{cells.n_cells} cells, {filled:.0%} of the matrix filled, made in {seconds:.0f} s")
    for where in ("cpu", backend):  # compiles, loads
        differential_expression(small, control=CONTROL, backend=where)
    gpu, gpu_seconds = timed(lambda: differential_expression(cells, control=CONTROL, backend=backend), options.repeats)
    median = float(np.median(gpu_seconds))
    print(f"GPU: median {median:.2f} s ({min(gpu_seconds):.2f} to {max(gpu_seconds):.2f})", flush=True)
    targets = cells.perturbations("all", control=CONTROL)
    _, (seconds,) = timed(lambda: fold_changes(cells, targets, control=CONTROL, num_threads=available_cores()), 1)
    print(f"of which fold changes, on the CPU: {seconds:.2f} s", flush=True)
    n_tested = min(options.cpu_perturbations or options.perturbations, options.perturbations)
    part = cells if n_tested == options.perturbations else first(cells, n_tested)
    cpu, (seconds,) = timed(lambda: differential_expression(part, control=CONTROL, backend="cpu"), 1)
    whole = seconds * options.perturbations / n_tested
    scaled = "" if n_tested == options.perturbations else f" ({seconds:.1f} s for {n_tested} perturbations, scaled)"
    print(f"CPU, {available_cores()} cores: {whole:.1f} s{scaled}")
    print(f"times faster: {whole / median:.1f}")
    print_agreement(cpu, gpu)


if __name__ == "__main__":
    main()
