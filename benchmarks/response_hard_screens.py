"""Screens that are hard to predict: the response model beside the best exact rule, on conditions that are held out.

Each screen is simulated with known effects; what is predicted is compared with the truth, in mean absolute error and
Pearson correlation. Screens differ from easy ones in what names them: weak effects, one strong effect that all
perturbations share, few cells, contexts of uneven size, tables that say little or nothing, few perturbations, one
context, contexts that have nothing in common, perturbations that do nothing, drugs at doses. Tasks are those of
``simulated_holdouts.py``.

A row is a screen and a task, means over draws: scores of the response model, and how much better (-: worse) it is than
the exact rule that is best *in hindsight* on that score, with the standard error over draws. An exact rule is the mean
of the context, the change elsewhere, the mean plus the deviation elsewhere, ridge regression, or the five nearest rows.

    OMP_NUM_THREADS=1 python benchmarks/response_hard_screens.py --draws 5 --jobs 16
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from scvi_tahoe.data import LabelParser
from scvi_tahoe.datasets import simulate_screen
from scvi_tahoe.evaluate import RidgeFit, SeenChanges, nearest_mean
from scvi_tahoe.response._judged import change_scores
from scvi_tahoe.response._kernels import Conditions, TableKernel, unit_rows
from scvi_tahoe.response._members import Question
from scvi_tahoe.response._response_model import fit_responses, predicted_changes
from scvi_tahoe.response._responses import Responses


@dataclass(frozen=True)
class Hard:
    """How a screen differs from an easy one."""

    contexts: int = 3
    perturbations: int = 24
    cells: int = 40
    controls: int = 200
    effect: float = 1.0
    common: float = 0.0  # size of an effect that all perturbations share, in units of a usual effect
    tables: tuple[str, ...] = ("informative",)
    uneven: bool = False  # the second context has a quarter of the perturbations, a fifth of the cells
    unlike: bool = False  # effects of each context are drawn anew
    opposite: bool = False  # effects in the last context are those of the others with the other sign
    outliers: bool = False  # every eighth perturbation has six times its effect
    noise_known: bool = True
    covered: float = 1.0  # share of the perturbations that tables have rows for
    genes: int = 200
    clustered: bool = False  # perturbations of a cluster do the same, and tables say no more than the cluster
    inert: float = 0.0  # share of the perturbations that do nothing
    doses: tuple[float, ...] = ()  # every perturbation at these doses; at 1 it has half of its effect
    gain: float = (
        0.0  # how much the contexts differ in what a change of a gene is there, as a standard deviation of logs
    )


SCREENS = {
    "easy": Hard(),
    "weak effects": Hard(effect=0.3),
    "very weak effects": Hard(effect=0.1),
    "strong common effect": Hard(common=3.0),
    "strong common effect, weak rest": Hard(effect=0.3, common=5.0),
    "five cells": Hard(cells=5, controls=30),
    "uneven contexts": Hard(uneven=True),
    "useless table": Hard(tables=("random",)),
    "useless and informative table": Hard(tables=("random", "informative")),
    "wide useless table": Hard(tables=("wide random", "informative")),
    "six perturbations": Hard(perturbations=6),
    "ten perturbations": Hard(perturbations=10),
    "twenty perturbations, weak": Hard(perturbations=20, effect=0.4),
    "one context": Hard(contexts=1, perturbations=40),
    "one context, ten perturbations": Hard(contexts=1, perturbations=10),
    "two contexts": Hard(contexts=2),
    "two contexts, five cells": Hard(contexts=2, cells=5, controls=30),
    "contexts with nothing in common": Hard(unlike=True),
    "last context the other way round": Hard(opposite=True),
    "outliers": Hard(outliers=True),
    "noise not known": Hard(noise_known=False),
    "noise not known, weak effects": Hard(noise_known=False, effect=0.3),
    "half of the rows of a table": Hard(covered=0.5),
    "fingerprints": Hard(tables=("fingerprints",), perturbations=40),
    "fingerprints, one context": Hard(tables=("fingerprints",), contexts=1, perturbations=60),
    "clusters": Hard(clustered=True, perturbations=40),
    "clusters, one context": Hard(clustered=True, contexts=1, perturbations=40),
    "1,000 genes, ten perturbations": Hard(genes=1000, perturbations=10),
    "four contexts, 100 perturbations": Hard(contexts=4, perturbations=100),
    "one context, 300 perturbations": Hard(contexts=1, perturbations=300),
    "one context, useless table": Hard(contexts=1, perturbations=40, tables=("random",)),
    "one context, 150 perturbations, useless table": Hard(contexts=1, perturbations=150, tables=("random",)),
    "one context, weak, vague table": Hard(contexts=1, perturbations=60, effect=0.3, tables=("vague",)),
    "vague table": Hard(tables=("vague",), perturbations=40),
    "the same table twice": Hard(tables=("informative", "copy"), perturbations=20),
    "most perturbations do nothing": Hard(inert=0.7, perturbations=40),
    "most do nothing, one context, vague table": Hard(inert=0.7, perturbations=40, contexts=1, tables=("vague",)),
    "most do nothing, two contexts, few cells": Hard(inert=0.7, perturbations=20, contexts=2, cells=8, controls=50),
    "contexts of unlike expression": Hard(gain=1.0, contexts=4),
    "contexts of unlike expression, common effect": Hard(gain=1.0, contexts=4, common=2.0),
    "drugs at doses": Hard(doses=(0.1, 1, 10), tables=("fingerprints",), perturbations=20),
    "drugs at doses, one context": Hard(doses=(0.1, 1, 10), tables=("fingerprints",), perturbations=40, contexts=1),
    "drugs at two doses, weak": Hard(doses=(1, 10), effect=0.3, tables=("fingerprints",), perturbations=30, contexts=4),
    "twelve perturbations, one context, vague table": Hard(contexts=1, perturbations=12, tables=("vague",)),
    "one perturbation, six contexts": Hard(contexts=6, perturbations=1, tables=()),
    "one perturbation, six unlike contexts": Hard(contexts=6, perturbations=1, tables=(), gain=1.0, common=2.0),
    "three perturbations, five contexts": Hard(contexts=5, perturbations=3, tables=(), common=1.0),
}


def screen_of(hard: Hard, seed: int) -> tuple[Responses, dict, dict[str, pd.DataFrame]]:
    """Observed changes with their noise, true changes, and embedding tables."""
    rng = np.random.default_rng((seed, 7))
    size = {"n_genes": hard.genes, "n_cells": hard.cells, "n_control_cells": hard.controls, "effect_size": hard.effect}
    adata = simulate_screen(hard.contexts, hard.perturbations, seed=seed, **size)
    table, truth = adata.uns["perturbation_embedding"], adata.uns["true_delta"]
    if hard.unlike:
        others = [simulate_screen(hard.contexts, hard.perturbations, seed=seed + 100 * k, **size) for k in (1, 2)]
        for k, other in enumerate(others, start=1):
            name = f"context_{k + 1}"
            here = (adata.obs["context"] == name).to_numpy()
            adata.X[here] = other.X[(other.obs["context"] == name).to_numpy()]
            truth[name] = other.uns["true_delta"][name]
    usual = np.sqrt(np.mean([np.square(t.to_numpy()).mean() for t in truth.values()]))
    common = {c: hard.common * usual * rng.normal(size=adata.n_vars) for c in truth}
    names = list(table.index)
    moved = _moved(hard, names, truth)
    gains = np.random.default_rng((seed, 11))
    gain = {c: np.exp(hard.gain * gains.normal(size=adata.n_vars) - np.square(hard.gain) / 2) for c in truth}
    dense, groups = adata.X.toarray(), adata.obs.groupby(["context", "perturbation"], observed=True).indices
    rows, true, more = [], {}, np.random.default_rng((seed, 13))
    for context in sorted(truth):
        controls = dense[groups[context, "control"]]
        keeps = names[: max(3, len(names) // 4)] if hard.uneven and context == "context_2" else names
        for name in names:
            effect = truth[context].loc[name].to_numpy() + common[context] + moved[context, name]
            cells = dense[groups[context, name]]
            cells = cells[: max(2, len(cells) // 5)] if hard.uneven and context == "context_2" else cells
            noise = (np.square(cells - cells.mean(0)).sum(0) + 10 * controls.var(0)) / (len(cells) + 10) / len(cells)
            missed = cells.mean(0) - controls.mean(0) - truth[context].loc[name].to_numpy()
            for dose in hard.doses or (None,):
                label = name if dose is None else f"{name}@{dose:g}"
                true[context, label] = gain[context] * effect * (1 if dose is None else dose / (1 + dose))
                if dose is not None:
                    missed = more.normal(size=len(noise)) * np.sqrt(noise + controls.var(0) / len(controls))
                if name in keeps:
                    rows.append((label, context, true[context, label] + missed, noise * hard.noise_known))
    labels, contexts, changes, noises = (np.array(values) for values in zip(*rows, strict=True))
    means = {c: gain[c] * dense[groups[c, "control"]].mean(0) for c in truth}
    signs = table.to_numpy() @ rng.normal(size=(table.shape[1], 512)) + rng.normal(size=(len(names), 512))
    cluster = rng.normal(size=(len(names) // 5 + 1, 32))[np.arange(len(names)) // 5]
    kinds = {
        "fingerprints": pd.DataFrame((signs > 2 * signs.std()).astype(float), index=names),
        "informative": table,
        "copy": table.copy(),
        "random": pd.DataFrame(rng.normal(size=table.shape), index=names),
        "wide random": pd.DataFrame(rng.normal(size=(len(names), 500)), index=names),
        # half of the variance of each informative direction is noise, and most directions say nothing
        "vague": table + table.to_numpy().std() * np.random.default_rng((seed, 17)).normal(size=table.shape),
    }
    if hard.clustered:
        kinds["informative"] = pd.DataFrame(cluster + 0.3 * rng.normal(size=cluster.shape), index=names)
    found = Responses(labels, contexts, changes, noises, np.array(adata.var_names), means)
    kept = rng.random(len(names)) < hard.covered
    return found, true, {name: kinds[name][kept] for name in hard.tables}


def _moved(hard: Hard, names: list[str], truth: dict[str, pd.DataFrame]) -> dict[tuple[str, str], np.ndarray]:
    """What is added to each condition, so that effects are other than those of the simulated cells."""
    found, last = {}, max(truth)
    for context, effects in truth.items():
        for k, name in enumerate(names):
            effect = effects.loc[name].to_numpy()
            wanted = effects.loc[names[k - k % 5]].to_numpy() if hard.clustered else effect
            wanted = -wanted if hard.opposite and context == last else wanted
            wanted = 0 * wanted if k < hard.inert * len(names) else wanted
            found[context, name] = (6 * wanted if hard.outliers and k % 8 == 0 else wanted) - effect
    return found


def tasks_of(hard: Hard, responses: Responses, seed: int) -> dict[str, tuple[np.ndarray, bool]]:
    """Conditions of each task that are held out, and whether tables are known."""
    of_row = np.array([label.partition("@")[0] for label in responses.perturbations])
    names = np.random.default_rng(seed).permutation(sorted(set(of_row)))
    here, found = responses.contexts == f"context_{hard.contexts}", {}
    if len(names) > 1 and hard.tables:
        found["unseen"] = (np.isin(of_row, names[: max(2, len(names) // 5)]), True)
    if hard.doses:
        middle = np.char.endswith(responses.perturbations, f"@{hard.doses[-2]:g}")
        found["unseen dose"] = (middle & np.isin(of_row, names[::2]), True)
    if hard.contexts > 1:
        if len(names) > 1:
            found["few-shot"] = here & np.isin(of_row, names[::2]), False
        found["zero-shot"] = here, False
    return found


def rules(train: Responses, asked: list[tuple[str, str]], tables: dict[str, pd.DataFrame]) -> dict[str, np.ndarray]:
    """Changes as exact rules have them."""
    seen = SeenChanges(train.perturbations, train.contexts, train.changes)
    found = {"mean": [seen.mean(c) for c, _ in asked]}
    if all(seen.transfer(p, c) is not None for c, p in asked):
        found["change elsewhere"] = [seen.transfer(p, c) for c, p in asked]
        found["mean plus deviation"] = [seen.deviation(p, c) for c, p in asked]
    if tables:
        names = sorted({label.partition("@")[0] for label in (*train.perturbations, *(p for _, p in asked))})
        rows = np.hstack([unit_rows(TableKernel.of(t, names).of_components(names)[0]) for t in tables.values()])
        position = {name: i for i, name in enumerate(names)}
        found["ridge"], found["nearest"] = [], []
        of_train = np.array([position[p.partition("@")[0]] for p in train.perturbations])
        fits = {}
        for context in {c for c, _ in asked}:
            here = train.contexts == context if (train.contexts == context).any() else train.contexts != context
            x, y = rows[of_train[here]], train.changes[here]
            fits[context] = x, y, RidgeFit.of(x, y)
        for context, p in asked:
            x, y, ridge = fits[context]
            new = rows[position[p.partition("@")[0]]][None]
            found["ridge"].append(ridge.predict(new)[0])
            found["nearest"].append(nearest_mean(unit_rows(new) @ unit_rows(x).T, y)[0])
    return {name: np.stack(values) for name, values in found.items()}


def run(name: str, seed: int) -> list[dict]:
    """One row for each task of a screen."""
    hard = SCREENS[name]
    responses, truth, tables = screen_of(hard, seed)
    wanted = np.stack([truth[key] for key in zip(responses.contexts, responses.perturbations, strict=True)])
    tasks = tasks_of(hard, responses, seed)
    return compared(
        name, seed, responses, wanted, tables, tasks, LabelParser(control="control", has_dose=bool(hard.doses))
    )


def compared(
    name: str,
    seed: int,
    responses: Responses,
    wanted: np.ndarray,
    tables: dict[str, pd.DataFrame],
    tasks: dict[str, tuple[np.ndarray, bool]],
    parser: LabelParser,
) -> list[dict]:
    """Scores of the response model and of exact rules in each task, against what is wanted ``[n, G]``."""
    rows = []
    for task, (held, has_tables) in tasks.items():
        asked = list(zip(responses.contexts[held].tolist(), responses.perturbations[held].tolist(), strict=True))
        train = Responses(
            responses.perturbations[~held], responses.contexts[~held], responses.changes[~held],
            responses.noise[~held], responses.genes, responses.control_means,
        )  # fmt: skip
        known = tables if has_tables else {}
        components = Conditions.of(train.perturbations, train.contexts, parser).components
        started = time.process_time()
        fitted = fit_responses(train, parser, {n: TableKernel.of(t, components) for n, t in known.items()})
        found, _ = predicted_changes(fitted, [Question(p, c) for c, p in asked], responses.control_means)
        seconds = time.process_time() - started
        methods = {"response model": found, **rules(train, asked, known)}
        rows += [
            {"screen": name, "task": task, "draw": seed, "method": m, "seconds": seconds}
            | change_scores(np.asarray(x, float), wanted[held], responses.contexts[held])
            for m, x in methods.items()
        ]
    return rows


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Scores of the response model, and its distance to the best exact rule, for each screen and task."""
    result = []
    for (screen, task), group in table.groupby(["screen", "task"], sort=False):
        row: dict[str, object] = {"screen": screen, "task": task}
        for score, sign in (("mae", -1), ("pearson", 1)):
            wide = group.pivot(index="draw", columns="method", values=score)
            model, exact = wide.pop("response model"), wide
            best = (sign * exact.mean()).idxmax()
            ahead = sign * (model - exact[best])
            scale = exact[best].mean() / 100 if score == "mae" else 1.0
            row[score], row[f"{score}: best rule"] = model.mean(), best
            row[f"{score}: ahead"] = ahead.mean() / scale
            row[f"{score}: +-"] = ahead.std() / np.sqrt(len(ahead)) / scale
        result.append(row)
    return pd.DataFrame(result)


def main() -> None:
    """Print one table; ``mae: ahead`` is in percent of the best rule's error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="seed of the first draw")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--screens", nargs="+", default=list(SCREENS), choices=list(SCREENS))
    parser.add_argument("--out", type=Path, help="CSV of all scores")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    draws = [(name, seed) for name in args.screens for seed in range(args.first, args.first + args.draws)]
    found = Parallel(n_jobs=args.jobs)(delayed(run)(name, seed) for name, seed in draws)
    table = pd.DataFrame([row for rows in found for row in rows])
    if args.out:
        table.to_csv(args.out, index=False)
    print(summary(table).round(4).to_string(index=False))


if __name__ == "__main__":
    main()
