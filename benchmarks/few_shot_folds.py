"""Choose training options on the few-shot task without looking at its twelve held-out targets.

The targets that are seen in replicate 3 are held out in turn: each fold predicts some of them there from the rest.
Prints one row a variant: means over folds and seeds of the quick scores.

    python benchmarks/few_shot_folds.py --variants base,delta --seeds 1 --max-steps 1000
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe import FewShotContext, FractionSplit, TahoeST
from scvi_tahoe.datasets import papalexi_few_shot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scvi_tahoe.datasets import FewShotTask

VARIANTS: dict[str, dict] = json.loads(Path(__file__).with_name("few_shot_variants.json").read_text())
METRICS = (
    "overlap_at_N",
    "discrimination_score_l1",
    "pds_cosine",
    "pearson_delta",
    "pearson_systema",
    "mae",
    "de_direction_match",
    "effect_size_ratio",
    "variance_ratio",
    "zero_fraction_difference",
)


def folds(task: FewShotTask) -> Iterator[tuple[list[str], list[str]]]:
    """(pseudo-test targets, validation targets) of each fold."""
    obs = task.train.obs
    here = obs[task.context_key] == task.context
    counts = obs.loc[here, task.perturbation_key].value_counts()
    seen = sorted(p for p in counts.index if p != task.control and counts[p] >= 20)
    order = np.random.default_rng(0).permutation(seen)
    for k in range(2):
        test = sorted(order[k::2])
        rest = [p for p in order if p not in test]
        yield test, rest[:2]


def run(
    task: FewShotTask, fold: tuple[list[str], list[str]], variant: dict, *, seed: int, max_steps: int, preset: str
) -> dict:
    """Scores of one training."""
    test, validation = fold
    obs = task.train.obs
    held = (obs[task.context_key] == task.context) & obs[task.perturbation_key].isin(test)
    controls = (obs[task.context_key] == task.context) & (obs[task.perturbation_key] == task.control)
    train, reference = task.train[~held].copy(), task.train[held | controls].copy()
    TahoeST.setup_anndata(
        train, perturbation_key=task.perturbation_key, control=task.control, context_key=task.context_key
    )
    model = TahoeST(train, seed=seed, **variant.get("model", {}))
    start = time.perf_counter()
    splits = {
        "few_shot": FewShotContext(context=task.context, validation=validation),
        "fraction": FractionSplit(validation=0.1),
    }
    model.train(
        split=splits[variant.get("split", "few_shot")], seed=seed, progress=False,
        **{"max_steps": max_steps, **variant.get("train", {})},
    )  # fmt: skip
    seconds = time.perf_counter() - start
    result = model.evaluate(reference, preset=preset, seed=seed, progress=False, baselines=False,
                            representation_check="warn")  # fmt: skip
    summary = result.summary
    return {m: summary.loc[m, "value"] for m in METRICS if m in summary.index} | {
        "seconds": seconds, "best_step": model.training_config_["best_step"],
    }  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--max-steps", type=int, default=1000)
    parser.add_argument("--preset", default="vcc2025", help="quick runs without cell-eval")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    task = papalexi_few_shot()
    for name in args.variants.split(","):
        rows = [
            run(task, fold, VARIANTS[name], seed=seed, max_steps=args.max_steps, preset=args.preset)
            for fold in folds(task)
            for seed in range(args.seeds)
        ]
        means = {k: float(np.mean([r[k] for r in rows])) for k in rows[0]}
        print(f"{name:<24}" + "  ".join(f"{k} {v:.4f}" for k, v in means.items()), flush=True)


if __name__ == "__main__":
    main()
