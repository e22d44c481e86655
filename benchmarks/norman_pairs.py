"""Pairs that nobody measured, on a real screen: can their cells be predicted better than by adding up their parts?

The Norman screen of the package (K562) has 18 single genes and 15 pairs; both genes of five pairs were measured alone
too. A draw holds out eight pairs: these five, which are scored, and three of the other ten, so that a draw trains on
seven pairs. Draw, seed of the weights and seed of training are one number. Nothing is chosen by the held-out pairs: all
options are the defaults, but for the one that names a row. Scores are those of `evaluate(preset="quick")`; PDS ranks
the true pair among the five.

    python benchmarks/norman_pairs.py --draws 3 --max-steps 400
"""

from __future__ import annotations

import argparse
import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from scvi_tahoe import TahoeST
from scvi_tahoe.datasets import norman_k562
from scvi_tahoe.evaluate import evaluate

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYS = {"perturbation_key": "perturbation", "control": "control"}
METRICS = {"pearson_delta": 1, "discrimination_score_l1": 1, "mae": -1}
SUM = "sum of single deltas"
#: combination and prior of each trained row
VARIANTS = {
    "TahoeST": {},
    "TahoeST, prior='none'": {"prior": "none"},
    "TahoeST, prior='none', combination='learned'": {"prior": "none", "combination": "learned"},
}


def at_mean(start: np.ndarray, changes: dict[str, np.ndarray], genes: pd.DataFrame) -> AnnData:
    """Equal cells at the predicted mean: shifted control cells, clipped at zero, would have another mean."""
    obs = pd.DataFrame({"perturbation": np.repeat(list(changes), 2)}, index=[str(i) for i in range(2 * len(changes))])
    cells = np.repeat([np.maximum(start + change, 0) for change in changes.values()], 2, axis=0)
    return AnnData(cells.astype(np.float32), obs, genes)


def predictions(adata: AnnData, scored: list[str], held_out: list[str], *, seed: int, max_steps: int) -> Iterator:
    """Name and predicted cells of each method."""
    label = adata.obs["perturbation"].astype(str)
    train = adata[~label.isin(held_out)].copy()
    mean = {p: np.asarray(adata.X[(label == p).to_numpy()].mean(0)).ravel() for p in train.obs["perturbation"].unique()}
    change = {p: m - mean["control"] for p, m in mean.items() if p != "control"}
    start, overall = mean["control"], np.mean(list(change.values()), axis=0)
    yield SUM, at_mean(start, {p: sum(change[part] for part in p.split("+")) for p in scored}, adata.var)
    yield "mean of training", at_mean(start, dict.fromkeys(scored, overall), adata.var)
    asked = {"perturbations": scored, "n_cells": 100, "progress": False}
    for name, options in VARIANTS.items():
        options = {"combination": "sum", "prior": "auto", **options}
        TahoeST.setup_anndata(train, **KEYS, combination_separator="+", combination=options["combination"])
        model = TahoeST(train, prior=options["prior"], seed=seed)
        if model.prior != "none":
            yield "prior alone, predict(output='prior')", model.predict(output="prior", **asked)
        model.train(max_steps=max_steps, seed=seed, progress=False)
        yield f"{name} (prior {model.prior!r})" if options["prior"] == "auto" else name, model.predict(**asked)


def main() -> None:
    """Print scores: mean over draws, and in how many draws a method is better than the sum."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--max-steps", type=int, default=400)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    adata = norman_k562()
    label = adata.obs["perturbation"].astype(str)
    pairs = sorted(p for p in set(label) if "+" in p)
    scored = [p for p in pairs if set(p.split("+")) <= set(label)]
    reference = adata[label.isin([*scored, "control"]).to_numpy()].copy()
    rows = []
    for draw in range(args.draws):
        others = [p for p in pairs if p not in scored]
        held_out = [*scored, *np.random.default_rng(draw).choice(others, 8 - len(scored), replace=False)]
        for name, predicted in predictions(adata, scored, held_out, seed=draw, max_steps=args.max_steps):
            result = evaluate(
                predicted, reference, **KEYS, preset="quick", baseline=None, representation_check="off", seed=draw,
            )  # fmt: skip
            scores = {m: float(result.summary.loc[m, "value"]) for m in METRICS}
            rows.append({"method": name, "draw": draw, **scores})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    summary = table.groupby("method", sort=False)[list(METRICS)].mean()
    by_draw = table.set_index(["draw", "method"])
    for metric, sign in METRICS.items():
        better = sign * (by_draw[metric] - by_draw.xs(SUM, level="method")[metric]) > 1e-9
        summary[f"wins, {metric}"] = better.groupby("method").sum()
    print(summary.round(4).to_string())


if __name__ == "__main__":
    main()
