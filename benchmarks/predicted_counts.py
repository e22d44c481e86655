"""Counts from predictions beside observed ones: rounding and Poisson draws, on the Papalexi few-shot task.

``python benchmarks/predicted_counts.py --steps 400`` trains one model without and one with the prior ``"cells"``,
predicts the twelve held-out targets, and prints, as the mean over targets of the median over genes with a mean above
0.2 counts, the ratio of predicted to observed mean (after division by library size) and variance-to-mean ratio, the
ratio of the median library size to that of the control cells, and the difference of the shares of zeros.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np

from scvi_tahoe import TahoeST
from scvi_tahoe.datasets import papalexi_few_shot


def moments(predicted, observed, controls):
    """Means, dispersions and library sizes of one condition, predicted over observed; difference of zeros."""
    genes = observed.mean(axis=0) > 0.2
    mean = predicted.mean(axis=0) / predicted.sum(axis=1).mean()
    wanted = observed.mean(axis=0) / observed.sum(axis=1).mean()
    fano, wanted_fano = (x.var(axis=0)[genes] / np.maximum(x.mean(axis=0)[genes], 1e-9) for x in (predicted, observed))
    return [
        np.median(predicted.sum(axis=1)) / np.median(controls.sum(axis=1)),
        np.median(mean[genes] / wanted[genes]),
        np.median(fano / wanted_fano),
        (predicted == 0).mean() - (observed == 0).mean(),
    ]


def main():
    """Train, predict, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=400)
    steps = parser.parse_args().steps
    warnings.simplefilter("ignore")
    task = papalexi_few_shot()
    key, held_out = task.perturbation_key, task.held_out
    labels = held_out.obs[key].astype(str).to_numpy()
    observed = held_out.layers["counts"].toarray()
    controls = observed[labels == task.control]
    of_cell = dict(zip(held_out.obs_names, observed.sum(axis=1)))
    rng = np.random.default_rng(0)
    print(f"{'':40s} library  mean  variance/mean  zeros")
    for prior in ("none", "cells"):
        train = task.train.copy()
        TahoeST.setup_anndata(train, perturbation_key=key, control=task.control, context_key=task.context_key)
        model = TahoeST(train, prior=prior)
        model.train(max_steps=steps, progress=False)
        ask = {"perturbations": task.targets, "contexts": [task.context], "progress": False}
        expression = model.predict(held_out, **ask)
        linear = np.expm1(np.maximum(expression.X, 0).astype(np.float64))
        total = np.array([of_cell[name] for name in expression.obs["origin"]])
        rate = linear / linear.sum(axis=1, keepdims=True) * total[:, None]
        found = {
            'predict(output="counts")': model.predict(
                held_out, output="counts", counts_layer="counts", **ask
            ).X.toarray(),
            "rounded, library size of the origin": np.floor(rate + rng.random(rate.shape)),
            "Poisson, library size of the origin": rng.poisson(rate),
        }
        asked = expression.obs[key].astype(str).to_numpy()
        for name, counts in found.items():
            rows = [moments(counts[asked == t], observed[labels == t], controls) for t in task.targets]
            library, mean, fano, zeros = np.mean(rows, axis=0)
            print(f"prior={prior:6s} {name:36s} {library:.2f}  {mean:.2f}  {fano:.2f}  {zeros:+.3f}")


if __name__ == "__main__":
    main()
