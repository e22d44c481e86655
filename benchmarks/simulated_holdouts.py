"""Where prediction works and where it cannot: held-out contexts and unseen targets of simulated screens.

The effects of a simulated screen are known, so predictions are compared with the truth and not with noisy cells:
Pearson correlation of predicted and true change, mean over held-out conditions. Tasks of each screen:

* few-shot - one context is seen with half of its perturbations; the other half is predicted there
* zero-shot - of one context only controls are seen
* unseen targets, informative table - perturbations seen in no context, with embeddings that say what they do
* unseen targets, random table - the same perturbations, with embeddings that say nothing; one-hot labels are refused

    python benchmarks/simulated_holdouts.py --screens 3 --max-steps 300
"""

from __future__ import annotations

import argparse
import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_tahoe import TahoeST
from scvi_tahoe.datasets import simulate_screen

if TYPE_CHECKING:
    from anndata import AnnData

KEYS = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}
TABLE = "perturbation_embedding"
TARGET_CONTEXT = "context_3"


def tasks(screen: AnnData, seed: int) -> dict[str, tuple[np.ndarray, str | None]]:
    """Held-out cells of each task, and the table that the model gets."""
    rng = np.random.default_rng(seed)
    perturbations = rng.permutation(screen.uns[TABLE].index)
    label, here = screen.obs["perturbation"].astype(str), (screen.obs["context"] == TARGET_CONTEXT).to_numpy()
    screen.uns["random"] = pd.DataFrame(
        rng.normal(size=screen.uns[TABLE].shape).astype(np.float32), index=screen.uns[TABLE].index
    )
    unseen = label.isin(perturbations[:6]).to_numpy()
    return {
        "few-shot": (here & label.isin(perturbations[::2]).to_numpy(), None),
        "zero-shot": (here & (label != "control").to_numpy(), None),
        "unseen targets, informative table": (unseen, TABLE),
        "unseen targets, random table": (unseen, "random"),
        "unseen targets, one-hot": (unseen, None),
    }


def changes_by_condition(adata: AnnData) -> dict[tuple[str, str], np.ndarray]:
    """Observed change of each (context, perturbation): float ``[G]``."""
    groups = adata.obs.groupby(["context", "perturbation"], observed=True).indices
    mean = {key: np.asarray(adata.X[rows].mean(0)).ravel() for key, rows in groups.items()}
    return {(c, p): mean[c, p] - mean[c, "control"] for c, p in mean if p != "control"}


def baselines(train: AnnData, held_out: list[tuple[str, str]], table: pd.DataFrame) -> dict[str, dict]:
    """Change of each held-out condition as simple rules have it."""
    seen = changes_by_condition(train)
    overall = np.mean(list(seen.values()), axis=0)
    names = sorted({p for _, p in seen})
    of_name = np.stack([np.mean([seen[k] for k in seen if k[1] == p], axis=0) for p in names])
    rows = table.loc[names].to_numpy()
    centre = rows.mean(0)
    inner = (rows - centre).T @ (rows - centre) + np.eye(rows.shape[1])  # ridge regression, penalty 1
    slope = np.linalg.solve(inner, (rows - centre).T @ (of_name - overall))
    result: dict[str, dict] = {"mean of training": {}, "same perturbation elsewhere": {}, "ridge on the table": {}}
    for context, name in held_out:
        local = [change for (c, _), change in seen.items() if c == context]
        result["mean of training"][context, name] = np.mean(local, axis=0) if local else overall
        result["ridge on the table"][context, name] = overall + (table.loc[name].to_numpy() - centre) @ slope
        if name in names:
            result["same perturbation elsewhere"][context, name] = of_name[names.index(name)]
    return result


def predicted_changes(model: TahoeST, train: AnnData, held_out: list[tuple[str, str]], output: str) -> dict:
    """Change of each held-out condition as a model has it."""
    controls = train.obs["perturbation"] == "control"
    predicted = model.predict(
        perturbations=sorted({p for _, p in held_out}), contexts=sorted({c for c, _ in held_out}), n_cells=100,
        output=output, progress=False,
    )  # fmt: skip
    start = {c: np.asarray(train.X[(controls & (train.obs["context"] == c)).to_numpy()].mean(0)).ravel() for c in
             train.obs["context"].cat.categories}  # fmt: skip
    groups = predicted.obs.groupby(["context", "perturbation"], observed=True).indices
    return {(c, p): np.asarray(predicted.X[groups[c, p]].mean(0)).ravel() - start[c] for c, p in held_out}


def pearson(changes: dict, screen: AnnData) -> float:
    """Mean correlation with the true change; NaN where nothing was predicted."""
    truth = screen.uns["true_delta"]
    scores = [np.corrcoef(change, truth[c].loc[p])[0, 1] for (c, p), change in changes.items()]
    return float(np.mean(scores)) if scores else float("nan")


def run(screen: AnnData, held: np.ndarray, table: str | None, *, seed: int, max_steps: int) -> dict[str, float]:
    """Scores of one task: one value a method."""
    train = screen[~held].copy()
    held_obs = screen.obs.loc[held, ["context", "perturbation"]].astype(str)
    held_out = sorted(set(held_obs.itertuples(index=False, name=None)))
    TahoeST.setup_anndata(train, **KEYS, perturbation_embedding_key=table)
    scores = baselines(train, held_out, screen.uns[table or TABLE])
    if table is None:
        del scores["ridge on the table"]
    model = TahoeST(train, seed=seed)
    try:
        scores["TahoeST, prior alone"] = predicted_changes(model, train, held_out, "prior")
    except ValueError as refusal:
        print(f"refused: {str(refusal)[:60]}...")
        return {"TahoeST, prior alone": float("nan"), "TahoeST": float("nan")}
    model.train(max_steps=max_steps, seed=seed, progress=False)
    scores["TahoeST"] = predicted_changes(model, train, held_out, "expression")
    return {method: pearson(changes, screen) for method, changes in scores.items()}


def main() -> None:
    """Print one table: tasks x methods, mean over screens with the smallest and largest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--screens", type=int, default=3)
    parser.add_argument("--max-steps", type=int, default=300)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    rows = []
    for seed in range(args.screens):
        screen = simulate_screen(3, 36, seed=seed)
        for task, (held, table) in tasks(screen, seed).items():
            scores = run(screen, held, table, seed=seed, max_steps=args.max_steps)
            rows += [{"task": task, "method": m, "pearson": v} for m, v in scores.items()]
            print(seed, task, {m: round(v, 3) for m, v in scores.items()}, flush=True)
    grouped = pd.DataFrame(rows).groupby(["task", "method"], sort=False)["pearson"]
    print(grouped.agg(["mean", "min", "max"]).round(3).to_string())


if __name__ == "__main__":
    main()
