"""A cell type of which only controls were measured, in screens of several cell types that express different genes.

``python benchmarks/new_cell_types.py`` simulates raw counts of cell types with expression profiles of their own, and of
one or a few perturbations that multiply the rates of genes, partly alike in all cell types. Each of three cell types is
held out in turn, but for its controls. Printed are the mean absolute error and the Pearson correlation of the change of
mean log1p expression, for the response model that ``TahoeST`` starts from and for the exact mean of the changes in the
other cell types, with the 95 % interval of the difference over screens. The last column is the mean over screens of the
power of the scale on which contexts are compared, 0 where one is left to train on: nothing can choose it then.
"""

from __future__ import annotations

import argparse

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp

from scvi_tahoe import TahoeST

KEYS = {"perturbation_key": "perturbation", "control": "control", "context_key": "cell_type"}


def screen(n_types: int, n_perturbations: int, n_genes: int, seed: int) -> ad.AnnData:
    """Log1p of normalised counts; cell types differ in expression, strength of the response, and number of cells."""
    rng = np.random.default_rng(seed)
    usual = rng.lognormal(-1, 1.5, n_genes)
    shape = (n_perturbations, n_genes)
    common = np.where(rng.random(shape) < 0.12, rng.normal(1, 1.2, shape), 0)
    blocks, labels = [], []
    for cell_type in range(n_types):
        profile = usual * rng.lognormal(0, 0.9, n_genes) * (rng.random(n_genes) < 0.8)
        own = np.where(rng.random(shape) < 0.06, rng.normal(0, 0.7, shape), 0)
        strength = rng.uniform(0.5, 1.4)
        for k in range(-1, n_perturbations):
            rate = profile if k < 0 else profile * np.exp(strength * (common[k] + own[k]))
            if k >= 0:  # what nobody expressed before is switched on, too
                rate = rate + 0.02 * strength * (common[k] > 0)
            n = int(rng.integers(30, 500))
            mean = rng.lognormal(np.log(1800), 0.4, n)[:, None] * rate / rate.sum()
            blocks.append(sp.csr_matrix(rng.poisson(mean * rng.gamma(4, 1 / 4, mean.shape)).astype(np.float32)))
            labels += [(f"type {cell_type}", "control" if k < 0 else f"perturbation {k}")] * n
    obs = pd.DataFrame(labels, columns=["cell_type", "perturbation"], index=[f"cell {i}" for i in range(len(labels))])
    adata = ad.AnnData(sp.vstack(blocks, format="csr"), obs=obs, var=pd.DataFrame(index=gene_names(n_genes)))
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


def gene_names(n_genes: int) -> list[str]:
    """Names that no perturbation has."""
    return [f"gene {i}" for i in range(n_genes)]


def scores(adata: ad.AnnData, held_out: str) -> pd.DataFrame:
    """Errors and correlations of each perturbation in a cell type without its perturbed cells."""
    groups = adata.obs.groupby(["cell_type", "perturbation"], observed=True).indices
    means = {pair: np.asarray(adata.X[rows].mean(axis=0)).ravel() for pair, rows in groups.items()}
    types = sorted({cell_type for cell_type, _ in means})
    labels = sorted({label for _, label in means} - {"control"})
    held = (adata.obs["cell_type"] == held_out) & (adata.obs["perturbation"] != "control")
    train = adata[~held.to_numpy()].copy()
    TahoeST.setup_anndata(train, **KEYS)
    model = TahoeST(train)
    changes = model.predict_effects(perturbations=labels, contexts=[held_out], as_adata=True)
    power = _power(model)
    rows = []
    for label in labels:
        truth = means[held_out, label] - means[held_out, "control"]
        others = [means[t, label] - means[t, "control"] for t in types if t != held_out]
        predicted = np.asarray(changes.X[(changes.obs["perturbation"] == label).to_numpy()]).ravel()
        row = {"power": power}
        for name, change in {"model": predicted, "mean elsewhere": np.mean(others, axis=0)}.items():
            row |= {f"MAE {name}": np.abs(change - truth).mean(), f"r {name}": np.corrcoef(change, truth)[0, 1]}
        rows.append(row)
    return pd.DataFrame(rows)


def _power(model: TahoeST) -> float:
    """Power that the report names; 0 if it names none."""
    _, found, rest = model.response_report().attrs["text"].partition("to the power of ")
    return float(rest.split(".\n")[0].rstrip(".")) if found else 0.0


def main() -> None:
    """Print one row for each number of cell types and perturbations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screens", type=int, default=5)
    parser.add_argument("--genes", type=int, default=1500)
    arguments = parser.parse_args()
    table = []
    for n_types, n_perturbations in ((7, 1), (5, 4), (3, 12), (2, 12)):
        found = []
        for seed in range(arguments.screens):
            adata = screen(n_types, n_perturbations, arguments.genes, seed)
            found.append(pd.concat([scores(adata, f"type {k}") for k in range(min(3, n_types))]).mean())
        of_screens = pd.DataFrame(found)
        row: dict[str, object] = {"cell types": n_types, "perturbations": n_perturbations}
        for score, sign in (("MAE", -1), ("r", 1)):
            model, rule = of_screens[f"{score} model"], of_screens[f"{score} mean elsewhere"]
            ahead = sign * (model - rule)
            half = 1.96 * ahead.std(ddof=1) / np.sqrt(len(ahead))
            row |= {f"{score} model": f"{model.mean():.4f}", f"{score} mean elsewhere": f"{rule.mean():.4f}"}
            row |= {
                f"{score} ahead by": f"{ahead.mean():+.4f} [{ahead.mean() - half:+.4f}, {ahead.mean() + half:+.4f}]"
            }
        table.append(row | {"power": f"{of_screens['power'].mean():.2f}"})
    print(pd.DataFrame(table).to_markdown(index=False))


if __name__ == "__main__":
    main()
