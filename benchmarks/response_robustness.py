"""Data that say nothing, added to a screen: what they cost the predictions of everything else.

A context of noise (its "perturbed" cells are control cells, few controls) is added to three contexts of simulated
screens, whose effects are known. Root mean squared error and Pearson correlation with the truth, of the response model
alone, for held-out conditions of the other contexts: without that context, with it, and the change of the error in
percent. Tasks are those of ``simulated_holdouts.py``. With ``--contexts 1`` the noise is added to a single context: of
two contexts none can be compared with a third. ``--quiet 0.3`` gives the context three tenths of its effects instead of
none: weak effects are no noise, and should help.

    python benchmarks/response_robustness.py
"""

from __future__ import annotations

import argparse
import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from simulated_holdouts import KEYS, TABLE, tasks

from scvi_tahoe import TahoeST
from scvi_tahoe.datasets import simulate_screen

if TYPE_CHECKING:
    import anndata as ad

NOISE, N_CONTROLS = "context_4", 10


def with_noise(screen: ad.AnnData, seed: int, n_controls: int = N_CONTROLS, quiet: float = 0.0) -> ad.AnnData:
    """Take the effects of the last context away: its perturbed cells become control cells, few controls remain.

    A share ``quiet`` of the perturbed cells stay, which leaves the same share of the effects.
    """
    rng = np.random.default_rng(seed)
    label = screen.obs["perturbation"].astype(str).to_numpy()
    here = (screen.obs["context"] == NOISE).to_numpy()
    controls, perturbed = np.flatnonzero(here & (label == "control")), np.flatnonzero(here & (label != "control"))
    result = screen.copy()
    perturbed = perturbed[rng.random(len(perturbed)) >= quiet]
    result.X[perturbed] = screen.X[rng.choice(controls, len(perturbed))]
    return result[np.setdiff1d(np.arange(len(label)), controls[n_controls:])].copy()


def errors(train: ad.AnnData, truth: dict, held_out: list[tuple[str, str]], table: str | None) -> tuple[float, float]:
    """Root mean squared error and Pearson correlation of predicted changes of held-out conditions."""
    TahoeST.setup_anndata(train, **KEYS, perturbation_embedding_key=table)
    effects = TahoeST(train, prior="response").predict_effects(
        perturbations=sorted({p for _, p in held_out}), contexts=sorted({c for c, _ in held_out})
    )
    changes = effects.pivot(index=["context", "perturbation"], columns="gene", values="change")[train.var_names]
    predicted = changes.loc[held_out].to_numpy()
    true = np.stack([truth[c].loc[p] for c, p in held_out])
    correlation = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(predicted, true, strict=True)])
    return float(np.sqrt(np.square(predicted - true).mean())), float(correlation)


def run(
    seed: int, n_perturbations: int, n_contexts: int = 3, quiet: float = 0.0, **sizes: int
) -> list[dict[str, object]]:
    """One row for each task of one screen."""
    screen, rows = with_noise(simulate_screen(4, n_perturbations, seed=seed, **sizes), seed, quiet=quiet), []
    screen = screen[screen.obs["context"].isin([f"context_{k}" for k in range(4 - n_contexts, 5)])].copy()
    for task, (held, table) in tasks(screen, seed).items():
        if task.endswith("one-hot") or (n_contexts == 1 and task == "zero-shot"):
            continue
        if n_contexts == 1 and table is None:  # labels alone say nothing of perturbations that are in the noise only
            task, table = f"{task}, informative table", TABLE
        pairs = screen.obs.loc[held, ["context", "perturbation"]].astype(str)
        held_out = sorted(p for p in set(pairs.itertuples(index=False, name=None)) if p[0] != NOISE)
        noise = (screen.obs["context"] == NOISE).to_numpy()
        trains = screen[~held & ~noise].copy(), screen[~held].copy()
        found = [errors(train, screen.uns["true_delta"], held_out, table) for train in trains]
        (before, r_before), (after, r_after) = found
        rows.append(
            {
                "task": task, "RMSE": before, "RMSE with noise": after, "percent": 100 * (after / before - 1),
                "Pearson": r_before, "Pearson with noise": r_after,
            }
        )  # fmt: skip
    return rows


def main() -> None:
    """Print one table: tasks, means over screens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screens", type=int, default=3)
    parser.add_argument("--perturbations", type=int, default=36)
    parser.add_argument("--contexts", type=int, default=3, choices=[1, 2, 3], help="other than that of noise")
    parser.add_argument("--quiet", type=float, default=0.0, help="share of its effects that the context keeps")
    parser.add_argument("--cells", type=int, default=40)
    parser.add_argument("--effect", type=float, default=1.0, help="factor of all effects")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)

    def made(seed: int) -> list[dict[str, object]]:
        sizes = {"n_cells": args.cells, "effect_size": args.effect}
        return run(seed, args.perturbations, args.contexts, args.quiet, **sizes)

    rows = [row for seed in range(args.screens) for row in made(seed)]
    print(pd.DataFrame(rows).groupby("task", sort=False).mean().round(3).to_markdown())


if __name__ == "__main__":
    main()
