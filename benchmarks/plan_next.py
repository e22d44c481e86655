"""Which conditions to measure next: error on conditions that nobody measures, against the number of measured ones.

A replay. A quarter of the conditions is never measured and is scored; of the others a tenth is measured at first, drawn
at random, and the rest in batches that ``plan_next`` chooses, that lie farthest from all measured ones in tables and
contexts, or that are drawn at random. Mean over seeds of the root mean squared error, without the sampling variance of
measured means; in the figure with its standard error.

    python benchmarks/plan_next.py responses.h5ad --perturbation-key perturbation --context-key cell_line \\
        --context k562 --control control --table go=emb_gene_go.parquet --until 0.58 --figure docs/_static/plan_next.png
    python benchmarks/plan_next.py --papalexi --table go=emb_gene_go.parquet --seeds 10 --until 0.5 \\
        --figure docs/_static/plan_next_papalexi.png
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
from scvi_tahoe.datasets import papalexi_thp1
from scvi_tahoe.response import ResponseModel
from scvi_tahoe.response._kernels import TableKernel, unit_rows
from scvi_tahoe.response._plan_next import plan_next

STRATEGIES = ("plan_next", "farthest", "random")
P, C = "perturbation", "context"  # columns of a table of responses
FEWEST_CELLS = 40  # of a condition whose mean is scored


def responses_of_cells(cells: ad.AnnData, perturbation_key: str, context_key: str, control: str) -> ad.AnnData:
    """Return the mean change of each condition, and its sampling variance."""
    rows, changes, variances = [], [], []
    labels, contexts = (cells.obs[key].astype(str).to_numpy() for key in (perturbation_key, context_key))
    for context in np.unique(contexts):
        groups = {}
        for label in np.unique(labels[contexts == context]):
            x = cells.X[np.flatnonzero((labels == label) & (contexts == context))].toarray()
            if len(x) >= FEWEST_CELLS:
                groups[label] = x.mean(0), x.var(0, ddof=1) / len(x)
        for label, (mean, variance) in groups.items():
            if label != control:
                rows.append((label, context))
                changes.append(mean - groups[control][0])
                variances.append(variance + groups[control][1])
    obs = pd.DataFrame(rows, columns=[P, C])
    obs.index = obs.index.astype(str)
    return ad.AnnData(np.float32(changes), obs=obs, var=cells.var[[]], layers={"variance": np.float32(variances)})


def responses_of_table(args: argparse.Namespace) -> ad.AnnData:
    """Return the conditions of one context, and the genes that vary most."""
    adata = ad.read_h5ad(args.responses)
    kept = adata.obs[args.perturbation_key].astype(str) != (args.control or "")
    if args.context is not None:
        kept &= adata.obs[args.context_key].astype(str) == args.context
    adata = adata[kept.to_numpy()]
    values = np.asarray(adata.X.toarray() if sp.issparse(adata.X) else adata.X, dtype=np.float32)
    values = values[:, np.sort(np.argsort(-values.var(0))[: args.genes])]
    obs = pd.DataFrame({P: adata.obs[args.perturbation_key].astype(str), C: "one"})
    return ad.AnnData(values, obs=obs, layers={"variance": np.zeros_like(values)})


def farthest(rows: np.ndarray, measured: list[int], free: list[int], n: int) -> list[int]:
    """Choose the rows that are farthest from all chosen so far, one after the other."""
    chosen: list[int] = []
    near = (rows @ rows[measured].T).max(axis=1)
    for _ in range(n):
        best = min((i for i in free if i not in chosen), key=lambda i: near[i])
        chosen.append(best)
        near = np.maximum(near, rows @ rows[best])
    return chosen


def replay(adata: ad.AnnData, tables: dict, rows: np.ndarray, strategy: str, seed: int, until: float) -> list[dict]:
    """Errors of one strategy from one start."""
    order = np.random.default_rng(seed).permutation(adata.n_obs)
    scored, pool = order[: adata.n_obs // 4], order[adata.n_obs // 4 :]
    conditions = list(zip(adata.obs[P], adata.obs[C], strict=True))
    batch, found = max(len(pool) // 10, 1), []
    measured = pool[:batch].tolist()
    rng = np.random.default_rng([seed, zlib.crc32(strategy.encode())])
    while True:
        model = ResponseModel.fit(
            adata[measured].copy(), perturbation_key=P, context_key=C, tables=tables,
            variance_layer="variance", progress=False,
        )  # fmt: skip
        predicted = model.predict(
            sorted({conditions[i][0] for i in scored}), sorted({conditions[i][1] for i in scored}), new_contexts=True
        )
        row = {condition: i for i, condition in enumerate(zip(predicted.obs[P], predicted.obs[C], strict=True))}
        squared = np.square(predicted.X[[row[conditions[i]] for i in scored]] - adata.X[scored])
        error = float(np.sqrt(max(float((squared - adata.layers["variance"][scored]).mean()), 0)))
        found.append({"strategy": strategy, "seed": seed, "measured": len(measured), "rmse": error})
        free = [i for i in pool.tolist() if i not in set(measured)]
        if len(measured) >= until * len(pool):
            return found
        n = min(batch, len(free))
        if strategy == "plan_next":
            plan = plan_next(model._fitted, [conditions[i] for i in free], n, {})
            measured += [free[i] for i in plan["candidate"]]
        elif strategy == "farthest":
            measured += farthest(rows, measured, free, n)
        else:
            measured += rng.permutation(free)[:n].tolist()


def draw(table: pd.DataFrame, path: Path, n: int) -> None:
    """Draw error against the share of measured conditions."""
    with pl.style():
        figure = pl.new_figure(4.2, 2.8)
        ax = figure.subplots()
        for name, color in zip(STRATEGIES, (pl.PREDICTED, pl.OBSERVED, pl.BASELINE), strict=True):
            of_one = table[table["strategy"] == name].groupby("measured")["rmse"]
            middle, error = of_one.mean(), of_one.sem()
            share = 100 * middle.index / n
            ax.fill_between(share, middle - error, middle + error, color=color, alpha=0.15, linewidth=0)
            ax.plot(share, middle, color=color, marker="o", markersize=3, label=name)
        ax.set_xlabel("conditions measured (%)")
        ax.set_ylabel("RMSE on those never measured")
        ax.legend()
    figure.savefig(path)


def main() -> None:
    """Print means, and how many random conditions each batch of plan_next is worth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("responses", type=Path, nargs="?")
    parser.add_argument("--papalexi", action="store_true", help="targets of the shipped screen in its three replicates")
    parser.add_argument("--perturbation-key", default="perturbation")
    parser.add_argument("--context-key")
    parser.add_argument("--context")
    parser.add_argument("--control")
    parser.add_argument("--table", action="append", default=[], help="NAME=FILE.parquet, as often as there are tables")
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--until", type=float, default=0.7, help="share of what can be measured that is measured")
    parser.add_argument("--output", type=Path, help="every error, as csv")
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    tables = {name: pd.read_parquet(path) for name, _, path in (text.partition("=") for text in args.table)}
    if args.papalexi:
        adata = responses_of_cells(papalexi_thp1(), "perturbation", "bio_rep", "non-targeting")
    else:
        adata = responses_of_table(args)
    described = set.intersection(*(set(t.index) for t in tables.values()))
    adata = adata[adata.obs[P].isin(described).to_numpy()].copy()
    names = adata.obs[P].tolist()
    of_tables = [unit_rows(TableKernel.of(table, names).of_components(names)[0]) for table in tables.values()]
    of_context = pd.get_dummies(adata.obs[C]).to_numpy(dtype=float)
    rows = np.hstack([*of_tables, *([of_context] if of_context.shape[1] > 1 else [])])
    found = Parallel(n_jobs=args.jobs)(
        delayed(replay)(adata, tables, unit_rows(rows), strategy, seed, args.until)
        for seed in range(args.seeds)
        for strategy in STRATEGIES
    )
    table = pd.DataFrame([row for rows_of in found for row in rows_of])
    if args.output is not None:
        table.to_csv(args.output, index=False)
    middle = table.pivot_table(index="measured", columns="strategy", values="rmse", aggfunc="mean")[list(STRATEGIES)]
    middle["as many random ones"] = np.interp(
        -middle["plan_next"], -middle["random"].cummin(), middle.index, right=np.nan
    )  # errors fall, so both are turned round
    print(f"{adata.n_obs} conditions, {args.seeds} seeds")
    print(middle.round(4).to_string())
    error = np.interp(adata.n_obs / 4, middle.index, middle["plan_next"])
    alike = np.interp(-error, -middle["random"].cummin(), middle.index, right=np.nan)
    print(f"plan_next at 25 % of the conditions: the error of random choice at {100 * alike / adata.n_obs:.0f} %")
    if args.figure is not None:
        draw(table, args.figure, adata.n_obs)


if __name__ == "__main__":
    main()
