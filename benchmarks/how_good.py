"""How good is it, really? TahoeST, its start and exact arithmetic, paired over held-out conditions of several tasks.

* Papalexi, folds - targets that are seen in all replicates are held out of one, half of them at a time
* Norman, pairs - pairs of genes that were measured alone; three draws of what else is held out
* simulated, few-shot, new context and unseen - three screens whose true effects are known

All options are the defaults but for `--max-steps`. The twelve targets of the demo are not among the tasks. Scores of a
condition are those of its mean change: mean absolute error, Pearson correlation, and PDS (rank of the true condition by
L1 among those that are held out together). A difference has a 95 % interval by bootstrap over conditions.

    python benchmarks/how_good.py --max-steps 300 --seeds 1 --page docs/how_good.md
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from scvi_tahoe import TahoeST
from scvi_tahoe.data import LabelParser
from scvi_tahoe.datasets import norman_k562, papalexi_few_shot, simulate_screen
from scvi_tahoe.evaluate import RidgeFit, SeenChanges, nearest_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

SCORES = {"MAE": -1, "Pearson": 1, "PDS": 1}
START, MODEL = "TahoeST, start alone", "TahoeST"


class Task(NamedTuple):
    """A screen without some conditions, and these."""

    name: str
    train: AnnData
    keys: dict
    held_out: list[tuple[str, str]]  # context, perturbation
    truth: dict[tuple[str, str], np.ndarray]  # change of the mean, or the true effect of a simulation
    observed: AnnData  # their cells
    table: pd.DataFrame | None = None


def change_of(
    adata: AnnData, label: np.ndarray, context: np.ndarray, control: str
) -> dict[tuple[str, str], np.ndarray]:
    """Change of the mean of every condition."""
    x = adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)
    pairs = sorted(set(zip(context.tolist(), label.tolist(), strict=True)))
    mean = {(c, p): x[(context == c) & (label == p)].mean(0) for c, p in pairs}
    return {(c, p): m - mean[c, control] for (c, p), m in mean.items() if p != control}


def tasks() -> Iterator[Task]:
    """All tasks, one after the other."""
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
            yield Task("Papalexi, folds", adata[~held].copy(), setup, wanted, truth, adata[held])
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
        held = np.isin(label, held_out)
        yield Task("Norman, pairs", adata[~held].copy(), setup, wanted, truth, adata[held])
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
            yield Task(name, screen[~held].copy(), setup | embedded, wanted, truth, screen[held], table)


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
        members = {"mean of the seen": seen.mean(c), "change elsewhere": seen.transfer(p, c),
                   "mean plus deviation": seen.deviation(p, c)}  # fmt: skip
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


def of_model(task: Task, *, seed: int, max_steps: int) -> dict[str, np.ndarray]:
    """Changes of the held-out conditions by the start and by the trained model."""
    TahoeST.setup_anndata(task.train, **task.keys)
    model, key = TahoeST(task.train, seed=seed), task.keys.get("context_key")
    model.train(max_steps, seed=seed, progress=False)
    asked = {"perturbations": sorted({p for _, p in task.held_out}), "n_cells": 200, "progress": False}
    if key is not None:
        asked["contexts"] = sorted({c for c, _ in task.held_out})
    result = {}
    for name, output in {START: "prior", MODEL: "expression"}.items():
        cells = model.predict(output=output, control_layer=True, **asked)
        label = cells.obs[task.keys["perturbation_key"]].astype(str).to_numpy()
        context = np.full(len(label), "all") if key is None else cells.obs[key].astype(str).to_numpy()
        obs, x = task.train.obs, task.train.X
        controls = (obs[task.keys["perturbation_key"]].astype(str) == task.keys["control"]).to_numpy()
        where = np.full(len(controls), "all") if key is None else obs[key].astype(str).to_numpy()
        start = {c: np.asarray(x[controls & (where == c)].mean(0)).ravel() for c in {c for c, _ in task.held_out}}
        rows = [cells.X[(label == p) & (context == c)].mean(0) - start[c] for c, p in task.held_out]
        result[name] = np.stack(rows)
    return result


def scores_of(task: Task, predicted: dict[str, np.ndarray]) -> pd.DataFrame:
    """One row for each method and held-out condition."""
    truth = np.stack([task.truth[condition] for condition in task.held_out])
    context, rows = np.array([c for c, _ in task.held_out]), []
    for method, change in predicted.items():
        for i, condition in enumerate(task.held_out):
            distance = np.abs(truth[context == context[i]] - change[i]).sum(1)
            own = np.abs(truth[i] - change[i]).sum()
            rows.append({
                "task": task.name, "method": method, "condition": condition, "PDS": 1 - (distance < own).mean(),
                "MAE": np.abs(truth[i] - change[i]).mean(), "Pearson": np.corrcoef(truth[i], change[i])[0, 1],
            })  # fmt: skip
    return pd.DataFrame(rows)


def interval(difference: np.ndarray) -> tuple[float, float]:
    """Bootstrap a 95 % interval of the mean over conditions."""
    draws = np.random.default_rng(0).integers(len(difference), size=(2000, len(difference)))
    low, high = np.quantile(difference[draws].mean(1), [0.025, 0.975])
    return float(low), float(high)


def sentences(scores: pd.DataFrame) -> Iterator[str]:
    """For each task and score: the model against the best arithmetic, and against its own start."""
    for task, of_task in scores.groupby("task", sort=False):
        for score, sign in SCORES.items():
            wide = of_task.pivot_table(index=["fold", "condition"], columns="method", values=score)
            rules = wide.columns.difference([START, MODEL])
            best = max(rules, key=lambda rule: sign * wide[rule].mean())
            for mine, other in ((MODEL, best), (MODEL, START)):
                low, high = interval(sign * (wide[mine] - wide[other]).to_numpy())
                verdict = "ahead of" if low > 0 else "behind" if high < 0 else "not told apart from"
                yield f"| {task} | {score} | {verdict} | {other} | {low:+.4f} to {high:+.4f} |"


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    parts = []
    for fold, task in enumerate(tasks()):
        parts.append(scores_of(task, arithmetic(task)).assign(fold=fold))
        for seed in range(args.seeds):
            parts.append(scores_of(task, of_model(task, seed=seed, max_steps=args.max_steps)).assign(fold=fold))
        print(f"{fold}: {task.name}", flush=True)
    scores = pd.concat(parts)
    means = scores.groupby(["task", "method"], sort=False)[list(SCORES)].mean().round(4)
    n = scores.groupby("task", sort=False).apply(lambda s: len(s[["fold", "condition"]].drop_duplicates()))
    lines = [
        "# How good is it, really?",
        "",
        f"Made by `python benchmarks/how_good.py --max-steps {args.max_steps} --seeds {args.seeds}`, whose head says",
        "what the tasks are. All rules are exact arithmetic on the same training cells. The *start* is the response",
        "model that predictions start from, before the network. Higher is better, except for MAE.",
        "",
        "| task | method | MAE | Pearson | PDS |", "|---|---|---|---|---|",
        *(f"| {task} ({n[task]} conditions) | {method} | {row.MAE:.4f} | {row.Pearson:.3f} | {row.PDS:.3f} |"
          for (task, method), row in means.iterrows()),
        "",
        "## What follows from it",
        "",
        "Differences are in favour of TahoeST, with 95 % intervals over conditions. *Ahead of* stands only where the",
        "interval excludes zero.",
        "",
        "| task | score | TahoeST is | | difference |", "|---|---|---|---|---|",
        *sentences(scores),
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    print(text)
    if args.page:
        args.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
