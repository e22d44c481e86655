"""Does the network help? It and the response model that it starts from, paired over held-out conditions of tasks.

* Papalexi, folds, and Norman, pairs - as in how_good.py
* Norman, singles - the genes that are in pairs, a third of them at a time, predicted from their pairs and others
* simulated, few-shot - 8, 30 or 60 % of the perturbations of one context of four are seen there; effects are plain, or
  30 % of their variance is an interaction with the context, or passed on by other genes (`simulate_screen`)
* simulated, no effects - the same with 30 %, and nothing to find

Scores of a condition's mean change: mean absolute error, Pearson correlation, PDS; of its cells: energy distance to the
observed ones in their 30 first principal components, and correlation of their gene-gene correlations with the observed
ones, of genes that a tenth of the cells express. *Explained* is the share of the squared difference between a true
change and what true effects of the context's other perturbations and of the perturbation elsewhere add up to that a
prediction takes away. The network is trained by default, and, to see what the default leaves out, with its correction
kept in full at a rate of 1e-3.

    python benchmarks/does_the_network_help.py --jobs 16 --page docs/does_the_network_help.md
"""

from __future__ import annotations

import argparse
import logging
import warnings
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from how_good import SCREENS, Task, change_of, interval

from scvi_tahoe import TahoeST
from scvi_tahoe.data import Condition
from scvi_tahoe.datasets import norman_k562, simulate_screen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

START, NETWORK, FULL = "response model", "network", "network, kept in full, lr 1e-3"
SHIFTED, CONTROLS = "mean-shifted controls", "controls"
SIGNS = {"MAE": -1, "Pearson": 1, "PDS": 1, "explained": 1, "energy": -1, "co-expression": 1}
EFFECTS = {"": {}, ", interaction": {"interaction": 0.3}, ", non-linear": {"nonlinearity": 0.3}}
KEYS = {"perturbation_key": "perturbation", "control": "control"}


def norman_singles() -> Iterator[Task]:
    """Genes that were measured in pairs, without their single perturbation."""
    adata = norman_k562()
    label = adata.obs["perturbation"].astype(str).to_numpy()
    truth = change_of(adata, label, np.full(len(label), "all"), "control")
    paired = {part for p in set(label) if "+" in p for part in p.split("+")}
    order = np.random.default_rng(0).permutation(sorted(paired & set(label)))
    for k in range(3):
        held = np.isin(label, order[k::3])
        setup, wanted = {**KEYS, "combination_separator": "+"}, [("all", str(p)) for p in order[k::3]]
        yield Task("Norman, singles", adata[~held].copy(), setup, wanted, truth, observed=adata[held])


def few_shot(name: str, share: float, seed: int, **options: float) -> Task:
    """One context of four, of which so many perturbations are seen."""
    screen = simulate_screen(4, 60, n_genes=150, n_cells=30, seed=seed, **options)
    truth = {(c, p): effect for c, effects in screen.uns["true_delta"].items() for p, effect in
             zip(effects.index, effects.to_numpy(), strict=True)}  # fmt: skip
    label, context = (screen.obs[key].astype(str).to_numpy() for key in ("perturbation", "context"))
    order = np.random.default_rng(seed).permutation(sorted(set(label) - {"control"}))
    held = (context == "context_4") & np.isin(label, order[round(share * len(order)) :])
    wanted = sorted({("context_4", p) for p in label[held].tolist()})
    setup = {**KEYS, "context_key": "context"}
    return Task(name, screen[~held].copy(), setup, wanted, truth, observed=screen[held])


def all_tasks(n_screens: int) -> list[Task]:
    """All tasks, those of a name one after the other."""
    real = [
        task if task.observed is not None else task._replace(observed=norman_k562())
        for name in ("papalexi", "norman")
        for task in SCREENS[name][0]()
    ]
    made = [
        few_shot(f"simulated, few-shot {share:.0%}{name}", share, seed, **options)
        for (name, options), share, seed in product(EFFECTS.items(), (0.08, 0.3, 0.6), range(n_screens))
    ]
    none = [few_shot("simulated, no effects", 0.3, seed, effect_size=0.0) for seed in range(2 * n_screens)]
    return [*real, *norman_singles(), *made, *none]


def energy(a: np.ndarray, b: np.ndarray, k: int = 30) -> float:
    """Energy distance in the first principal components of the observed cells; unbiased, so it may be negative."""
    centre = b.mean(0)
    rotation = np.linalg.svd(b - centre, full_matrices=False)[2][:k].T
    x, y = (torch.from_numpy((cells - centre) @ rotation) for cells in (a, b))
    within = [torch.cdist(z, z).sum() / (len(z) * (len(z) - 1)) for z in (x, y)]
    return float(2 * torch.cdist(x, y).mean() - sum(within))


def co_expression(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation over pairs of genes of the correlations of cells."""
    use = (a.std(0) > 0) & (b.std(0) > 0) & ((b > 0).mean(0) > 0.1)
    upper = np.triu_indices(use.sum(), 1)
    return float(np.corrcoef(*(np.corrcoef(cells[:, use].T)[upper] for cells in (a, b)))[0, 1])


def labels(adata: AnnData, keys: dict) -> tuple[np.ndarray, np.ndarray]:
    """Perturbation and context of each cell; a single context is called "all"."""
    label, key = adata.obs[keys["perturbation_key"]].astype(str).to_numpy(), keys.get("context_key")
    return label, np.full(len(label), "all") if key is None else adata.obs[key].astype(str).to_numpy()


def populations(
    task: Task, *, seed: int, max_steps: int | None, full: bool
) -> dict[str, dict[tuple[str, str], np.ndarray]]:
    """Predicted cells of the held-out conditions by each method, as many as were observed."""
    key, (label, context) = task.keys.get("context_key"), labels(task.observed, task.keys)
    sizes = {Condition(c, p): int(((label == p) & (context == c)).sum()) for c, p in task.held_out}
    found: dict[str, dict[tuple[str, str], np.ndarray]] = {}
    trainings = {NETWORK: {}} | ({FULL: {"shrink_correction": False, "lr": 1e-3, "patience": 1000}} if full else {})
    for method, options in trainings.items():
        TahoeST.setup_anndata(task.train, **task.keys)
        model = TahoeST(task.train, seed=seed)
        model.train(max_steps, seed=seed, progress=False, **options)
        asked = {"perturbations": sorted({p for _, p in task.held_out}), "progress": False, "control_layer": True}
        if key is not None:
            asked["contexts"] = sorted({c for c, _ in task.held_out})
        for name, output in {START: "prior", method: "expression"}.items():
            # a single context has no name
            cells = model.predict(output=output, n_cells=sizes if key else max(sizes.values()), **asked)
            of_label, of_context = labels(cells, task.keys)
            for c, p in task.held_out:
                rows = np.flatnonzero((of_label == p) & (of_context == c))[: sizes[c, p]]
                found.setdefault(name, {})[c, p] = made = cells.X[rows]
                found.setdefault(CONTROLS, {})[c, p] = controls = cells.layers["control"][rows]
                found.setdefault(SHIFTED, {}).setdefault((c, p), controls + (made.mean(0) - controls.mean(0)))
        print(f"{task.name}: {method}: {model.training_config_['verdict']}", flush=True)
    found["observed"] = {
        (c, p): np.asarray(task.observed.X[(label == p) & (context == c)].todense()) for c, p in task.held_out
    }
    return found


def additive(task: Task, condition: tuple[str, str]) -> np.ndarray:
    """Return what true effects that are seen add up to: their mean here, and the perturbation's deviation elsewhere."""
    context, perturbation = condition
    held = set(task.held_out)
    seen = {p for c, p in task.truth if c == context and (c, p) not in held}
    here = np.mean([task.truth[context, p] for p in seen], axis=0)
    elsewhere = {c for c, _ in task.truth if c != context}
    same = np.mean([task.truth[c, perturbation] for c in elsewhere], axis=0)
    return here + same - np.mean([task.truth[c, p] for c in elsewhere for p in seen], axis=0)


def scores_of(job: tuple[int, Task, int, int | None, bool]) -> pd.DataFrame:
    """One row for each method and held-out condition of a task."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    fold, task, seed, max_steps, full = job
    cells, rows = populations(task, seed=seed, max_steps=max_steps, full=full), []
    label, where = labels(task.train, task.keys)
    control = label == task.keys["control"]
    start = {c: np.asarray(task.train.X[control & (where == c)].mean(0)).ravel() for c in {c for c, _ in task.held_out}}
    truth = np.stack([task.truth[condition] for condition in task.held_out])
    many = len({c for c, _ in task.truth}) > 1
    for method in cells.keys() - {"observed"}:
        for i, (c, p) in enumerate(task.held_out):
            found, observed = (cells[name][c, p].astype(np.float64) for name in (method, "observed"))
            change = found.mean(0) - start[c]
            distance = np.abs(truth - change).sum(1)
            row = {"MAE": np.abs(truth[i] - change).mean(), "PDS": 1 - (distance < distance[i]).mean(),
                   "Pearson": np.corrcoef(truth[i], change)[0, 1] if truth[i].std() else np.nan}  # fmt: skip
            row |= {"energy": energy(found, observed), "co-expression": co_expression(found, observed)}
            if many and task.name.startswith("simulated, few-shot"):
                own = additive(task, (c, p))
                row["explained"] = 1 - np.square(truth[i] - change).sum() / np.square(truth[i] - own).sum()
            rows.append({"task": task.name, "fold": fold, "condition": f"{c} {p}", "method": method, **row})
    return pd.DataFrame(rows)


def compared(scores: pd.DataFrame, one: str, other: str, names: list[str]) -> pd.DataFrame:
    """Means of two methods by task and score, and the 95 % interval of their difference, in favour of the first."""
    rows = []
    for task, of_task in scores.groupby("task", sort=False):
        for name in names:
            if name not in of_task or of_task[name].isna().all():
                continue
            wide = of_task.pivot_table(index=["fold", "condition"], columns="method", values=name)[
                [one, other]
            ].dropna()
            low, high = interval(SIGNS[name] * (wide[one] - wide[other]).to_numpy()[:, None])
            said = (
                "better" if low > 0 else "worse" if high < 0 else "the same" if low == high else "not distinguishable"
            )
            rows.append({"task": task, "n": len(wide), "score": name, "other": wide[other].mean(),
                         "one": wide[one].mean(), "low": low, "high": high, "verdict": said})  # fmt: skip
    return pd.DataFrame(rows)


def table_of(found: pd.DataFrame, one: str, other: str) -> Iterator[str]:
    """Lines of a table of :func:`compared`."""
    yield f"| task | score | {other} | {one} | difference | {one} is |"
    yield "|---|---|---|---|---|---|"
    for r in found.itertuples():
        values = f"{r.other:.4f} | {r.one:.4f} | {r.low:+.4f} to {r.high:+.4f}"
        yield f"| {r.task} ({r.n}) | {r.score} | {values} | {r.verdict} |"


def verdicts(found: pd.DataFrame, score: str) -> Iterator[str]:
    """One line for each verdict: the tasks of which it is true."""
    for said, tasks_of in found[found["score"] == score].groupby("verdict")["task"]:
        yield f"- {said}: {'; '.join(tasks_of)}"


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-steps", type=int, help="the default is that of train()")
    parser.add_argument("--screens", type=int, default=3, help="simulated screens of each kind")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", default="", help="tasks whose name has this text")
    parser.add_argument("--scores", type=Path, help="also write the scores of all conditions, CSV")
    parser.add_argument("--full", action="store_true", help="also keep the correction in full")
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    jobs = [(fold, task, seed, args.max_steps, args.full) for fold, task in enumerate(all_tasks(args.screens))
            for seed in range(args.seeds) if args.only in task.name]  # fmt: skip
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        parts = []
        for part in pool.map(scores_of, jobs):
            parts.append(part)
            if args.scores:  # what is there, if the rest takes too long
                pd.concat(parts).to_csv(args.scores, index=False)
    scores = pd.concat(parts)
    text = page_of(scores, args)
    print(text)
    if args.page:
        args.page.write_text(text, encoding="utf-8")


def page_of(scores: pd.DataFrame, args: argparse.Namespace) -> str:
    """The page as Markdown."""
    means, cells = ["MAE", "Pearson", "PDS", "explained"], ["energy", "co-expression"]
    steps = "" if args.max_steps is None else f" --max-steps {args.max_steps}"
    full = " --full" if FULL in set(scores["method"]) else ""
    options = f"--screens {args.screens} --seeds {args.seeds}{steps}{full}"
    network = compared(scores, NETWORK, START, means)
    lines = [
        "# Does the network help?",
        "",
        f"`python benchmarks/does_the_network_help.py {options}` writes this",
        "page; the first lines of that file describe tasks and scores. In every task, the methods predict the same",
        "held-out conditions, on which none of them was trained; the numbers in brackets count them. Intervals are",
        "95 %, by bootstrap over conditions. A positive difference is in favour of the second method.",
        "",
        "These lists compare the mean absolute error of the network with that of the response model that it starts",
        "from. *The same* means that the correction of the network did not help on conditions that the training had",
        "held out, so it was not used:",
        "",
        *verdicts(network, "MAE"),
        "",
        "## The network against the response model that it starts from",
        "",
        *table_of(network, NETWORK, START),
    ]
    more = [("Cells of the response model against controls moved by the same means", START, SHIFTED, cells),
            ("Cells of the network against those of the response model", NETWORK, START, cells)]  # fmt: skip
    if full:
        more.append(("What the default leaves out: the correction in full, at a rate of 1e-3", FULL, START, means))
    for title, one, other, names in more:
        lines += ["", f"## {title}", "", *table_of(compared(scores, one, other, names), one, other)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
