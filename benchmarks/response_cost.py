"""What the response model costs before the first training step: processor time and memory, by number of conditions.

Simulated screens of four contexts. `with` is one training step that starts from the response model, `without` one with
`prior="none"`; memory is the largest resident set beyond that of the loaded screen. Each run has a process of its own
and one thread.

    python benchmarks/response_cost.py --conditions 80 160 320 640
    python benchmarks/response_cost.py --responses 10000 --genes 2000 --device cuda
    python benchmarks/response_cost.py --growth 125 250 500 1000 2000 4000 --figure growth.svg

The second form fits a table of responses of four contexts, with an embedding table, and predicts 100 conditions. The
third does so for several numbers of conditions, one thread each, and draws how processor time and memory grow.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def measure(n_conditions: int, n_genes: int, prior: str) -> None:
    """Print processor seconds and MiB of one training step."""
    from scvi_tahoe import TahoeST
    from scvi_tahoe.datasets import simulate_screen

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    screen = simulate_screen(4, n_conditions // 4, n_genes=n_genes)
    warm = screen[screen.obs["perturbation"].isin(["control", *screen.obs["perturbation"].cat.categories[:4]])].copy()
    TahoeST.setup_anndata(warm, perturbation_key="perturbation", control="control", context_key="context")
    TahoeST(warm, prior="none").train(1, progress=False)
    TahoeST.setup_anndata(screen, perturbation_key="perturbation", control="control", context_key="context")
    model, before = TahoeST(screen, prior=prior), resource.getrusage(resource.RUSAGE_SELF)
    started = time.process_time()
    model.train(1, progress=False)
    after = resource.getrusage(resource.RUSAGE_SELF)
    print(time.process_time() - started, (after.ru_maxrss - before.ru_maxrss) / 1024)


def measure_responses(n_conditions: int, n_genes: int, device: str) -> None:
    """Print wall seconds and MiB of a fit to a table of responses."""
    import numpy as np
    import pandas as pd
    from anndata import AnnData

    from scvi_tahoe.response import ResponseModel

    rng, n_labels, rank = np.random.default_rng(0), n_conditions // 4, 30
    activity = rng.normal(size=(n_labels, rank)).astype(np.float32)
    loadings = rng.normal(size=(4, rank, n_genes)).astype(np.float32) * 0.5 + rng.normal(size=(rank, n_genes))
    changes = np.concatenate([activity @ loadings[c] for c in range(4)]).astype(np.float32)
    changes += rng.normal(scale=3, size=changes.shape).astype(np.float32)
    labels = [f"P{i}" for i in range(n_labels)]
    obs = pd.DataFrame({"perturbation": labels * 4, "context": np.repeat(list("abcd"), n_labels)}).astype(str)
    adata = AnnData(changes, obs.set_index(np.arange(len(obs)).astype(str)))
    adata.layers["variance"] = np.full_like(changes, 9.0)
    table = pd.DataFrame(activity + rng.normal(size=activity.shape), index=labels)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, (time.perf_counter(), time.process_time())
    model = ResponseModel.fit(
        adata, perturbation_key="perturbation", context_key="context", tables=table, variance_layer="variance",
        device=device, progress=False,
    )  # fmt: skip
    fitted, processor = time.perf_counter(), time.process_time() - started[1]
    model.predict(perturbations=labels[:25], contexts=list("abcd"))
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    seconds = f"fit {fitted - started[0]:.1f} s, prediction {time.perf_counter() - fitted:.1f} s"
    print(f"{n_conditions} conditions x {n_genes} genes on {device}: {seconds}, {peak:.0f} MiB beyond the table")
    print(processor, peak)


def own_process(*options: str) -> list[float]:
    """Run this file with options in a process of one thread, and return the last two numbers that it prints."""
    environment = {**os.environ, **dict.fromkeys(THREADS, "1")}
    command = [sys.executable, __file__, *options]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return [float(x) for x in output.split()[-2:]]


def growth(sizes: list[int], n_genes: int) -> list[list[float]]:
    """Print processor time and memory of fits, by number of conditions."""
    found = []
    print("conditions    CPU s    MiB")
    for n in sizes:
        found.append(own_process("--responses", str(n), "--genes", str(n_genes)))
        print(f"{n:10d} {found[-1][0]:8.1f} {found[-1][1]:6.0f}", flush=True)
    return found


def draw(sizes: list[int], found: list[list[float]], n_genes: int, path: Path) -> None:
    """Draw processor time and memory, beside lines of growth in proportion."""
    import numpy as np
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    from scvi_tahoe import pl

    n, values = np.array(sizes), np.array(found)
    with pl.style():
        figure = pl.new_figure(6.4, 2.6)
        for ax, measured, unit in zip(figure.subplots(1, 2), values.T, ("seconds of one core", "MiB"), strict=True):
            ax.loglog(n, measured, color=pl.PREDICTED, marker="o", markersize=4, label="measured")
            ax.loglog(n, measured[-1] * n / n[-1], color=pl.BASELINE, linewidth=0.8, zorder=0, label="in proportion")
            ax.set_xticks(n)
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_minor_locator(NullLocator())
                axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            ax.tick_params(axis="x", rotation=45)
            ax.set_xlabel(f"conditions of {n_genes:,} genes")
            ax.set_ylabel(unit)
            ax.legend()
    figure.savefig(path)


def main() -> None:
    """Print one row a screen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conditions", type=int, nargs="+", default=[80, 160, 320])
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--responses", type=int, help="conditions of a table of responses without cells")
    parser.add_argument("--growth", type=int, nargs="+", help="numbers of conditions of such tables")
    parser.add_argument("--figure", type=Path, default=Path("growth.svg"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.growth:
        draw(args.growth, growth(args.growth, args.genes), args.genes, args.figure)
        return
    if args.responses:
        measure_responses(args.responses, args.genes, args.device)
        return
    if args.measure:
        measure(args.conditions[0], args.genes, args.measure)
        return
    print("conditions  without: CPU s, MiB    with: CPU s, MiB")
    for n in args.conditions:
        found = []
        for prior in ("none", "response"):
            found += own_process("--conditions", str(n), "--genes", str(args.genes), "--measure", prior)
        print(f"{n:10d}  {found[0]:15.1f} {found[1]:6.0f}    {found[2]:13.1f} {found[3]:6.0f}", flush=True)


if __name__ == "__main__":
    main()
