"""Which conditions to measure next: error on conditions that nobody measures, against the number of measured ones.

A replay. A quarter of the conditions is never measured and is scored; of the others a tenth is measured at first, drawn
at random, and the rest in batches, each after a new fit. Batches are those that ``plan_next`` chooses, with the scored
conditions as ``to_predict`` or without knowing them; those that cover the scored conditions best in tables and
contexts; those that lie farthest from all measured ones; or drawn at random. Mean over seeds of the root mean squared
error, without the sampling variance of measured means; in the figure with its standard error.

    python benchmarks/plan_next.py responses.h5ad --perturbation-key perturbation --context-key cell_line \\
        --context k562 --control control --table go=emb_gene_go.parquet --genes 300 --seeds 10 --until 0.4 \\
        --strategies "plan_next, to_predict" plan_next --figure docs/_static/plan_next.png
    python benchmarks/plan_next.py --papalexi --table go=emb_gene_go.parquet --seeds 10 --until 0.5
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

NAMED, PLANNED, COVERING, FARTHEST, RANDOM = "plan_next, to_predict", "plan_next", "covering", "farthest", "random"
P, C = "perturbation", "context"  # columns of a table of responses
STRATEGIES = {NAMED: pl.PREDICTED, PLANNED: "#d98880", COVERING: "#8e6bb0", FARTHEST: pl.OBSERVED, RANDOM: pl.BASELINE}
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


def covering(rows: np.ndarray, scored: np.ndarray, measured: list[int], free: list[int], n: int) -> list[int]:
    """Choose the rows that raise the sum of each scored row's likeness to its nearest most, one after the other."""
    chosen: list[int] = []
    likeness = rows[scored] @ rows.T
    nearest = likeness[:, measured].max(axis=1)
    for _ in range(n):
        gain = np.maximum(likeness - nearest[:, None], 0).sum(axis=0)
        chosen.append(max((i for i in free if i not in chosen), key=lambda i: gain[i]))
        nearest = np.maximum(nearest, likeness[:, chosen[-1]])
    return chosen


def farthest(rows: np.ndarray, measured: list[int], free: list[int], n: int) -> list[int]:
    """Choose the rows that are farthest from all chosen so far, one after the other."""
    chosen: list[int] = []
    near = (rows @ rows[measured].T).max(axis=1)
    for _ in range(n):
        best = min((i for i in free if i not in chosen), key=lambda i: near[i])
        chosen.append(best)
        near = np.maximum(near, rows @ rows[best])
    return chosen


def replay(
    adata: ad.AnnData, tables: dict, rows: np.ndarray, seed: int, until: float, strategies: list[str]
) -> list[dict]:
    """Errors of each strategy from one start."""
    order = np.random.default_rng(seed).permutation(adata.n_obs)
    scored, pool = order[: adata.n_obs // 4], order[adata.n_obs // 4 :]
    conditions = list(zip(adata.obs[P], adata.obs[C], strict=True))
    asked, batch, found = [conditions[i] for i in scored], max(len(pool) // 10, 1), []

    def fitted(measured: list[int]) -> tuple[ResponseModel, float]:
        model = ResponseModel.fit(
            adata[measured].copy(), perturbation_key=P, context_key=C, tables=tables,
            variance_layer="variance", progress=False,
        )  # fmt: skip
        predicted = model.predict(sorted({p for p, _ in asked}), sorted({c for _, c in asked}), new_contexts=True)
        row = {condition: i for i, condition in enumerate(zip(predicted.obs[P], predicted.obs[C], strict=True))}
        squared = np.square(predicted.X[[row[condition] for condition in asked]] - adata.X[scored])
        return model, float(np.sqrt(max(float((squared - adata.layers["variance"][scored]).mean()), 0)))

    def chosen(strategy: str, model: ResponseModel, measured: list[int]) -> list[int]:
        free = [i for i in pool.tolist() if i not in set(measured)]
        n = min(batch, len(free))
        if strategy == COVERING:
            return covering(rows, scored, measured, free, n)
        if strategy == FARTHEST:
            return farthest(rows, measured, free, n)
        if strategy == RANDOM:
            return rng.permutation(free)[:n].tolist()
        named = asked if strategy == NAMED else None
        plan = plan_next(model._fitted, [conditions[i] for i in free], n, {}, to_predict=named)
        return [free[i] for i in plan["candidate"]]

    start = fitted(pool[:batch].tolist())
    for strategy in strategies:
        measured, (model, error) = pool[:batch].tolist(), start
        rng = np.random.default_rng([seed, zlib.crc32(strategy.encode())])
        found.append({"strategy": strategy, "seed": seed, "measured": batch, "rmse": error})
        # random choice goes on, so that the errors of others can be looked up in it
        while len(measured) < (min(1, 1.6 * until) if strategy == RANDOM else until) * len(pool):
            measured = measured + chosen(strategy, model, measured)
            model, error = fitted(measured)
            found.append({"strategy": strategy, "seed": seed, "measured": len(measured), "rmse": error})
    return found


def at_a_quarter(table: pd.DataFrame, strategy: str, n: int) -> np.ndarray:
    """Error of each seed at a quarter of the conditions."""
    of_seeds = table[table["strategy"] == strategy].groupby("seed")
    return np.array([np.interp(n / 4, rows["measured"], rows["rmse"]) for _, rows in of_seeds])


def as_many(errors: pd.Series, error: float) -> float:
    """Return the number of measured conditions at which errors, by that number, are as low; NaN if they never are."""
    return float(np.interp(-error, -errors.cummin(), errors.index, right=np.nan))  # errors fall: turned round


def draw(table: pd.DataFrame, path: Path, n: int) -> None:
    """Draw error against the share of measured conditions."""
    with pl.style():
        figure = pl.new_figure(4.2, 2.8)
        ax = figure.subplots()
        most = table.loc[table["strategy"] != RANDOM, "measured"].max()
        for name in table["strategy"].unique():
            color = STRATEGIES[name]
            of_one = table[table["strategy"].eq(name) & table["measured"].le(most)].groupby("measured")["rmse"]
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
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--output", type=Path, help="every error, as csv")
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    strategies = [name for name in STRATEGIES if name in {*args.strategies, RANDOM}]
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
    found = Parallel(n_jobs=args.jobs, return_as="generator")(
        delayed(replay)(adata, tables, unit_rows(rows), seed, args.until, strategies) for seed in range(args.seeds)
    )
    table = pd.DataFrame()
    for of_seed in found:
        table = pd.concat([table, pd.DataFrame(of_seed)], ignore_index=True)
        if args.output is not None:
            table.to_csv(args.output, index=False)  # after each seed, so that a stop loses little
    middle = table.pivot_table(index="measured", columns="strategy", values="rmse", aggfunc="mean")[strategies]
    print(f"{adata.n_obs} conditions, {args.seeds} seeds")
    print(middle.round(4).to_string())
    print("at 25 % of the conditions, and the share of random ones with the same error:")
    for strategy in strategies:
        error = float(np.interp(adata.n_obs / 4, middle.index, middle[strategy]))
        paired = at_a_quarter(table, strategy, adata.n_obs) - at_a_quarter(table, RANDOM, adata.n_obs)
        share, difference = 100 * as_many(middle[RANDOM], error) / adata.n_obs, paired.std(ddof=1) / len(paired) ** 0.5
        print(f"  {strategy}: RMSE {error:.4f}, {share:.0f} %; minus random {paired.mean():+.4f} +- {difference:.4f}")
    if args.figure is not None:
        draw(table, args.figure, adata.n_obs)


if __name__ == "__main__":
    main()
