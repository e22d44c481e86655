"""What an ensemble of three seeds brings on the few-shot task, and what its uncertainty is worth.

``python benchmarks/ensembles.py --folder FOLDER`` trains three models (or loads them, if it was run before) and prints
scores of the twelve held-out targets. Half of the targets that are seen in the context validate; scores are thus lower
than where two do.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from scvi_tahoe import FewShotContext, TahoeEnsemble, TahoeST
from scvi_tahoe.datasets import papalexi_few_shot

METRICS = ["mae", "pearson_delta", "effect_size_ratio", "discrimination_score_l1"]


def trained(task, folder: Path, max_steps: int) -> TahoeEnsemble:
    """Three members, each with the transfer prior."""
    adata = task.train
    TahoeST.setup_anndata(
        adata, perturbation_key=task.perturbation_key, control=task.control, context_key=task.context_key
    )
    if folder.exists():
        return TahoeEnsemble.load(folder, adata)
    here = adata.obs.loc[adata.obs[task.context_key] == task.context, task.perturbation_key].value_counts()
    seen = sorted(p for p in here.index if here[p] >= 20 and p != task.control)
    ensemble = TahoeEnsemble.train(
        adata, seeds=(0, 1, 2), model_kwargs={"prior": "transfer"}, max_steps=max_steps, progress=False,
        split=FewShotContext(context=task.context, validation=seen[::2]),
    )  # fmt: skip
    ensemble.save(folder)
    return ensemble


def main():
    """Print scores and the correlation of uncertainty with error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("ensembles"))
    parser.add_argument("--max-steps", type=int, default=400)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    task = papalexi_few_shot()
    ensemble = trained(task, options.folder / "ensemble", options.max_steps)
    quick = {"preset": "quick", "progress": False}
    scores = {f"seed {i}": m.evaluate(task.held_out, **quick).summary["value"] for i, m in enumerate(ensemble.models)}
    result = ensemble.evaluate(task.held_out, **quick)
    scores["ensemble"] = result.summary["value"]
    print(pd.DataFrame(scores).T[METRICS].round(4).to_string())

    predicted = ensemble.predict(
        task.held_out, perturbations=list(task.targets), contexts=[task.context], progress=False
    )
    table = predicted.uns["scvi_tahoe_ensemble"].set_index(task.perturbation_key)
    effects = ensemble.evaluate(task.held_out, predicted, **quick).effects
    order = [p for _, p in effects.conditions]
    size = np.linalg.norm(effects.observed, axis=1)
    table["error"] = pd.Series(np.linalg.norm(effects.predicted - effects.observed, axis=1) / size, index=order)
    print(table.round(3).to_string())
    print("Spearman of uncertainty and relative error:", spearmanr(table["uncertainty"], table["error"]).statistic)
    print(
        "the same of predicted effect size, for comparison:", spearmanr(table["effect_size"], table["error"]).statistic
    )
    error_KG = np.abs(effects.predicted - effects.observed)
    sd_KG = predicted.varm["ensemble_sd"].T[[list(table.index).index(p) for p in order]]
    by_gene = [spearmanr(e, s).statistic for e, s in zip(error_KG, sd_KG)]
    print("Spearman of standard deviation and error over genes, median of conditions:", np.median(by_gene))


if __name__ == "__main__":
    main()
