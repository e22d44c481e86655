"""Where the limit of the alarm on collapsed predictions comes from.

``python benchmarks/collapse_alarm.py`` prints how much larger the mean cosine of "predicted" deltas is than that of
observed ones, for the shipped screens. Random halves of each condition stand for a perfect prediction and the observed
cells; the faults replace the deltas of the first half. Predictions lack the sampling noise of observed cells, so it is
added to the lengths of predicted deltas; the mean of the screen and its first components stand for predictions without
noise. The check of ``predict`` and ``evaluate`` warns above 0.2.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from scvi_tahoe.datasets import norman_k562, papalexi_thp1
from scvi_tahoe.evaluate import check_collapse, mean_cosine

FEWEST = 30


def deltas(adata, label, control, rows, most, rng):
    """Delta of each perturbation from at most so many of these cells, ``[P, G]``."""
    expression = adata.X.toarray()
    mean = {}
    for name in np.unique(label):
        own = rng.permutation(np.flatnonzero(rows & (label == name)))
        mean[name] = expression[own if name == control else own[:most]].mean(axis=0)
    return np.stack([m - mean[control] for name, m in mean.items() if name != control])


def noise(adata, label, control, rows, most):
    """Squared length that the sampling of at most so many cells adds to a delta, as the alarm has it."""
    expression, found = adata.X.toarray(), []
    for name in np.unique(label[label != control]):
        own = expression[np.flatnonzero(rows & (label == name))]
        found.append(own.var(axis=0, ddof=1).sum() / min(most, len(own)))
    return np.mean(found)


def excess(delta_PG, observed, squared):
    """How much more alike deltas are than observed ones, beyond noise of this squared length."""
    return check_collapse(delta_PG, observed, noise=squared).value


def denoised(delta_PG, n):
    """The mean and the first components of the deltas."""
    mean = delta_PG.mean(axis=0)
    u, s, v = np.linalg.svd(delta_PG - mean, full_matrices=False)
    return mean + (u[:, :n] * s[:n]) @ v[:n]


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
    added = noise(adata, label, control, ~half, most)
    mean = full.mean(axis=0)
    length = np.linalg.norm(full, axis=1, keepdims=True) / np.linalg.norm(mean)
    return {
        "observed": observed,
        "as many cells": excess(same, observed, added),
        "all cells of its half": excess(full, observed, added),
        "five components": excess(denoised(full, 5), observed, added),
        "half own, half mean": excess((full + mean) / 2, observed, added),
        "mean, own strength": excess(mean * length, observed, added),
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
