"""Time that registering a screen takes, on log1p of normalised counts with 600 genes expressed in a cell.

python benchmarks/registration_cost.py --cells 20000 100000

To compare with another version, run this file with that version on ``PYTHONPATH``.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix


def screen(n_cells: int, n_genes: int, n_expressed: int = 600) -> AnnData:
    """Make cells of 101 perturbations and four contexts."""
    rng = np.random.default_rng(0)
    patterns = np.stack([np.sort(rng.choice(n_genes, n_expressed, replace=False)) for _ in range(500)])
    genes = patterns[rng.integers(0, len(patterns), n_cells)].astype(np.int32)
    counts = rng.poisson(1.0, genes.shape) + 1.0
    values = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4).astype(np.float32)
    starts = np.arange(n_cells + 1) * n_expressed
    matrix = csr_matrix((values.ravel(), genes.ravel(), starts), shape=(n_cells, n_genes))
    labels = ["control", *(f"P{i}" for i in range(100))]
    obs = {"perturbation": pd.Categorical(rng.choice(labels, n_cells)), "context": rng.choice(list("abcd"), n_cells)}
    return AnnData(matrix, pd.DataFrame(obs, index=[str(i) for i in range(n_cells)]))


def main() -> None:
    """Print the median of processor and wall time of three registrations after a first one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--genes", type=int, default=18_080)
    args = parser.parse_args()

    from scvi_tahoe import TahoeST

    warnings.filterwarnings("ignore")
    for n in args.cells:
        adata, found = screen(n, args.genes), []
        for _ in range(4):
            copy, cpu, wall = adata.copy(), time.process_time(), time.perf_counter()
            TahoeST.setup_anndata(copy, "perturbation", "control", context_key="context")
            found.append((time.process_time() - cpu, time.perf_counter() - wall))
        cpu, wall = (statistics.median(values) for values in zip(*found[1:], strict=True))
        print(f"{n} cells x {args.genes} genes: {cpu:.3f} CPU s, {wall:.3f} s on the clock")


if __name__ == "__main__":
    main()
