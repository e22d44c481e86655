"""How well can the targets of the few-shot task be told apart at all? PDS of real cells predicting real cells.

Some of the cells of each of the twelve targets stand for the truth and others, never the same, for the prediction: a
prediction from the right perturbation in the right context, which only has the noise of its number of cells. Prints PDS
and error for shares of both, and where PDS goes as cells grow, doubling by doubling. Then the default model: which
targets it confuses, and what noise that is added to its predictions does to its scores. No model and no option is
chosen here; the cells that are looked at are those that the task scores.

    python benchmarks/discrimination_limit.py
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import pandas as pd

from scvi_tahoe import TahoeST
from scvi_tahoe.datasets import papalexi_few_shot
from scvi_tahoe.evaluate import discrimination_score_l1

SHARES = (0.125, 0.25, 0.5, 0.75)


def draw(
    cells: list[np.ndarray], control: np.ndarray, own_gene: np.ndarray, shares: tuple[float, float], rng
) -> tuple[np.ndarray, float]:
    """PDS of each target and MAE of one draw, for shares of the cells that predict and are predicted."""
    predicted, observed = [], []
    for block in cells:
        order = rng.permutation(len(block))
        first, second = (round(share * len(block)) for share in shares)
        predicted.append(block[order[:first]].mean(0))
        observed.append(block[order[first : first + second]].mean(0))
    p, o = np.stack(predicted), np.stack(observed)
    return discrimination_score_l1(p - control, o - control, own_gene), np.abs(p - o).mean()


def predicted_means(task) -> np.ndarray:
    """Means of the targets as the default model predicts them, trained with all defaults, ``[targets, G]``."""
    TahoeST.setup_anndata(
        task.train, perturbation_key=task.perturbation_key, control=task.control, context_key=task.context_key
    )
    model = TahoeST(task.train, seed=0)
    model.train(seed=0, progress=False)
    predicted = model.predict(perturbations=list(task.targets), contexts=[task.context], seed=0, progress=False)
    label = predicted.obs[task.perturbation_key].astype(str).to_numpy()
    return np.stack([predicted.X[label == t].mean(0, dtype=np.float64) for t in task.targets])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    task = papalexi_few_shot()
    label = task.held_out.obs[task.perturbation_key].astype(str).to_numpy()
    expression = task.held_out.X.toarray().astype(np.float64)
    cells = [expression[label == t] for t in task.targets]
    control = expression[label == task.control].mean(0)
    own_gene = task.held_out.var_names.get_indexer(list(task.targets))
    print(f"cells of a target: {min(map(len, cells))} to {max(map(len, cells))}")
    rng = np.random.default_rng(0)
    pds, mae = (pd.DataFrame(index=SHARES, columns=SHARES, dtype=float) for _ in range(2))
    for predicting in SHARES:
        for truth in SHARES:
            if predicting + truth <= 1:
                draws = [draw(cells, control, own_gene, (predicting, truth), rng) for _ in range(args.draws)]
                pds.loc[predicting, truth] = np.mean([p for p, _ in draws])
                mae.loc[predicting, truth] = np.mean([e for _, e in draws])
    for name, table in (("PDS", pds), ("MAE", mae)):
        table.index.name = f"{name}: share that predicts / share that is predicted"
        print(table.to_markdown(floatfmt=".4f"), end="\n\n")
    rows = []
    for ratio in (1, 2, 3, 7):
        shares = [s for s in (0.0625, 0.125, 0.25, 0.5) if s * (ratio + 1) <= 1]
        of_share = [
            np.mean([draw(cells, control, own_gene, (ratio * s, s), rng)[0] for _ in range(args.draws)]) for s in shares
        ]
        step = of_share[-1] - of_share[-2]
        whole = of_share[-1] + step * np.log2(1 / shares[-1])
        rows.append((ratio, shares[-1], of_share[-1], step, whole))
    columns = ["cells that predict, of those predicted", "share predicted", "PDS", "gained by doubling", "at all cells"]
    print(
        pd.DataFrame(rows, columns=columns).to_markdown(index=False, floatfmt=("g", "g", ".3f", ".3f", ".3f")),
        end="\n\n",
    )

    means, truth = predicted_means(task), np.stack([block.mean(0) for block in cells])

    def pds_of(predicted: np.ndarray) -> np.ndarray:
        return discrimination_score_l1(predicted - control, truth - control, own_gene)

    n = len(cells)
    halves = np.mean([draw(cells, control, own_gene, (0.5, 0.5), rng)[0] for _ in range(args.draws)], axis=0)
    of_target = pd.DataFrame(
        {
            "cells": [len(block) for block in cells],
            "targets nearer to its prediction": n * (1 - pds_of(means)),
            "to half of its cells, of the other halves": n * (1 - halves),
        },
        index=list(task.targets),
    ).sort_values("cells")
    print(of_target.to_markdown(floatfmt=("", "g", ".0f", ".1f")), end="\n\n")
    noisy = []
    for sd in (0, 0.05, 0.1, 0.2):
        found = [means + sd * rng.normal(size=means.shape) for _ in range(args.draws if sd else 1)]
        noisy.append((sd, np.mean([pds_of(m) for m in found]), np.mean([np.abs(m - truth).mean() for m in found])))
    columns = ["standard deviation of the noise", "PDS", "MAE"]
    print(pd.DataFrame(noisy, columns=columns).to_markdown(index=False, floatfmt=("g", ".3f", ".4f")))


if __name__ == "__main__":
    main()
