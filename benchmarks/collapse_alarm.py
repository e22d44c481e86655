"""Where the limit of the alarm on collapsed predictions comes from.

``python benchmarks/collapse_alarm.py`` prints how much larger the mean cosine of "predicted" deltas is than that of
observed ones, for the shipped screens. Random halves of each condition stand for a perfect prediction and the observed
cells; the faults replace the deltas of the first half. The alarm warns above 0.25.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from scvi_tahoe.datasets import norman_k562, papalexi_thp1
from scvi_tahoe.evaluate import mean_cosine

FEWEST = 30


def deltas(adata, label, control, rows, most, rng):
    """Delta of each perturbation from at most so many of these cells, ``[P, G]``."""
    expression = adata.X.toarray()
    mean = {}
    for name in np.unique(label):
        own = rng.permutation(np.flatnonzero(rows & (label == name)))
        mean[name] = expression[own if name == control else own[:most]].mean(axis=0)
    return np.stack([m - mean[control] for name, m in mean.items() if name != control])


def differences(adata, key, control, most, seed):
    """Difference of mean cosines for a perfect prediction and for faulty ones."""
    rng = np.random.default_rng(seed)
    label = adata.obs[key].astype(str).to_numpy()
    counts = pd.Series(label).value_counts()
    adata, label = (x[np.isin(label, counts.index[counts >= 2 * FEWEST])] for x in (adata, label))
    half = rng.random(len(label)) < 0.5
    observed = mean_cosine(deltas(adata, label, control, ~half, most, rng))
    same = deltas(adata, label, control, half, most, rng)
    full = deltas(adata, label, control, half, None, rng)
    mean = full.mean(axis=0)
    length = np.linalg.norm(full, axis=1, keepdims=True) / np.linalg.norm(mean)
    return {
        "observed": observed,
        "as many cells": mean_cosine(same) - observed,
        "all cells of its half": mean_cosine(full) - observed,
        "half own, half mean": mean_cosine((full + mean) / 2) - observed,
        "mean, own strength": mean_cosine(mean * length) - observed,
    }


def main():
    """Print the table: mean over five draws, and the largest of those that should pass."""
    screens = {
        "Papalexi": (papalexi_thp1(), "perturbation", "non-targeting"),
        "Norman": (norman_k562(), "perturbation", "control"),
    }
    rows = {}
    for name, (adata, key, control) in screens.items():
        for most in (30, 64, 128):
            draws = pd.DataFrame([differences(adata, key, control, most, seed) for seed in range(5)])
            rows[name, most] = {**draws.mean(), "largest that should pass": draws.iloc[:, 1:3].max().max()}
    table = pd.DataFrame(rows).T.rename_axis(["screen", "observed cells of a condition"])
    print(table.round(2).to_string())


if __name__ == "__main__":
    main()
