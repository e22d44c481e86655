"""Draw docs/_static/plots: the picture that each function of scvi_tahoe.pl makes, for its API page.

python docs/draw_plots.py scvi-tahoe-demo    # after `make demo`
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad

from scvi_tahoe import TahoeST, datasets, pl, screen_quality
from scvi_tahoe.effects import dose_response, hill, interactions
from scvi_tahoe.evaluate import EvaluationReference, EvaluationResult, baseline_results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOTS = Path(__file__).parent / "_static" / "plots"


def pairs() -> AnnData:
    """Interactions of the pairs of a real screen."""
    screen = datasets.norman_k562()
    TahoeST.setup_anndata(
        screen,
        perturbation_key="perturbation",
        control="control",
        combination_separator="+",
    )
    return interactions(TahoeST(screen).predict_effects(as_adata=True))


def doses() -> Figure:
    """Dose responses of a gene to two simulated drugs."""
    rng, doses = (
        np.random.default_rng(0),
        np.tile([0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30], 2),
    )
    drugs = np.repeat(["drug A", "drug B"], 8)
    change = np.concatenate(
        [hill(doses[:8], 1.2, 0.3, 1.5), hill(doses[:8], -0.8, 4, 1)]
    )
    obs = pd.DataFrame(
        {"drug": drugs, "dose": doses},
        index=[f"{d} {x}" for d, x in zip(drugs, doses, strict=True)],
    )
    noisy = (change + rng.normal(0, 0.05, 16))[:, None]
    measured = AnnData(
        noisy,
        obs=obs,
        var=pd.DataFrame(index=["MDM2"]),
        layers={"sd": np.full_like(noisy, 0.05)},
    )
    fits = dose_response(measured, ["MDM2"], perturbation_key="drug", dose_key="dose")
    return pl.dose_response(measured, fits, "MDM2")


def main(demo: Path) -> None:
    result = EvaluationResult.load(demo / "evaluation")
    task = datasets.papalexi_few_shot()
    keys = {
        "perturbation_key": task.perturbation_key,
        "control": task.control,
        "context_key": task.context_key,
    }
    reference = EvaluationReference.from_adata(
        task.held_out, baseline_from=task.train, **keys
    )
    TahoeST.setup_anndata(task.train, **keys)
    model = TahoeST(task.train)
    changes = model.predict_effects(
        perturbations=["JAK2"], contexts=["rep_1"], as_adata=True
    )
    first = task.train[task.train.obs[task.context_key] == "rep_1"].copy()
    figures = {
        "bars": pl.bars(result),
        "cells": pl.cells(result),
        "deltas": pl.deltas(result, max_panels=4, n_columns=2),
        "fold_changes": pl.fold_changes(result, "JAK2"),
        "ranks": pl.ranks(result),
        "similarity": pl.similarity(result),
        "comparison": pl.comparison(baseline_results(reference, preset="quick")),
        "volcano": pl.volcano(changes, changes.obs_names[0]),
        "ranked": pl.ranked(changes, changes.obs_names[0]),
        "condition_map": pl.condition_map(
            model.get_condition_embedding(), task.context_key
        ),
        "knock_downs": pl.knock_downs(screen_quality(first, **keys)),
        "learning_rate_test": model.find_learning_rate().plot(),
        "interactions": pl.interactions(pairs()),
        "dose_response": doses(),
        "umap": pl.umap(
            {
                "observed": task.held_out,
                "predicted": read_h5ad(demo / "prediction.h5ad"),
            },
            task.perturbation_key,
            labels=["JAK2", "IFNGR1", "SMAD4", "BRD4"],
        ),
    }
    PLOTS.mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(PLOTS / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
