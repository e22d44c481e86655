"""Which perturbations to measure next: error on targets that nobody measures, against the number of measured ones.

A replay on a table of responses. A quarter of the targets of one context is never measured and is scored; of the
others a tenth is measured at first, drawn at random, and the rest in batches that ``ResponseModel.plan_next`` chooses,
that lie farthest from all measured ones in the tables, or that are drawn at random. Median over seeds of the root mean
squared error. The figure goes to ``--figure``.

    python benchmarks/plan_next.py responses.h5ad --perturbation-key perturbation --context-key cell_line \\
        --context k562 --control control --table go=emb_gene_go.parquet --figure docs/_static/plan_next.png
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from joblib import Parallel, delayed

from scvi_tahoe import pl
from scvi_tahoe.response import ResponseModel
from scvi_tahoe.response._kernels import TableKernel, unit_rows

STRATEGIES = ("plan_next", "farthest", "random")


def farthest(rows: np.ndarray, measured: list[int], free: list[int], n: int) -> list[int]:
    """Choose the rows that are farthest from all chosen so far, one after the other."""
    chosen: list[int] = []
    near = (rows @ rows[measured].T).max(axis=1)
    for _ in range(n):
        best = min((i for i in free if i not in chosen), key=lambda i: near[i])
        chosen.append(best)
        near = np.maximum(near, rows @ rows[best])
    return chosen


def replay(adata: ad.AnnData, key: str, tables: dict, rows: np.ndarray, strategy: str, seed: int) -> list[dict]:
    """Errors of one strategy from one start."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(adata.n_obs)
    scored, pool = order[: adata.n_obs // 4], order[adata.n_obs // 4 :]
    batch, found = max(len(pool) // 10, 1), []
    measured, names = pool[:batch].tolist(), adata.obs[key].astype(str).to_numpy()
    position = {name: i for i, name in enumerate(names)}
    rng = np.random.default_rng([seed, zlib.crc32(strategy.encode())])
    while True:
        model = ResponseModel.fit(adata[measured].copy(), perturbation_key=key, tables=tables, progress=False)
        predicted = model.predict(names[scored].tolist())
        at = [position[name] for name in predicted.obs[key].astype(str)]
        error = float(np.sqrt(np.square(predicted.X - adata.X[at]).mean()))
        found.append({"strategy": strategy, "seed": seed, "measured": len(measured), "rmse": error})
        free = [i for i in pool.tolist() if i not in set(measured)]
        if len(measured) >= 0.7 * len(pool):
            return found
        n = min(batch, len(free))
        if strategy == "plan_next":
            plan = model.plan_next(n, perturbations=names[free].tolist())
            measured += [position[name] for name in plan[key].astype(str)]
        elif strategy == "farthest":
            measured += farthest(rows, measured, free, n)
        else:
            measured += rng.permutation(free)[:n].tolist()


def draw(table: pd.DataFrame, path: Path, n: int) -> None:
    """Draw error against the share of measured targets."""
    with pl.style():
        figure = pl.new_figure(4.2, 2.8)
        ax = figure.subplots()
        for name, color in zip(STRATEGIES, (pl.PREDICTED, pl.OBSERVED, pl.BASELINE), strict=True):
            of_one = table[table["strategy"] == name].groupby("measured")["rmse"]
            middle = of_one.median()
            share = 100 * middle.index / n
            ax.fill_between(share, of_one.min(), of_one.max(), color=color, alpha=0.15, linewidth=0)
            ax.plot(share, middle, color=color, marker="o", markersize=3, label=name)
        ax.set_xlabel("targets measured (%)")
        ax.set_ylabel("RMSE on targets never measured")
        ax.legend()
    figure.savefig(path)


def main() -> None:
    """Print medians, and how many random targets each batch of plan_next is worth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("responses", type=Path)
    parser.add_argument("--perturbation-key", required=True)
    parser.add_argument("--context-key")
    parser.add_argument("--context")
    parser.add_argument("--control")
    parser.add_argument("--table", action="append", default=[], help="NAME=FILE.parquet, as often as there are tables")
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    key = args.perturbation_key
    adata = ad.read_h5ad(args.responses)
    tables = {name: pd.read_parquet(path) for name, _, path in (text.partition("=") for text in args.table)}
    names = adata.obs[key].astype(str)
    kept = (names != (args.control or "")) & names.isin(set.intersection(*(set(t.index) for t in tables.values())))
    if args.context is not None:
        kept &= adata.obs[args.context_key].astype(str) == args.context
    adata = adata[kept.to_numpy()].copy()
    adata.X = np.asarray(adata.X.toarray() if sp.issparse(adata.X) else adata.X, dtype=np.float32)
    adata = adata[:, np.sort(np.argsort(-adata.X.var(0))[: args.genes])].copy()
    names = adata.obs[key].astype(str).tolist()
    of_tables = [unit_rows(TableKernel.of(table, names).of_components(names)[0]) for table in tables.values()]
    rows = np.hstack(of_tables) / np.sqrt(len(of_tables))
    found = Parallel(n_jobs=args.jobs)(
        delayed(replay)(adata, key, tables, rows, strategy, seed)
        for seed in range(args.seeds)
        for strategy in STRATEGIES
    )
    table = pd.DataFrame([row for rows_of in found for row in rows_of])
    middle = table.pivot_table(index="measured", columns="strategy", values="rmse", aggfunc="median")[list(STRATEGIES)]
    middle["as many random ones"] = np.interp(
        -middle["plan_next"], -middle["random"], middle.index, right=np.nan
    )  # errors fall, so both are turned round
    print(f"{adata.n_obs} targets, {args.seeds} seeds")
    print(middle.round(4).to_string())
    quarter = adata.n_obs / 4
    error = np.interp(quarter, middle.index, middle["plan_next"])
    alike = np.interp(-error, -middle["random"].cummin(), middle.index, right=np.nan)
    print(f"plan_next at 25 % of the targets: the error of random choice at {100 * alike / adata.n_obs:.0f} %")
    if args.figure is not None:
        draw(table, args.figure, adata.n_obs)


if __name__ == "__main__":
    main()
