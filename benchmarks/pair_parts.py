"""How much to keep of what the parts of a combination do? Asked of single perturbations alone; no pair is looked at.

The cells of the 18 single genes of the Norman screen are halved at random, ten times. Of any two genes, what they do
together is predicted from one half as the prior does it (``anchors + keep * d_A + keep * d_B``), and compared with the
plain sum in the other half, which nobody shrank. PDS ranks the true sum among all 153.

    python benchmarks/pair_parts.py
"""

from __future__ import annotations

import argparse
from itertools import combinations

import numpy as np
import pandas as pd

from scvi_tahoe.datasets import norman_k562

CONTROL = "control"


def ways_to_keep(difference: dict, noise: dict, parts: tuple[str, str]) -> dict[str, dict[str, np.ndarray]]:
    """Share of each gene's difference that is kept of both parts, in several ways."""
    squares = np.stack([np.square(difference[p]) - noise[p] for p in difference])
    usual = np.maximum(squares.mean(0), 0)

    def garrote(p: str) -> np.ndarray:
        return np.maximum(0, 1 - noise[p] / np.maximum(np.square(difference[p]), 1e-12))

    def bayes(p: str, *, by_strength: bool) -> np.ndarray:
        own = (np.square(difference[p]) - noise[p]).sum()
        expected = usual * (max(own, 0) / max(usual.sum(), 1e-12) if by_strength else 1)
        return expected / np.maximum(expected + noise[p], 1e-12)

    return {
        "everything": {p: np.ones_like(usual) for p in parts},
        "garrote": {p: garrote(p) for p in parts},
        "empirical Bayes by gene": {p: bayes(p, by_strength=False) for p in parts},
        "empirical Bayes by gene and strength": {p: bayes(p, by_strength=True) for p in parts},
        "mean of garrote and Bayes by gene": {p: (garrote(p) + bayes(p, by_strength=False)) / 2 for p in parts},
        "mean of garrote and Bayes by gene and strength (chosen)": {
            p: (garrote(p) + bayes(p, by_strength=True)) / 2 for p in parts
        },
        "the larger of garrote and Bayes by gene and strength": {
            p: np.maximum(garrote(p), bayes(p, by_strength=True)) for p in parts
        },
    }


def together(mean: dict, variance: dict, parts: tuple[str, str], singles: list[str]) -> tuple[np.ndarray, dict, dict]:
    """Mean of the anchors, which are all but the parts and the controls; every gene's difference from it; its noise."""
    anchors = [p for p in (*singles, CONTROL) if p not in parts]
    middle = np.mean([mean[p] for p in anchors], axis=0)
    of_middle = np.sum([variance[p] for p in anchors], axis=0) / len(anchors) ** 2
    return middle, {p: mean[p] - middle for p in singles}, {p: variance[p] + of_middle for p in singles}


def scores(predicted: dict, truth: dict, start: np.ndarray) -> dict[str, float]:
    """Mean Pearson correlation of changes, PDS and absolute error."""
    pearson = [np.corrcoef(predicted[k] - start, truth[k] - start)[0, 1] for k in truth]
    everything = np.stack(list(truth.values()))
    nearer = []
    for i, cells in enumerate(predicted[k] for k in truth):
        distance = np.abs(everything - cells).sum(1)
        nearer.append((distance < distance[i]).mean())
    error = [np.abs(predicted[k] - truth[k]).mean() for k in truth]
    return {"Pearson": np.mean(pearson), "PDS": 1 - np.mean(nearer), "MAE": np.mean(error)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=10)
    args = parser.parse_args()
    adata = norman_k562()
    label = adata.obs["perturbation"].astype(str).to_numpy()
    expression = adata.X.toarray()
    singles = sorted(p for p in set(label) if "+" not in p and p != CONTROL)
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(args.draws):
        halves: list[tuple[dict, dict]] = [({}, {}), ({}, {})]
        for p in (*singles, CONTROL):
            cells = rng.permutation(np.flatnonzero(label == p))
            for (mean, variance), chosen in zip(halves, np.array_split(cells, 2), strict=True):
                mean[p], variance[p] = expression[chosen].mean(0), expression[chosen].var(0) / len(chosen)
        predicted: dict[str, dict] = {}
        truth = {}
        for parts in combinations(singles, 2):
            middle, difference, _ = together(*halves[1], parts, singles)
            truth[parts] = middle + difference[parts[0]] + difference[parts[1]]
            middle, difference, noise = together(*halves[0], parts, singles)
            for name, keep in ways_to_keep(difference, noise, parts).items():
                sum_of_parts = np.sum([keep[p] * difference[p] for p in parts], axis=0)
                predicted.setdefault(name, {})[parts] = np.maximum(middle + sum_of_parts, 0)
            mean = halves[0][0]
            plain = mean[parts[0]] + mean[parts[1]] - mean[CONTROL]
            predicted.setdefault("sum of changes from the controls", {})[parts] = np.maximum(plain, 0)
        start = halves[0][0][CONTROL]
        rows += [{"kept of the parts": name, **scores(p, truth, start)} for name, p in predicted.items()]
    print(pd.DataFrame(rows).groupby("kept of the parts", sort=False).mean().round(4).to_markdown())


if __name__ == "__main__":
    main()
