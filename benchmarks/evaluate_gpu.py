"""Differential expression on a GPU against the CPU: 100 perturbations x 1,000 cells x 18,080 genes, 1,000 controls.

``python benchmarks/evaluate_gpu.py`` on a machine with a CUDA device and the extra ``gpu``; it checks that ranks agree
before it prints a time. The CPU side takes all cores the process may use and some minutes; ``--perturbations``,
``--cells`` and ``--genes`` make it smaller.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import scipy.sparse as sp

from scvi_tahoe.evaluate._cells import CellTable
from scvi_tahoe.evaluate._differential_expression import available_cores, differential_expression
from scvi_tahoe.evaluate._differential_expression_gpu import chosen_backend


def screen(n_perturbations, n_cells, n_genes):
    """Poisson-gamma counts, normalised to 10,000, log1p, CSR float32; 300 genes of each perturbation change."""
    rng = np.random.default_rng(0)
    base = rng.gamma(0.2, 2.0, n_genes).astype(np.float32)
    blocks = []
    for index in range(n_perturbations + 1):
        rate = base.copy()
        if index:
            moved = rng.choice(n_genes, min(300, n_genes // 4), replace=False)
            rate[moved] *= np.exp(rng.normal(0, 0.7, len(moved)))
        counts = sp.csr_matrix(rng.poisson(rate * rng.gamma(8, 1 / 8, (n_cells, 1))), dtype=np.float32)
        total = np.asarray(counts.sum(axis=1)).ravel()
        counts = sp.csr_matrix(sp.diags(1e4 / np.maximum(total, 1)) @ counts, dtype=np.float32)
        blocks.append(counts.log1p())
    labels = np.repeat(["control", *(f"gene_{i}" for i in range(n_perturbations))], n_cells)
    n = len(labels)
    return CellTable(
        sp.vstack(blocks, format="csr"),
        labels,
        np.full(n, "all"),
        np.array([f"gene_{i}" for i in range(n_genes)]),
        np.array([f"cell_{i}" for i in range(n)]),
    )


def timed(call, repeats):
    """Result of the last call, and the seconds of all."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        table = call()
        seconds.append(time.perf_counter() - start)
    return table, seconds


def main():
    """Test on both, compare, print."""
    parser = argparse.ArgumentParser()
    for name, value in (("perturbations", 100), ("cells", 1000), ("genes", 18_080), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    backend = chosen_backend("gpu")
    small, cells = screen(2, 50, 200), screen(options.perturbations, options.cells, options.genes)
    for where in ("cpu", backend):  # compiles, loads
        differential_expression(small, control="control", backend=where)
    gpu, gpu_seconds = timed(
        lambda: differential_expression(cells, control="control", backend=backend), options.repeats
    )
    cpu, cpu_seconds = timed(lambda: differential_expression(cells, control="control", backend="cpu"), 1)
    tables = [table.sort(["target", "feature"]).to_pandas() for table in (cpu, gpu)]
    for name in ("p_value", "log2_fold_change"):
        ranks = [table.groupby("target")[name].rank().to_numpy() for table in tables]
        print(f"ranks by {name} that differ: {int((ranks[0] != ranks[1]).sum())} of {len(ranks[0])}")
    significant = [(table["fdr"] < 0.05).to_numpy() for table in tables]
    print(f"genes called on one side only: {int((significant[0] != significant[1]).sum())} of {significant[0].sum()}")
    median = float(np.median(gpu_seconds))
    print(f"CPU, {available_cores()} cores: {cpu_seconds[0]:.1f} s")
    print(f"GPU: median {median:.2f} s ({min(gpu_seconds):.2f} to {max(gpu_seconds):.2f})")
    print(f"times faster: {cpu_seconds[0] / median:.1f}")


if __name__ == "__main__":
    main()
