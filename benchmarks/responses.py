"""Targets nobody measured, on a table of real responses: the response model beside exact arithmetic.

Five folds of targets. *Unseen*: the targets of a fold are measured nowhere. *Seen elsewhere*: in one context they
are held out, in the others they are measured. Scores of a context: PDS (the true target's rank by L1 among the
fold's), mean absolute and root mean squared error, Pearson correlation of the change; means over folds and contexts.
All options are the defaults; the genes of the largest variance are kept.

    python benchmarks/responses.py responses.h5ad --perturbation-key perturbation --context-key cell_line \\
        --control control --table go=emb_gene_go.parquet --table summaries=emb_gene_ncbi_summaries.parquet
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from joblib import Parallel, delayed

from scvi_tahoe.evaluate import RidgeFit, SeenChanges, nearest_mean
from scvi_tahoe.response import ResponseModel
from scvi_tahoe.response._kernels import TableKernel, unit_rows
from scvi_tahoe.response._response_model import change_scores


def fused(tables: dict[str, pd.DataFrame], names: list[str]) -> np.ndarray:
    """Standardised rows of unit length of all tables side by side, zeros where a table lacks a name."""
    return np.hstack([unit_rows(TableKernel.of(table, names).of_components(names)[0]) for table in tables.values()])


def simple(train: ad.AnnData, test: ad.AnnData, keys: dict, rows: np.ndarray, names: list[str]) -> dict:
    """Changes of test conditions as exact arithmetic has them."""
    position = {name: i for i, name in enumerate(names)}
    labels, contexts = (train.obs[keys[k]].astype(str).to_numpy() for k in ("perturbation_key", "context_key"))
    seen = SeenChanges(labels, contexts, train.X)
    found: dict[str, list] = {"mean here": [], "change elsewhere": [], "mean plus deviation": []}
    asked = list(zip(test.obs[keys["perturbation_key"]].astype(str), test.obs[keys["context_key"]].astype(str)))
    for name, context in asked:
        mean = seen.mean(context)
        found["mean here"].append(mean)
        found["change elsewhere"].append(seen.transfer(name, context))
        found["mean plus deviation"].append(seen.deviation(name, context))
    result = {k: np.stack(v) for k, v in found.items() if v[0] is not None}
    (context,) = {c for _, c in asked}
    here = contexts == context
    x, y = rows[[position[name] for name in labels[here]]], train.X[here]
    new = rows[[position[name] for name, _ in asked]]
    result["ridge on the tables"] = RidgeFit.of(x, y).predict(new)
    unit = [v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (new, x)]
    result["five nearest"] = nearest_mean(unit[0] @ unit[1].T, y)
    return result


def run_fold(
    fold: np.ndarray, adata: ad.AnnData, keys: dict, tables: dict, rows: np.ndarray, names: list[str], device: str
) -> list[dict]:
    """Scores of all methods, tasks and contexts of one fold of targets."""
    label, context = (adata.obs[k].astype(str).to_numpy() for k in keys.values())
    held, scores = np.isin(label, fold), []
    models: dict[str, ResponseModel] = {}
    for task in ("unseen", "seen elsewhere"):
        for here in sorted(set(context)):
            test = held & (context == here)
            hidden = held if task == "unseen" else test
            train, started = adata[~hidden].copy(), time.perf_counter()
            key = task if task == "unseen" else here
            if key not in models:
                models[key] = ResponseModel.fit(train, **keys, tables=tables, device=device, progress=False)
            wanted, known = label[test], set(models[key].perturbations).union(*(t.index for t in tables.values()))
            found, told = simple(train, adata[test], keys, rows, names), np.isin(wanted, list(known))
            changes = found["mean here"].copy()  # of a target that neither data nor tables know
            predicted = models[key].predict(perturbations=wanted[told].tolist(), contexts=[here])
            order = pd.Index(predicted.obs[keys["perturbation_key"]].astype(str)).get_indexer(wanted[told])
            changes[told] = predicted.X[order]
            found["response model"] = changes
            seconds = time.perf_counter() - started
            scores += [
                {"task": task, "method": m, **change_scores(np.asarray(x, float), adata.X[test], context[test])}
                for m, x in found.items()
            ]
            print(f"{task}, {here}: {seconds:.1f} s", flush=True)
    return scores


def main() -> None:
    """Print one table: tasks x methods."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("responses", type=Path)
    parser.add_argument("--perturbation-key", required=True)
    parser.add_argument("--context-key", required=True)
    parser.add_argument("--control")
    parser.add_argument("--table", action="append", default=[], help="NAME=FILE.parquet, as often as there are tables")
    parser.add_argument("--genes", type=int, default=3000)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="folds at the same time")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    keys = {"perturbation_key": args.perturbation_key, "context_key": args.context_key}
    adata = ad.read_h5ad(args.responses)
    adata = adata[adata.obs[args.perturbation_key].astype(str) != (args.control or "")].copy()
    adata.X = np.asarray(adata.X.toarray() if sp.issparse(adata.X) else adata.X, dtype=np.float32)
    adata = adata[:, np.sort(np.argsort(-adata.X.var(0))[: args.genes])].copy()
    tables = {name: pd.read_parquet(path) for name, _, path in (text.partition("=") for text in args.table)}
    names = sorted(set(adata.obs[args.perturbation_key].astype(str)))
    rows = fused(tables, names)
    folds = np.array_split(np.random.default_rng(0).permutation(names), args.folds)
    found = Parallel(n_jobs=args.jobs)(
        delayed(run_fold)(fold, adata, keys, tables, rows, names, args.device) for fold in folds
    )
    scores = [score for of_fold in found for score in of_fold]
    table = pd.DataFrame(scores).groupby(["task", "method"], sort=False).mean(numeric_only=True)
    print(table[["pearson", "pds", "mae", "rmse"]].round(4).to_string())


if __name__ == "__main__":
    main()
