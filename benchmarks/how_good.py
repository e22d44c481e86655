"""How good is it, really? TahoeST, its start and exact arithmetic, paired over held-out conditions of several tasks.

* Papalexi, folds - targets that are seen in all replicates are held out of one, half of them at a time
* Norman, pairs - pairs of genes that were measured alone; three draws of what else is held out
* simulated, few-shot, new context and unseen - three screens whose true effects are known

All options are the defaults but for `--max-steps`. The twelve targets of the demo are not among the tasks. Scores of a
condition are those of its mean change: mean absolute error, Pearson correlation, and PDS (rank of the true condition by
L1 among those that are held out together). DES is that of `evaluate`, which needs cell-eval and observed cells; it is
computed for the folds, over conditions with two differentially expressed genes or more. A difference has a 95 %
interval by bootstrap over conditions and over seeds of the training. A condition that is held out several times counts
once.

    python benchmarks/how_good.py --max-steps 300 --seeds 3 --jobs 2 --page docs/how_good.md

`--folder` keeps the scores of each task and seed, so that a run that was stopped goes on, and the screens (`--only`)
may run on several machines. A training takes about 20 s of one core, all of them 20 minutes.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed

from scvi_tahoe import TahoeST
from scvi_tahoe.data import LabelParser
from scvi_tahoe.datasets import norman_k562, papalexi_few_shot, simulate_screen
from scvi_tahoe.evaluate import (
    EvaluationReference,
    RidgeFit,
    SeenChanges,
    baseline_results,
    evaluate,
    nearest_mean,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

SCORES = {"MAE": -1, "Pearson": 1, "PDS": 1, "DES": 1}
FEWEST = 5  # conditions for an interval
START, MODEL = "TahoeST, start alone", "TahoeST"
#: baselines of `evaluate` that are the same arithmetic
CELLS_OF = {"controls": "control", "mean of the seen": "train_mean", "change elsewhere": "context_transfer",
            "mean plus deviation": "deviation"}  # fmt: skip


class Task(NamedTuple):
    """A screen without some conditions, and these."""

    name: str
    train: AnnData
    keys: dict
    held_out: list[tuple[str, str]]  # context, perturbation
    truth: dict[tuple[str, str], np.ndarray]  # change of the mean, or the true effect of a simulation
    table: pd.DataFrame | None = None
    screen: int = 0  # a condition of the same screen is the same condition
    observed: AnnData | None = None  # held-out cells and the controls of their context, for DES


def change_of(
    adata: AnnData, label: np.ndarray, context: np.ndarray, control: str
) -> dict[tuple[str, str], np.ndarray]:
    """Change of the mean of every condition."""
    x = adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)
    pairs = sorted(set(zip(context.tolist(), label.tolist(), strict=True)))
    mean = {(c, p): x[(context == c) & (label == p)].mean(0) for c, p in pairs}
    return {(c, p): m - mean[c, control] for (c, p), m in mean.items() if p != control}


def papalexi() -> Iterator[Task]:
    """Six folds: three replicates, half of the seen targets each."""
    few_shot = papalexi_few_shot()
    adata, keys = few_shot.train, (few_shot.perturbation_key, few_shot.context_key)
    label, context = (adata.obs[key].astype(str).to_numpy() for key in keys)
    truth = change_of(adata, label, context, few_shot.control)
    here = (label != few_shot.control) & (context == few_shot.context)
    seen = [p for p in sorted(set(label[here])) if (here & (label == p)).sum() >= 20]
    setup = {"perturbation_key": keys[0], "control": few_shot.control, "context_key": keys[1]}
    for replicate in sorted(set(context)):
        order = np.random.default_rng(100).permutation(seen)
        for half in (order[::2], order[1::2]):
            held = (context == replicate) & np.isin(label, half)
            wanted = [(replicate, str(p)) for p in half]
            scored = held | ((context == replicate) & (label == few_shot.control))
            observed = adata[scored].copy()
            yield Task("Papalexi, folds", adata[~held].copy(), setup, wanted, truth, observed=observed)


def norman() -> Iterator[Task]:
    """Three draws of pairs."""
    adata = norman_k562()
    label = adata.obs["perturbation"].astype(str).to_numpy()
    truth = change_of(adata, label, np.full(len(label), "all"), "control")
    pairs = sorted(p for p in set(label) if "+" in p)
    scored = [p for p in pairs if set(p.split("+")) <= set(label)]
    for draw in range(3):
        others = [p for p in pairs if p not in scored]
        held_out = [*scored, *np.random.default_rng(draw).permutation(others)[:3]]
        setup = {"perturbation_key": "perturbation", "control": "control", "combination_separator": "+"}
        wanted = [("all", p) for p in scored]
        yield Task("Norman, pairs", adata[~np.isin(label, held_out)].copy(), setup, wanted, truth)


def simulated() -> Iterator[Task]:
    """Three tasks of three screens."""
    for seed in range(3):
        screen = simulate_screen(3, 36, seed=seed)
        label, context = (screen.obs[key].astype(str).to_numpy() for key in ("perturbation", "context"))
        truth = {(c, p): effect for c, effects in screen.uns["true_delta"].items() for p, effect in
                 zip(effects.index, effects.to_numpy(), strict=True)}  # fmt: skip
        order = np.random.default_rng(seed).permutation(screen.uns["perturbation_embedding"].index)
        target = context == "context_3"
        setup = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}
        for name, held in {
            "simulated, few-shot": target & np.isin(label, order[::2]),
            "simulated, new context": target & (label != "control"),
            "simulated, unseen": np.isin(label, order[:6]),
        }.items():
            wanted = sorted(set(zip(context[held].tolist(), label[held].tolist(), strict=True)))
            embedded = {"perturbation_embedding_key": "perturbation_embedding"} if name.endswith("unseen") else {}
            table = screen.uns["perturbation_embedding"] if embedded else None
            yield Task(name, screen[~held].copy(), setup | embedded, wanted, truth, table, screen=seed)


#: where tasks come from, and how many there are
SCREENS = {"papalexi": (papalexi, 6), "norman": (norman, 3), "simulated": (simulated, 9)}


def arithmetic(task: Task) -> dict[str, np.ndarray]:
    """Changes of the held-out conditions as exact arithmetic has them, ``[conditions, G]`` each."""
    obs, keys = task.train.obs, task.keys
    label = obs[keys["perturbation_key"]].astype(str).to_numpy()
    key = keys.get("context_key")
    context = np.full(len(label), "all") if key is None else obs[key].astype(str).to_numpy()
    changes = change_of(task.train, label, context, keys["control"])
    contexts, labels = (np.array(side) for side in zip(*changes, strict=True))
    seen = SeenChanges(labels, contexts, np.stack(list(changes.values())))
    parser = LabelParser(control=keys["control"], combination_separator=keys.get("combination_separator"))
    found: dict[str, list] = {}
    for c, p in task.held_out:
        parts = [str(part) for part in parser.components(p)]
        members = {"controls": np.zeros(task.train.n_vars), "mean of the seen": seen.mean(c),
                   "change elsewhere": seen.transfer(p, c), "mean plus deviation": seen.deviation(p, c)}  # fmt: skip
        if len(parts) > 1:
            members["sum of single changes"] = np.sum([changes[c, part] for part in parts], axis=0)
        if task.table is not None:
            names = [n for n in seen.names_seen(c) if n in task.table.index]
            rows, own = task.table.loc[names].to_numpy(), task.table.loc[[p]].to_numpy()
            y = seen.of_perturbations(c, names)
            unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (own, rows)]
            members["ridge on the table"] = RidgeFit.of(rows, y).predict(own)[0]
            members["five nearest"] = nearest_mean(unit[0] @ unit[1].T, y)[0]
        for name, change in members.items():
            found.setdefault(name, []).append(change)
    return {name: np.stack(rows) for name, rows in found.items() if all(row is not None for row in rows)}


def of_model(task: Task, *, seed: int, max_steps: int) -> tuple[dict[str, np.ndarray], dict[str, AnnData]]:
    """Changes and cells of the held-out conditions by the start and by the trained model."""
    TahoeST.setup_anndata(task.train, **task.keys)
    model, key = TahoeST(task.train, seed=seed), task.keys.get("context_key")
    model.train(max_steps, seed=seed, progress=False)
    asked = {"perturbations": sorted({p for _, p in task.held_out}), "n_cells": 200, "progress": False}
    if key is not None:
        asked["contexts"] = sorted({c for c, _ in task.held_out})
    obs, x = task.train.obs, task.train.X
    controls = (obs[task.keys["perturbation_key"]].astype(str) == task.keys["control"]).to_numpy()
    where = np.full(len(controls), "all") if key is None else obs[key].astype(str).to_numpy()
    start = {c: np.asarray(x[controls & (where == c)].mean(0)).ravel() for c in {c for c, _ in task.held_out}}
    changes, predictions = {}, {}
    for name, output in {START: "prior", MODEL: "expression"}.items():
        cells = predictions[name] = model.predict(output=output, **asked)
        label = cells.obs[task.keys["perturbation_key"]].astype(str).to_numpy()
        context = np.full(len(label), "all") if key is None else cells.obs[key].astype(str).to_numpy()
        rows = [cells.X[(label == p) & (context == c)].mean(0) - start[c] for c, p in task.held_out]
        changes[name] = np.stack(rows)
    return changes, predictions


def scores_of(task: Task, predicted: dict[str, np.ndarray]) -> pd.DataFrame:
    """One row for each method and held-out condition."""
    truth = np.stack([task.truth[condition] for condition in task.held_out])
    context, rows = np.array([c for c, _ in task.held_out]), []
    for method, change in predicted.items():
        for i, (where, label) in enumerate(task.held_out):
            distance = np.abs(truth[context == where] - change[i]).sum(1)
            own = np.abs(truth[i] - change[i]).sum()
            # without any change there is no correlation
            correlation = np.corrcoef(truth[i], change[i])[0, 1] if change[i].any() else np.nan
            rows.append({
                "task": task.name, "method": method, "condition": f"{task.screen}: {label} in {where}",
                "MAE": np.abs(truth[i] - change[i]).mean(), "Pearson": correlation,
                "PDS": 1 - (distance < own).mean(),
            })  # fmt: skip
    return pd.DataFrame(rows)


def overlap_of_genes(task: Task, predictions: dict[str, AnnData] | None) -> dict[str, np.ndarray]:
    """DES of predicted cells, or of the baselines if there are none, in the order of the held-out conditions."""
    reference = EvaluationReference.from_adata(task.observed, baseline_from=task.train, ceiling=False, **task.keys)
    if predictions is None:
        own = baseline_results(reference, list(CELLS_OF.values()))
        results = {name: own[baseline] for name, baseline in CELLS_OF.items()}
    else:
        results = {
            name: evaluate(cells, reference, baseline=None, baselines=False) for name, cells in predictions.items()
        }
    found = {}
    for name, result in results.items():
        table = result.per_perturbation.loc[task.held_out]
        found[name] = table["overlap_at_N"].where(table["n_de_observed"] >= 2).to_numpy()
    return found


def scored(screen: str, number: int, paths: dict[int | None, Path], max_steps: int) -> None:
    """Score exact arithmetic (None) and a training with each seed on a task, and write a table for each."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    task = next(islice(SCREENS[screen][0](), number, None))
    for seed, path in paths.items():
        changes, predictions = arithmetic(task), None
        if seed is not None:
            changes, predictions = of_model(task, seed=seed, max_steps=max_steps)
        table = scores_of(task, changes).assign(seed=-1 if seed is None else seed, DES=np.nan)
        if task.observed is not None:
            for method, values in overlap_of_genes(task, predictions).items():
                table.loc[table["method"] == method, "DES"] = values
        partial = path.with_suffix(".partial")
        table.to_csv(partial, index=False)
        partial.replace(path)
        print(path.stem, flush=True)


def differences(of_task: pd.DataFrame, score: str, other: str) -> np.ndarray:
    """Difference of the model to another method in favour of the model, ``[conditions, seeds]``."""
    wide = {}
    for method in (MODEL, other):
        rows = of_task[of_task["method"] == method]
        wide[method] = rows.pivot_table(index="condition", columns="seed", values=score, dropna=False)
    mine, theirs = wide[MODEL].align(wide[other], axis=0)
    # exact arithmetic knows no seed
    beside = np.broadcast_to(theirs.to_numpy(), mine.shape)
    return (SCORES[score] * (mine - beside)).dropna().to_numpy()


def interval(difference: np.ndarray) -> tuple[float, float]:
    """Bootstrap a 95 % interval of the mean, over conditions and over seeds."""
    (n, m), rng = difference.shape, np.random.default_rng(0)
    rows, columns = rng.integers(n, size=(2000, n, 1)), rng.integers(m, size=(2000, 1, m))
    low, high = np.quantile(difference[rows, columns].mean(axis=(1, 2)), [0.025, 0.975])
    return float(low), float(high)


def means_of(of_task: pd.DataFrame) -> pd.DataFrame:
    """Means of each method over conditions and seeds."""
    return of_task.groupby("method", sort=False)[list(SCORES)].mean()


def comparisons(scores: pd.DataFrame) -> pd.DataFrame:
    """For each task and score: the model against the best rule of exact arithmetic, and against its own start."""
    rows = []
    for task, of_task in scores.groupby("task", sort=False):
        means = means_of(of_task)
        rules = means.index.difference([START, MODEL], sort=False)
        for score, sign in SCORES.items():
            if means.loc[rules, score].isna().all():
                continue
            for kind, other in (("rule", str((sign * means.loc[rules, score]).idxmax())), ("start", START)):
                difference = differences(of_task, score, other)
                low, high = interval(difference)
                verdict = "better than" if low > 0 else "worse than" if high < 0 else "not distinguishable from"
                if not np.abs(difference).max() > 1e-6:
                    verdict = "equal to"
                elif len(difference) < FEWEST:
                    verdict = "not compared (too few conditions) with"
                rows.append({"task": task, "score": score, "verdict": verdict, "other": other, "kind": kind,
                             "difference": difference.mean(), "low": low, "high": high})  # fmt: skip
    return pd.DataFrame(rows)


def listed(names: list[str]) -> str:
    """Join names as in a sentence."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def sentences(table: pd.DataFrame) -> Iterator[str]:
    """What follows for each task, in words."""
    for task, of_task in table.groupby("task", sort=False):
        said = []
        for kind, name in (("rule", "the best rule"), ("start", "its own start")):
            side = of_task[of_task["kind"] == kind]
            found = [(v, listed([*side.loc[side["verdict"] == v, "score"]])) for v in side["verdict"].unique()]
            parts = [f"{verdict} {'it' if i else name} in {which}" for i, (verdict, which) in enumerate(found)]
            said.append(", and ".join(parts))
        yield f"* **{task}**: TahoeST is {said[0]}. After training, it is {said[1]}."


def page(scores: pd.DataFrame, command: str) -> str:
    """Text of the page."""
    rows, n_seeds = [], scores.loc[scores["seed"] >= 0, "seed"].nunique()
    for task, of_task in scores.groupby("task", sort=False):
        n = of_task["condition"].nunique()
        for method, row in means_of(of_task).iterrows():
            digits = {"MAE": 4, "Pearson": 3, "PDS": 3, "DES": 3}
            cells = ["" if np.isnan(row[s]) else f"{row[s]:.{d}f}" for s, d in digits.items()]
            rows.append(f"| {task} ({n}) | {method} | {' | '.join(cells)} |")
    table = comparisons(scores)
    compared = (
        f"| {r.task} | {r.score} | {r.verdict} | {r.other} | {r.difference:+.4f} | {r.low:+.4f} to {r.high:+.4f} |"
        for r in table.itertuples()
    )
    lines = [
        "# How good is it, really?",
        "",
        f"`{command}` writes this page; the first lines of that file",
        f"describe the tasks. Every model was trained with {n_seeds} seeds. The simple rules are exact arithmetic on",
        "the same training cells. The *start* is the response model that predictions start from, without the network.",
        "Higher scores are better, except for MAE. The numbers in brackets count the held-out conditions.",
        "",
        "## Summary",
        "",
        *sentences(table),
        "",
        "A method is called *better* or *worse* only where the 95 % interval over conditions and seeds excludes zero,",
        "and *equal* where every condition has the same score.",
        "",
        "## Scores",
        "",
        "| task | method | MAE | Pearson | PDS | DES |", "|---|---|---|---|---|---|",
        *rows,
        "",
        "## Differences",
        "",
        "Each row compares TahoeST with the best rule or with its own start. A positive difference is in favour of",
        "TahoeST.",
        "",
        "| task | score | TahoeST is | compared with | difference | 95 % interval |", "|---|---|---|---|---|---|",
        *compared,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="processes at the same time")
    parser.add_argument("--only", choices=SCREENS, help="tasks of one screen")
    parser.add_argument("--folder", type=Path, help="where scores are kept; default: a temporary one")
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [
            (screen, i, {s: folder / f"{screen}_{i}_{s}.csv" for s in (None, *range(args.seeds))})
            for screen, (_, n) in SCREENS.items() if args.only in (None, screen) for i in range(n)
        ]  # fmt: skip
        left = ((s, i, {seed: path for seed, path in paths.items() if not path.exists()}) for s, i, paths in jobs)
        Parallel(args.jobs)(delayed(scored)(*job, args.max_steps) for job in left if job[-1])
        scores = pd.concat([pd.read_csv(path) for *_, paths in jobs for path in paths.values()])
    text = page(scores, f"python benchmarks/how_good.py --max-steps {args.max_steps} --seeds {args.seeds}")
    print(text)
    if args.page:
        args.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
