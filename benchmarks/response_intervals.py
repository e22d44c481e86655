"""Do intervals of predicted effects hold what they say? Their coverage of true changes, on simulated screens.

Each screen is fitted as a whole by the response model, with an embedding table. A row is a kind of screen; values are
the share of the genes of all conditions whose true change lies within the nominal 90 % interval of `predict_effects`,
from other conditions alone (`use_measured=False`) and with the condition's own measurement. Rows of `few-shot` hold out
perturbations of one context of four, of which few are seen, and count only these; there is no table.

    OMP_NUM_THREADS=1 python benchmarks/response_intervals.py
"""

from __future__ import annotations

import argparse
import logging
import warnings
from itertools import product

import numpy as np
import pandas as pd
from does_the_network_help import EFFECTS, few_shot

from scvi_tahoe import TahoeST
from scvi_tahoe.datasets import simulate_screen

SCREENS = {
    "3 contexts x 24": (3, 24, {}),
    "2 contexts x 40": (2, 40, {}),
    "4 contexts x 60, 15 cells": (4, 60, {"n_cells": 15}),
    "3 contexts x 24, weak effects": (3, 24, {"effect_size": 0.3}),
    "1 context x 60": (1, 60, {}),
}


def coverage(model: TahoeST, truth: dict, *, use_measured: bool) -> float:
    """Share of true changes in the interval of 90 %."""
    effects = model.predict_effects(use_measured=use_measured)
    conditions = effects[["context", "perturbation"]].drop_duplicates().itertuples(index=False)
    true = np.concatenate([truth[context].loc[name].to_numpy() for context, name in conditions])
    return float((np.abs(effects["change"].to_numpy() - true) <= 1.645 * effects["sd"].to_numpy()).mean())


def main() -> None:
    """Print one row for each kind of screen, means over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screens", type=int, default=2)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    rows = []
    for name, (n_contexts, n_perturbations, sizes) in SCREENS.items():
        for seed in range(args.screens):
            screen = simulate_screen(n_contexts, n_perturbations, n_genes=100, seed=seed, **sizes)
            keys = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}
            TahoeST.setup_anndata(screen, **keys, perturbation_embedding_key="perturbation_embedding")
            model, truth = TahoeST(screen, prior="response"), screen.uns["true_delta"]
            found = {way: coverage(model, truth, use_measured=way == "measured") for way in ("from others", "measured")}
            rows.append({"screen": name, **found})
    for (name, options), share in product(EFFECTS.items(), (0.08, 0.3, 0.6)):
        for seed in range(args.screens):
            task = few_shot(name, share, seed, **options)
            TahoeST.setup_anndata(task.train, **task.keys)
            effects = TahoeST(task.train, prior="response").predict_effects(
                perturbations=[p for _, p in task.held_out], contexts=["context_4"]
            )
            conditions = effects[["context", "perturbation"]].drop_duplicates().itertuples(index=False)
            apart = np.abs(effects["change"] - np.concatenate([task.truth[tuple(key)] for key in conditions]))
            held_out = float((apart <= 1.645 * effects["sd"]).mean())
            rows.append({"screen": f"few-shot {share:.0%}{name}", "from others": held_out})
    print(pd.DataFrame(rows).groupby("screen", sort=False).mean().round(3).to_markdown())


if __name__ == "__main__":
    main()
