"""When should a screen of one context get a prior of cells? Simulated pairs whose parts were all measured.

16 single perturbations and 24 pairs of them in one context; all perturbed cells share a change, single effects add up
to 85 % in a pair, and a pair changes some genes that neither part changes. Ten pairs are held out and scored against
their observed means.

    python benchmarks/simulated_pairs.py --screens 2 --max-steps 400
"""

from __future__ import annotations

import argparse
import logging
import warnings

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scvi_tahoe import TahoeST

N_SINGLES, N_PAIRS, N_GENES, N_CELLS, DEPTH = 16, 24, 200, 80, 1000


def simulate_pairs(seed: int) -> AnnData:
    """A screen of control cells, singles and pairs; log1p of normalised negative binomial counts."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=N_GENES)
    shared = rng.normal(0, 0.3, N_GENES) * (rng.random(N_GENES) < 0.3)
    effect = rng.normal(0, 0.8, (N_SINGLES, N_GENES)) * (rng.random((N_SINGLES, N_GENES)) < 0.15)
    change = {"control": np.zeros(N_GENES)} | {f"P{i}": effect[i] + shared for i in range(N_SINGLES)}
    pairs = np.array([(i, j) for i in range(N_SINGLES) for j in range(i)])
    for i, j in rng.choice(pairs, N_PAIRS, replace=False):
        own = rng.normal(0, 0.5, N_GENES) * (rng.random(N_GENES) < 0.08)
        change[f"P{i}+P{j}"] = 0.85 * (effect[i] + effect[j]) + shared + own
    label = np.repeat(list(change), N_CELLS)
    rate = np.exp(base + np.stack([change[p] for p in label]))
    mean = DEPTH * rate / rate.sum(1, keepdims=True) * rng.lognormal(0, 0.25, (len(label), 1))
    counts = rng.poisson(mean * rng.gamma(4, 1 / 4, mean.shape))
    expression = np.log1p(counts * (DEPTH / counts.sum(1, keepdims=True))).astype(np.float32)
    obs = pd.DataFrame({"perturbation": label}, index=[str(i) for i in range(len(label))])
    return AnnData(sparse.csr_matrix(expression), obs)


def run(adata: AnnData, *, seed: int, max_steps: int) -> dict[str, tuple[float, float]]:
    """Pearson and absolute error of the change of held-out pairs, for each method."""
    label = adata.obs["perturbation"]
    held_out = np.random.default_rng(seed).choice(sorted(p for p in set(label) if "+" in p), 10, replace=False)
    mean = {p: np.asarray(adata.X[(label == p).to_numpy()].mean(0)).ravel() for p in set(label)}
    change = {p: m - mean["control"] for p, m in mean.items()}
    train = adata[~label.isin(held_out).to_numpy()].copy()
    TahoeST.setup_anndata(train, perturbation_key="perturbation", control="control", combination_separator="+")

    def scores(predicted: dict[str, np.ndarray]) -> tuple[float, float]:
        correlation = [np.corrcoef(predicted[p], change[p])[0, 1] for p in held_out]
        return float(np.mean(correlation)), float(np.mean([np.abs(predicted[p] - change[p]) for p in held_out]))

    def of_model(model: TahoeST, output: str) -> tuple[float, float]:
        cells = model.predict(perturbations=list(held_out), n_cells=100, output=output, progress=False)
        rows = cells.obs.groupby("perturbation", observed=True).indices
        return scores({p: np.asarray(cells.X[rows[p]].mean(0)).ravel() - mean["control"] for p in held_out})

    result = {"sum of single deltas": scores({p: sum(change[part] for part in p.split("+")) for p in held_out})}
    for prior in ("none", "cells"):
        model = TahoeST(train, prior=prior, seed=seed)
        if prior == "cells":
            result["prior alone"] = of_model(model, "prior")
        model.train(max_steps=max_steps, seed=seed, progress=False)
        result[f"TahoeST, prior={prior!r}"] = of_model(model, "expression")
    return result


def main() -> None:
    """Print the mean over screens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--screens", type=int, default=2)
    parser.add_argument("--max-steps", type=int, default=400)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    results = []
    for seed in range(args.screens):
        results.append(pd.DataFrame(run(simulate_pairs(seed), seed=seed, max_steps=args.max_steps)).T)
        results[-1].columns = ["pearson", "mae"]
        print(results[-1].round(4).to_string(), flush=True)
    print(pd.concat(results).groupby(level=0, sort=False).mean().round(4).to_string())


if __name__ == "__main__":
    main()
