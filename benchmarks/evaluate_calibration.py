"""Where the limits of the checks come from: what they measure on replicates, and on predictions with a known fault.

``python benchmarks/evaluate_calibration.py`` prints a table, one line a check: its value between two random halves of
observed cells (which should pass), between replicates of an experiment (which should pass), and for predictions that
have the fault the check looks for (which should not).
"""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pandas as pd

from scvi_tahoe.datasets import norman_k562, papalexi_few_shot, papalexi_thp1
from scvi_tahoe.evaluate import EvaluationReference, baseline_prediction, evaluate

CHECKS = [
    "gene profile",
    "scale of single conditions",
    "scale",
    "spread of totals",
    "zeros",
    "spread of cells",
    "effect size",
    "mode collapse",
    "controls",
    "number of DE genes",
]


def checks_of(prediction, reference, **kwargs):
    """Value of every check."""
    options = {"preset": "vcc2025", "baseline": None, "representation_check": "off", **kwargs}
    return evaluate(prediction, reference, baselines=False, **options).checks["value"].reindex(CHECKS)


def halves(adata, key, control, context_key, seed):
    """Two random halves of a screen, controls divided too."""
    half = np.random.default_rng(seed).random(adata.n_obs) < 0.5
    first, second = adata[half].copy(), adata[~half].copy()
    reference = EvaluationReference.from_adata(
        second, perturbation_key=key, control=control, context_key=context_key, ceiling=False
    )
    return checks_of(first, reference, control_cells="predicted")


def replicates(adata, seen, truth):
    """One replicate of Papalexi as the prediction of another."""
    frames = [adata[adata.obs["bio_rep"] == name].copy() for name in (seen, truth)]
    reference = EvaluationReference.from_adata(
        frames[1], perturbation_key="perturbation", control="non-targeting", ceiling=False
    )
    return checks_of(frames[0], reference, control_cells="predicted")


def faulty(task):
    """Predictions of the few-shot task with one fault each, beside baselines that have it by nature."""
    keys = {"perturbation_key": task.perturbation_key, "control": task.control, "context_key": task.context_key}
    reference = EvaluationReference.from_adata(task.held_out, ceiling=False, **keys)
    good = baseline_prediction("cells_quantile", task.held_out, task.train, **keys)
    control = np.asarray(task.held_out[task.held_out.obs[task.perturbation_key] == task.control].X.mean(axis=0))
    labels = good.obs[task.perturbation_key].astype(str).to_numpy()
    means = {p: good.X[labels == p].mean(axis=0) for p in np.unique(labels)}
    rng = np.random.default_rng(0)
    thinned = rng.binomial(np.round(np.expm1(good.X)).astype(int), 0.2)
    variants = {
        "total x 10": np.log1p(10 * np.expm1(good.X)),
        "log1p twice": np.log1p(good.X),
        "5 x shallower, not normalised": np.log1p(thinned),
        "total x 1.15": np.log1p(1.15 * np.expm1(good.X)),
        "genes moved by one": np.roll(good.X, 1, axis=1),
        "log1p twice in one condition": np.where((labels == "MYC")[:, None], np.log1p(good.X), good.X),
        "total x 10 in one condition": np.where((labels == "MYC")[:, None], np.log1p(10 * np.expm1(good.X)), good.X),
        "mean of each condition": np.stack([means[p] for p in labels]),
        "effects x 5": np.maximum(good.X + 4 * (np.stack([means[p] for p in labels]) - control), 0),
        "effects x 0.2": np.maximum(good.X - 0.8 * (np.stack([means[p] for p in labels]) - control), 0),
    }
    table = {"cells_quantile (good)": checks_of(good, reference)}
    for name, matrix in variants.items():
        table[name] = checks_of(anndata.AnnData(matrix.astype(np.float32), obs=good.obs, var=good.var), reference)
    for name in ("control", "train_mean", "context_transfer"):
        table[name] = checks_of(baseline_prediction(name, task.held_out, task.train, **keys), reference)
    controls = task.held_out[task.held_out.obs[task.perturbation_key] == task.control].copy()
    controls.X = controls.X.toarray() + np.where(np.arange(controls.n_vars) % 5 == 0, 0.2, 0)
    both = anndata.concat([good, controls])
    both.obs_names_make_unique()
    table["own controls, shifted on a fifth"] = checks_of(both, reference, control_cells="predicted")
    return table


def main():
    """Print the table."""
    warnings.simplefilter("ignore")
    papalexi, norman = papalexi_thp1(), norman_k562()
    mixed = {
        "replicates as one": (papalexi, "bio_rep", "non-targeting"),
        "cell lines as one": (norman_k562(all_lines=True), "cell_type", "control"),
    }
    for name, (screen, column, control) in mixed.items():
        screen.obs["context"] = screen.obs[column]
        reference = EvaluationReference.from_adata(
            screen, perturbation_key="perturbation", control=control, ceiling=False
        )
        print(f"contexts, {name}: {reference.context_checks[0].value:.1f}")
        del screen.obs["context"]
    table = {
        f"Papalexi, halves {seed}": halves(papalexi, "perturbation", "non-targeting", "bio_rep", seed)
        for seed in (0, 1, 2)
    }
    table |= {f"Norman, halves {seed}": halves(norman, "perturbation", "control", None, seed) for seed in (0, 1, 2)}
    pairs = [("rep_1", "rep_2"), ("rep_2", "rep_3"), ("rep_3", "rep_1")]
    table |= {f"Papalexi, {seen} for {truth}": replicates(papalexi, seen, truth) for seen, truth in pairs}
    table |= faulty(papalexi_few_shot())
    print(pd.DataFrame(table).T.round(2).to_string())


if __name__ == "__main__":
    main()
