"""What `obs["expected_error"]` of predictions is worth: against the true error, and standard deviations as coverage.

* Papalexi - targets that are seen in all replicates are held out of one, half of them at a time
* Norman - pairs and single genes whose genes occur in other conditions, an eighth of all conditions at a time
* simulated - of three screens: half of the perturbations of a context, and perturbations that only a table knows
* Replogle - targets that only tables know, and targets that are measured in the other line (`--responses`)

Printed are the rank correlation of the expected with the true absolute error over held-out conditions, both as means
over genes, their means, and how often the true change of a gene is inside intervals of the predicted standard
deviation. Of the real screens, the truth is known with the sampling noise of few cells only, which no model can expect;
the second correlation and the coverage add its variance to the predicted one, and the third is that of the noise alone.
`--figure` draws all of it. `--ensembles` trains three seeds on each task but Replogle's and prints the same correlation
for what the members disagree by.

    python benchmarks/expected_error.py --jobs 2 --figure docs/_static/expected_error.png \\
        --responses responses.h5ad --table go=emb_gene_go.parquet --table summaries=emb_gene_ncbi_summaries.parquet
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from how_good import Task, change_of, papalexi, simulated
from joblib import Parallel, delayed
from scipy.stats import norm, spearmanr

from scvi_tahoe import TahoeEnsemble, TahoeST
from scvi_tahoe.datasets import norman_k562, papalexi_few_shot
from scvi_tahoe.response import ResponseModel

if TYPE_CHECKING:
    from collections.abc import Iterator

#: nominal coverage of intervals
NOMINAL = np.linspace(0.1, 0.9, 9)


class Screen(NamedTuple):
    """A screen without some conditions, and the sampling variance of the observed changes of these."""

    name: str
    task: Task
    noise: dict[tuple[str, str], np.ndarray]


def sampling_variance(adata: ad.AnnData, label: np.ndarray, context: np.ndarray, control: str) -> dict:
    """Variance of the observed change of each condition, by the sampling of its cells and of the controls."""
    x = adata.X.toarray() if sp.issparse(adata.X) else np.asarray(adata.X)
    pairs = sorted(set(zip(context.tolist(), label.tolist(), strict=True)))
    rows = {pair: x[(context == pair[0]) & (label == pair[1])] for pair in pairs}
    own = {pair: cells.var(axis=0, ddof=1) / len(cells) for pair, cells in rows.items() if len(cells) > 1}
    return {(c, p): v + own[c, control] for (c, p), v in own.items() if p != control}


def screens() -> Iterator[Screen]:
    """All tasks but those of responses, one after the other."""
    few_shot = papalexi_few_shot()
    label, context = (few_shot.train.obs[k].astype(str).to_numpy() for k in ("target_gene", "replicate"))
    noise = sampling_variance(few_shot.train, label, context, few_shot.control)
    for task in papalexi():
        yield Screen("Papalexi", task, noise)
    for task in simulated():
        if task.name in ("simulated, few-shot", "simulated, unseen"):
            yield Screen(task.name, task, {})
    adata = norman_k562()
    label, context = adata.obs["perturbation"].astype(str).to_numpy(), np.full(adata.n_obs, "all")
    truth = change_of(adata, label, context, "control")
    noise = sampling_variance(adata, label, context, "control")
    setup = {"perturbation_key": "perturbation", "control": "control", "combination_separator": "+"}
    for part in np.array_split(np.random.default_rng(0).permutation(sorted(set(label) - {"control"})), 8):
        kept = ~np.isin(label, part)
        known = {gene for name in set(label[kept]) for gene in name.split("+")}
        wanted = [("all", str(name)) for name in part if set(name.split("+")) <= known]
        if wanted:
            yield Screen("Norman", Task("Norman", adata[kept].copy(), setup, wanted, truth), noise)


def judged(name: str, truth: np.ndarray, change: np.ndarray, sd: np.ndarray, noise: np.ndarray) -> pd.DataFrame:
    """One row for each condition: expected and true error, and the coverage of its genes."""
    total = np.sqrt(np.square(sd, dtype=np.float64) + noise)
    z = np.abs(truth - change) / np.maximum(total, 1e-12)
    covered = {f"{p:.1f}": (z <= norm.ppf((1 + p) / 2)).mean(axis=1) for p in NOMINAL}
    error = np.abs(truth - change).mean(axis=1)
    normal = np.sqrt(2 / np.pi)
    alone = normal * np.broadcast_to(np.sqrt(noise), truth.shape).mean(axis=1)
    return pd.DataFrame(
        {"screen": name, "with_noise": normal * total.mean(axis=1), "noise": alone, "error": error, **covered}
    )


def of_screen(number: int) -> pd.DataFrame:
    """Expected and true errors of the conditions of a task."""
    quiet()
    name, task, noise = next(screen for i, screen in enumerate(screens()) if i == number)
    TahoeST.setup_anndata(task.train, **task.keys)
    model, key, where = TahoeST(task.train), task.keys["perturbation_key"], task.keys.get("context_key")
    asked = {"perturbations": sorted({p for _, p in task.held_out})}
    if where is not None:
        asked["contexts"] = sorted({c for c, _ in task.held_out})
    effects = model.predict_effects(**asked)
    cells = model.predict(output="prior", n_cells=1, progress=False, **asked).obs
    if where is None:
        effects["all"], cells["all"], where = "all", "all", "all"
    change, sd = (
        effects.pivot(index=[where, key], columns="gene", values=v)[task.train.var_names] for v in ("change", "sd")
    )
    said = cells.set_index([cells[where].astype(str), cells[key].astype(str)])["expected_error"]
    order = task.held_out
    truth = np.stack([task.truth[condition] for condition in order])
    own = np.stack([noise.get(condition, np.zeros(truth.shape[1])) for condition in order])
    table = judged(name, truth, change.loc[order].to_numpy(), sd.loc[order].to_numpy(), own)
    return table.assign(expected=said.loc[order].to_numpy(), condition=[f"{p} in {c}" for c, p in order])


def of_ensemble(number: int, max_steps: int) -> pd.DataFrame:
    """What three seeds disagree by, and the true error of their mean."""
    quiet()
    name, task, _ = next(screen for i, screen in enumerate(screens()) if i == number)
    TahoeST.setup_anndata(task.train, **task.keys)
    ensemble = TahoeEnsemble.train(task.train, max_steps=max_steps, progress=False)
    asked = {"perturbations": sorted({p for _, p in task.held_out}), "n_cells": 200, "progress": False}
    where, key = task.keys.get("context_key"), task.keys["perturbation_key"]
    if where is not None:
        asked["contexts"] = sorted({c for c, _ in task.held_out})
    cells = ensemble.predict(**asked)
    table = cells.uns["scvi_tahoe_ensemble"]
    places = table[where].astype(str) if where is not None else ["all"] * len(table)
    asked_for = list(zip(places, table[key].astype(str), strict=True))
    kept = [i for i, condition in enumerate(asked_for) if condition in task.held_out]
    delta, sd = (cells.varm[f"ensemble_{what}"].T[kept] for what in ("delta", "sd"))
    truth = np.stack([task.truth[asked_for[i]] for i in kept])
    error = np.abs(truth - delta)
    return pd.DataFrame({
        "screen": name, "sd": sd.mean(axis=1), "error": error.mean(axis=1),
        "uncertainty": table["uncertainty"].to_numpy()[kept],
        "relative error": np.linalg.norm(truth - delta, axis=1) / np.linalg.norm(truth, axis=1),
    })  # fmt: skip


def of_responses(fold: np.ndarray, path: Path, tables: list[str], n_genes: int, device: str) -> pd.DataFrame:
    """Expected and true errors of a fold of targets, nowhere measured and measured in the other contexts."""
    quiet()
    adata = ad.read_h5ad(path)
    keys = {"perturbation_key": "perturbation", "context_key": "cell_line"}
    adata = adata[adata.obs["perturbation"].astype(str) != "control"].copy()
    adata.X = np.asarray(adata.X.toarray() if sp.issparse(adata.X) else adata.X, dtype=np.float32)
    adata = adata[:, np.sort(np.argsort(-adata.X.var(0))[:n_genes])].copy()
    frames = {name: pd.read_parquet(file) for name, _, file in (text.partition("=") for text in tables)}
    label, context = (adata.obs[k].astype(str).to_numpy() for k in keys.values())
    held, parts = np.isin(label, fold), []
    for name, contexts in {
        "unseen": [sorted(set(context))],
        "seen elsewhere": [[c] for c in sorted(set(context))],
    }.items():
        for here in contexts:
            test = held & np.isin(context, here)
            model = ResponseModel.fit(adata[~test].copy(), **keys, tables=frames, device=device, progress=False)
            known = set(model.perturbations).union(*(t.index for t in frames.values()))
            wanted = [(c, p) for c, p in zip(context[test], label[test], strict=True) if p in known]
            found = model.predict(sorted({p for _, p in wanted}), list(here))
            at = pd.MultiIndex.from_arrays([found.obs["cell_line"].astype(str), found.obs["perturbation"].astype(str)])
            truth = pd.DataFrame(adata.X[test], index=pd.MultiIndex.from_arrays([context[test], label[test]])).loc[
                wanted
            ]
            rows, sd = at.get_indexer(pd.MultiIndex.from_tuples(wanted)), found.layers["sd"]
            table = judged(f"Replogle, {name}", truth.to_numpy(), found.X[rows], sd[rows], np.zeros(1))
            parts.append(
                table.assign(expected=np.sqrt(2 / np.pi) * sd[rows].mean(axis=1), condition=[p for _, p in wanted])
            )
    return pd.concat(parts)


def quiet() -> None:
    """Leave warnings and logging out, and use one thread."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)


def figure(table: pd.DataFrame, path: Path) -> None:
    """Draw expected against true errors, and nominal against observed coverage."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = drawn.subplots(1, 2)
    colors = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
    for color, (name, rows) in zip(colors, table.groupby("screen", sort=False), strict=False):
        rho = spearmanr(rows["with_noise"], rows["error"]).statistic
        left.scatter(rows["with_noise"], rows["error"], s=9, color=color, alpha=0.6, label=f"{name} ({rho:.2f})", lw=0)
        observed = rows[[f"{p:.1f}" for p in NOMINAL]].mean()
        right.plot(NOMINAL, observed, color=color, marker="o", ms=3, label=name)
    ends = (table[["with_noise", "error"]].min().min() * 0.8, table[["with_noise", "error"]].max().max() * 1.2)
    left.plot(ends, ends, color="0.6", lw=1, zorder=0)
    left.set(xscale="log", yscale="log", xlim=ends, ylim=ends, ylabel="error",
             xlabel="expected error, with the noise of the observed mean",
             title="Errors of conditions, and their rank correlation")  # fmt: skip
    right.plot([0, 1], [0, 1], color="0.6", lw=1, zorder=0)
    right.set(xlabel="nominal coverage", ylabel="observed coverage", xlim=(0, 1), ylim=(0, 1),
              title="Intervals of the change of a gene")  # fmt: skip
    left.legend(fontsize=7, frameon=False)
    drawn.savefig(path, dpi=130)


def main() -> None:
    """Print one table, and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="processes at the same time")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--responses", type=Path, help="changes of targets, obs: perturbation and cell_line")
    parser.add_argument("--table", action="append", default=[], help="NAME=FILE.parquet, as often as there are tables")
    parser.add_argument("--genes", type=int, default=3000, help="of the responses")
    parser.add_argument("--folds", type=int, default=5, help="of the responses")
    parser.add_argument("--device", default="auto", help="for the responses")
    parser.add_argument("--ensembles", action="store_true")
    parser.add_argument("--max-steps", type=int, default=300, help="of members of ensembles")
    args = parser.parse_args()
    quiet()
    n, pool = sum(1 for _ in screens()), Parallel(args.jobs)
    parts = pool(delayed(of_screen)(i) for i in range(n))
    if args.responses:
        names = sorted(set(ad.read_h5ad(args.responses, backed="r").obs["perturbation"].astype(str)) - {"control"})
        folds = np.array_split(np.random.default_rng(0).permutation(names), args.folds)
        options = (args.responses, args.table, args.genes, args.device)
        parts += pool(delayed(of_responses)(fold, *options) for fold in folds)
    table = pd.concat(parts)
    rows = {
        name: {
            "conditions": len(rows), "rank correlation": spearmanr(rows["expected"], rows["error"]).statistic,
            "the same with noise": spearmanr(rows["with_noise"], rows["error"]).statistic,
            "noise alone": spearmanr(rows["noise"], rows["error"]).statistic if rows["noise"].any() else np.nan,
            "expected": rows["expected"].mean(), "with noise": rows["with_noise"].mean(), "true": rows["error"].mean(),
            "covered of 50 %": rows["0.5"].mean(), "covered of 90 %": rows["0.9"].mean(),
        }
        for name, rows in table.groupby("screen", sort=False)
    }  # fmt: skip
    print(pd.DataFrame(rows).T.round(3).to_string())
    if args.figure:
        figure(table, args.figure)
    if args.ensembles:
        members = pd.concat(pool(delayed(of_ensemble)(i, args.max_steps) for i in range(n)))
        for name, side in members.groupby("screen", sort=False):
            own = spearmanr(side["sd"], side["error"]).statistic
            relative = spearmanr(side["uncertainty"], side["relative error"]).statistic
            print(f"ensemble, {name}: sd and error {own:.2f}, uncertainty and relative error {relative:.2f}")


if __name__ == "__main__":
    main()
