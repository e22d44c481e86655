"""Exact baselines of the few-shot task, and how scores depend on the number of predicted cells.

    python benchmarks/exact_baselines.py            # all control cells, scaled to the wanted means
    python benchmarks/exact_baselines.py --numbers  # half, once and twice as many cells as observed

About one and two minutes on two cores.
"""

from __future__ import annotations

import argparse
import warnings

import anndata
import numpy as np

from scvi_tahoe.datasets import papalexi_few_shot
from scvi_tahoe.evaluate import EvaluationReference, EvaluationWarning, baseline_prediction, evaluate

METRICS = ["overlap_at_N", "discrimination_score_l1", "mae", "pearson_delta", "overall"]


def exact(task, keys) -> None:
    """Print the scores of baselines with every control cell, and with as many cells as observed."""
    reference = EvaluationReference.from_adata(task.held_out, baseline_from=task.train, ceiling=False, **keys)
    cells = baseline_prediction("train_mean", task.held_out, task.train, n_cells="all", **keys)
    for match_cells in (False, True):
        result = evaluate(cells, reference, match_cells=match_cells)
        print(f"\n{'as many cells as observed' if match_cells else 'all control cells'}")
        print(result.baselines.loc[result.baselines.index != "prediction", METRICS].round(4).to_string())


def numbers(task, keys) -> None:
    """Print overall scores of predictions with the same means and other numbers of cells."""
    reference = EvaluationReference.from_adata(task.held_out, baseline_from=task.train, ceiling=False, **keys)
    labels = task.held_out.obs[task.perturbation_key].astype(str)
    n_observed = labels.value_counts()
    for name in ("context_transfer", "deviation"):
        every = baseline_prediction(name, task.held_out, task.train, n_cells="all", **keys)
        target = every.obs[task.perturbation_key].astype(str).to_numpy()
        for times in (0.5, 1, 2):
            scores = {True: [], False: []}
            for seed in range(5):
                prediction = _some(every, target, {p: int(times * n_observed[p]) for p in task.targets}, seed)
                for match_cells, found in scores.items():
                    result = evaluate(prediction, reference, match_cells=match_cells, baselines=False)
                    found.append(result.vcc["overall"])
            given, matched = (f"{np.mean(scores[m]):.1f} (sd {np.std(scores[m], ddof=1):.1f})" for m in (False, True))
            print(f"| `{name}` | {times:g} | {given} | {matched} |", flush=True)


def _some(cells, target, n_cells, seed):
    """Choose cells of each target, and scale genes to the mean of all of its cells."""
    rng = np.random.default_rng(seed)
    parts = []
    for name, n in n_cells.items():
        block = cells[target == name]
        rows = np.sort(rng.choice(block.n_obs, n, replace=n > block.n_obs))
        part = block[rows].copy()
        part.obs_names_make_unique()
        own, wanted = part.X.mean(axis=0), block.X.mean(axis=0)
        part.X = part.X * np.divide(wanted, own, out=np.zeros_like(own), where=own > 0)
        parts.append(part)
    return anndata.concat(parts, index_unique="-")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numbers", action="store_true", help="Vary the number of predicted cells.")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", EvaluationWarning)
    few_shot = papalexi_few_shot()
    labels = {name: getattr(few_shot, name) for name in ("perturbation_key", "control", "context_key")}
    (numbers if arguments.numbers else exact)(few_shot, labels)
