"""A newcomer's screen from raw counts to scores, all defaults: what the package says on the way.

``python benchmarks/newcomer.py`` simulates a screen of the shape of Datlinger et al. 2021 (Nature Methods 18, 635): raw
counts, 20 targets in unstimulated and stimulated cells, few of which do anything, 53 and 136 control cells. In each
fold, four targets are held out among the stimulated cells. Printed are scores, every warning and refusal, and the mean
absolute error of the effect for the model, for what it started from, and for two lines of arithmetic.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp

from scvi_tahoe import TahoeEnsemble, TahoeST

CONTEXTS = {"unstimulated": 53, "stimulated": 136}
KEYS = {"perturbation_key": "target", "control": "NTC", "context_key": "condition"}
HELD_OUT = "stimulated"


def raw_counts(n_genes: int, n_targets: int = 20, seed: int = 0) -> ad.AnnData:
    """Counts of a screen; a third of the targets acts, alike in both conditions and more where cells are stimulated."""
    rng = np.random.default_rng(seed)
    targets = [f"GENE{i:04}" for i in range(n_targets)]
    share = rng.lognormal(0, 1.6, n_genes)
    stimulation = np.where(rng.random(n_genes) < 0.1, rng.normal(0, 1, n_genes), 0)
    programmes = rng.normal(0, 1, (3, n_genes)) * (rng.random((3, n_genes)) < 0.05)
    activity = rng.normal(0, 1, (n_targets, 3)) * (rng.random((n_targets, 1)) < 0.35)
    effects = activity @ programmes
    effects[np.arange(n_targets), np.arange(n_targets)] -= 1.5  # of a target's own gene
    blocks, labels = [], []
    for context, n_controls in CONTEXTS.items():
        strength, shift = (1.0, stimulation) if context == HELD_OUT else (0.4, 0 * stimulation)
        for i, target in enumerate(["NTC", *targets]):
            n = n_controls if target == "NTC" else int(rng.integers(20, 130))
            rate = share * np.exp(shift + (0 if target == "NTC" else strength * effects[i - 1]))
            depth = rng.lognormal(np.log(2500), 0.45, n)
            mean = depth[:, None] * rate / rate.sum()
            blocks.append(sp.csr_matrix(rng.poisson(mean * rng.gamma(3, 1 / 3, mean.shape)).astype(np.float32)))
            labels += [(target, context)] * n
    obs = pd.DataFrame(labels, columns=["target", "condition"], index=[f"cell_{i}" for i in range(len(labels))])
    return ad.AnnData(sp.vstack(blocks, format="csr"), obs=obs, var=pd.DataFrame(index=gene_names(n_genes)))


def gene_names(n_genes: int) -> list[str]:
    """Names of genes, the targets first."""
    return [f"GENE{i:04}" for i in range(n_genes)]


def folds(targets: list[str], n_folds: int, seed: int = 0) -> list[list[str]]:
    """Targets held out in each fold."""
    order = np.random.default_rng(seed).permutation(targets)
    return [sorted(map(str, part)) for part in np.array_split(order, 5)][:n_folds]


def mean_of(adata: ad.AnnData, target: str, context: str) -> np.ndarray:
    """Mean expression of a condition."""
    rows = ((adata.obs["target"] == target) & (adata.obs["condition"] == context)).to_numpy()
    return np.asarray(adata.X[rows].mean(axis=0)).ravel()


def errors(
    predicted: dict[str, ad.AnnData], train: ad.AnnData, held_out: ad.AnnData, targets: list[str]
) -> pd.DataFrame:
    """Absolute error of the effect of each held-out target, mean over genes, by what predicts it."""
    seen = sorted(set(train.obs["target"]) - {"NTC"} - set(targets))
    control = mean_of(train, "NTC", HELD_OUT)
    here = np.mean([mean_of(train, target, HELD_OUT) - control for target in seen], axis=0)
    found: dict[str, list[float]] = {}
    other = next(context for context in CONTEXTS if context != HELD_OUT)
    for target in targets:
        truth = mean_of(held_out, target, HELD_OUT)
        own = mean_of(train, target, other) - mean_of(train, "NTC", other)
        guesses = {name: mean_of(cells, target, HELD_OUT) for name, cells in predicted.items()}
        guesses |= {"mean of the seen": control + here, "own change elsewhere": control + own}
        for name, guess in guesses.items():
            found.setdefault(name, []).append(np.abs(guess - truth).mean())
    return pd.DataFrame(found, index=targets)


def interval(difference: np.ndarray) -> tuple[float, float]:
    """Bootstrap a 95 % interval of the mean over targets."""
    draws = np.random.default_rng(0).integers(len(difference), size=(2000, len(difference)))
    low, high = np.quantile(difference[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def told(what: str, call, said: Counter):
    """Carry out a step, and count what it says."""
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            result = call()
        except (ValueError, KeyError, TypeError) as error:
            said[f"{what} REFUSED: {error}"] += 1
            result = None
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            said[f"{what}: {warning.message}"] += 1
    print(f"  {what}: {time.perf_counter() - start:.0f} s", flush=True)
    return result


def main() -> None:
    """Print what a newcomer sees."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--max-steps", type=int, help="of training; default: the package's")
    parser.add_argument("--ensemble", action="store_true", help="also train three seeds in the first fold")
    args = parser.parse_args()
    adata = raw_counts(args.genes)
    print(f"{adata.n_obs:,} cells of {adata.n_vars:,} genes", adata.obs["condition"].value_counts().to_dict())
    said: Counter = Counter()
    told("setup of raw counts", lambda: TahoeST.setup_anndata(adata.copy(), **KEYS), said)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    steps = {} if args.max_steps is None else {"max_steps": args.max_steps}
    rows, by_target = [], []
    for number, targets in enumerate(folds(sorted(set(adata.obs["target"]) - {"NTC"}), args.folds)):
        here = adata.obs["condition"] == HELD_OUT
        out = (here & adata.obs["target"].isin(targets)).to_numpy()
        train = adata[~out].copy()
        held_out = adata[out | (here & (adata.obs["target"] == "NTC")).to_numpy()].copy()
        print(f"fold {number}: {targets}")
        told("setup", lambda train=train: TahoeST.setup_anndata(train, **KEYS), said)
        model = TahoeST(train)
        told("train", lambda model=model: model.train(**steps, progress=False), said)
        asked = {"perturbations": targets, "contexts": [HELD_OUT], "progress": False}
        predicted = {
            name: told(f"predict, {name}", lambda model=model, options=options: model.predict(**options), said)
            for name, options in {"model": asked, "start": {**asked, "output": "prior"}}.items()
        }
        told("predict everything", lambda model=model: model.predict(n_cells=50, progress=False), said)
        result = told("evaluate", lambda model=model, cells=held_out: model.evaluate(cells), said)
        told(
            "evaluate the prediction",
            lambda model=model, cells=held_out, made=predicted["model"]: model.evaluate(cells, made),
            said,
        )
        row = errors({name: made for name, made in predicted.items() if made is not None}, train, held_out, targets)
        by_target.append(row)
        overall = np.nan if result is None or result.vcc is None else result.vcc["overall"]
        rows.append({"overall": overall, **row.mean().to_dict()})
        if args.ensemble and number == 0:
            options = {**steps, "progress": False}
            ensemble = told("train three seeds", lambda t=train, o=options: TahoeEnsemble.train(t, **o), said)
            if ensemble is not None:
                told("predict with an ensemble", lambda one=ensemble, asked=asked: one.predict(**asked), said)
    print(pd.DataFrame(rows).rename_axis("fold").round(4).to_string())
    every = pd.concat(by_target)
    for rule in ("mean of the seen", "own change elsewhere"):
        low, high = interval((every["start"] - every[rule]).to_numpy())
        print(f"error of the start minus that of the {rule}, {len(every)} targets: {low:+.4f} to {high:+.4f}")
    print("\nWhat the package said, and how often:")
    for text, n in said.items():
        print(f"{n} x {text}\n")


if __name__ == "__main__":
    main()
