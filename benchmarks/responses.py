"""Targets nobody measured, on a table of real responses: the response model beside exact arithmetic.

Five folds of targets. *Unseen*: the targets of a fold are measured nowhere. *Seen elsewhere*: in one context they
are held out, in the others they are measured. Scores of a context: PDS (the true target's rank by L1 among the
fold's), mean absolute and root mean squared error, Pearson correlation of the change; means over folds and contexts.
All options are the defaults; the genes of the largest variance are kept.

The response model is shown with and without the network that reads the evidence of single genes, and beside gradient
boosting (scikit-learn) on the same evidence. Differences from the response model without the network are means over
targets, whose rows are not independent of each other, with 95 % intervals.

    python benchmarks/responses.py responses.h5ad --perturbation-key perturbation --context-key cell_line \\
        --control control --table go=emb_gene_go.parquet --table summaries=emb_gene_ncbi_summaries.parquet
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from joblib import Parallel, delayed
from sklearn.ensemble import HistGradientBoostingRegressor

from scvi_tahoe.evaluate import RidgeFit, SeenChanges, nearest_mean
from scvi_tahoe.response import ResponseModel
from scvi_tahoe.response._judged import change_scores
from scvi_tahoe.response._kernels import Conditions, TableKernel, unit_rows
from scvi_tahoe.response._members import Question
from scvi_tahoe.response._response_model import left_out_questions, predicted_changes

WITHOUT = "response model without the network"
SCORES = ("pearson", "pds", "mae", "rmse")
EXAMPLES = 133  # genes of each condition that gradient boosting is fitted to


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


def without_network(model: ResponseModel) -> ResponseModel:
    """Return the same response model without its network."""
    fitted = replace(model._fitted, head=None)
    return ResponseModel(
        fitted, model._measured, model._keys, criterion=model.criterion, table_names=model._table_names
    )


def boosted(model: ResponseModel, wanted: list[str], here: str, seed: int = 0) -> np.ndarray:
    """Changes of targets in a context, corrected by gradient boosting on the evidence that the network reads."""
    fitted, rng = replace(model._fitted, head=None), np.random.default_rng(seed)
    evidence = fitted.evidence
    asked = left_out_questions(fitted, np.zeros(fitted.responses.changes.shape, dtype=bool), seed)
    known = {key for key in asked.keys if asked.keys.count(key) > len(asked.keys) // 4}
    x, y, w = [], [], []
    for context in model.contexts:
        rows = [i for i, q in enumerate(asked.questions) if q.context == context and asked.keys[i] in known]
        genes = np.sort(rng.permutation(len(model.genes))[:EXAMPLES])
        found = evidence.of([asked.questions[i] for i in rows], asked.kernels_mG[rows], asked.base_mG[rows], genes)
        x.append(found.reshape(-1, found.shape[-1]))
        y.append(((asked.observed_mG - asked.base_mG)[np.ix_(rows, genes)] / evidence.scale_G[genes]).ravel())
        w.append(np.broadcast_to(np.square(evidence.scale_G[genes]), (len(rows), len(genes))).ravel())
    trees = HistGradientBoostingRegressor(max_iter=150, learning_rate=0.06, min_samples_leaf=200, random_state=seed)
    trees.fit(np.concatenate(x), np.concatenate(y), np.concatenate(w))
    questions = [Question(name, here) for name in wanted]
    conditions = Conditions.of(wanted, [here] * len(wanted), fitted.parser)
    kernels = fitted.regression.predict(fitted.kernels, conditions, fitted.conditions, fitted.device)
    kernels = (kernels @ fitted.regression.basis_QG).astype(np.float32)
    base, _ = predicted_changes(replace(fitted, own=None), questions, {}, kernels_nG=kernels)
    final, _ = predicted_changes(fitted, questions, fitted.responses.control_means, kernels_nG=kernels)
    for i, question in enumerate(questions):
        found = evidence.of([question], kernels[i : i + 1], base[i : i + 1], np.arange(len(model.genes)))[0]
        correction = trees.predict(found) * evidence.scale_G
        correction[final[i] != base[i]] = 0  # the perturbed gene itself
        final[i] += correction
    return final


def of_targets(predicted: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of every condition of a context, ``[n]`` each."""

    def centred(values: np.ndarray) -> np.ndarray:
        return unit_rows(values - values.mean(axis=1, keepdims=True))

    distance = np.stack([np.abs(truth - p).sum(axis=1) for p in predicted])
    return {
        "pearson": (centred(predicted) * centred(truth)).sum(axis=1),
        "pds": 1 - (distance < distance.diagonal()[:, None]).mean(axis=1),
        "mae": np.abs(predicted - truth).mean(axis=1),
        "rmse": np.square(predicted - truth).mean(axis=1),
    }


def differences(paired: list[pd.DataFrame]) -> pd.DataFrame:
    """Mean difference from the response model without the network, and half the width of its 95 % interval."""
    every = pd.concat(paired)
    # contexts of a target together; of the squared error the square root is shown
    by_target = every.groupby(["task", "method", "target"], sort=False)[list(SCORES)].mean()
    rows = {}
    for (task, method), of_method in by_target.groupby(level=["task", "method"], sort=False):
        if method == WITHOUT:
            continue
        before, after = by_target.loc[task, WITHOUT], of_method.loc[task, method]
        change = after - before.loc[after.index]
        scale = pd.Series({"rmse": 0.5 / np.sqrt(before["rmse"].mean())}).reindex(SCORES).fillna(1)
        mean, half = change.mean() * scale, 1.96 * change.std() / np.sqrt(len(change)) * scale
        rows[task, method] = {k: f"{mean[k]:+.4f} [{mean[k] - half[k]:+.4f}, {mean[k] + half[k]:+.4f}]" for k in SCORES}
    return pd.DataFrame(rows).T


def run_fold(
    fold: np.ndarray,
    adata: ad.AnnData,
    keys: dict,
    tables: dict,
    rows: np.ndarray,
    names: list[str],
    device: str,
    boosts: bool,
) -> tuple[list[dict], list[pd.DataFrame]]:
    """Scores of all methods, tasks and contexts of one fold of targets, and of every target."""
    label, context = (adata.obs[k].astype(str).to_numpy() for k in keys.values())
    held, scores, paired = np.isin(label, fold), [], []
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
            for name, model in ((WITHOUT, without_network(models[key])), ("response model", models[key])):
                found[name] = found["mean here"].copy()  # of a target that neither data nor tables know
                predicted = model.predict(perturbations=wanted[told].tolist(), contexts=[here])
                order = pd.Index(predicted.obs[keys["perturbation_key"]].astype(str)).get_indexer(wanted[told])
                found[name][told] = predicted.X[order]
            seconds = time.perf_counter() - started
            if boosts:
                found["gradient boosting on the evidence"] = found["mean here"].copy()
                found["gradient boosting on the evidence"][told] = boosted(models[key], wanted[told].tolist(), here)
            for name in (WITHOUT, "response model", *(["gradient boosting on the evidence"] if boosts else [])):
                of_each = of_targets(found[name].astype(float), adata.X[test].astype(float))
                paired.append(pd.DataFrame({"task": task, "method": name, "target": wanted, **of_each}))
            scores += [
                {"task": task, "method": m, **change_scores(np.asarray(x, float), adata.X[test], context[test])}
                for m, x in found.items()
            ]
            print(f"{task}, {here}: {seconds:.1f} s", flush=True)
    return scores, paired


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
    parser.add_argument("--only", type=int, nargs="+", help="folds, from 0 on; default: all")
    parser.add_argument("--boosting", action="store_true", help="also fit gradient boosting, which takes a minute each")
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
        delayed(run_fold)(fold, adata, keys, tables, rows, names, args.device, args.boosting)
        for k, fold in enumerate(folds)
        if args.only is None or k in args.only
    )
    scores = [score for of_fold, _ in found for score in of_fold]
    table = pd.DataFrame(scores).groupby(["task", "method"], sort=False).mean(numeric_only=True)
    print(table[list(SCORES)].round(4).to_string())
    print("\nDifference from the response model without the network, 95 % interval over targets")
    print(differences([of_one for _, paired in found for of_one in paired]).to_string())


if __name__ == "__main__":
    main()
