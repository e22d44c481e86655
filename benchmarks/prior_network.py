"""Does the network on top of a prior of cells do better if it sees labels, and what does it add at all?

On the few-shot task, without looking at its twelve held-out targets: of the targets that are seen in all replicates
half are held out in one replicate, in four folds, and predicted by the prior alone and by networks trained on the rest
with the package's defaults. Prints one row a fold, seed and method, and the means. DES hangs on single genes here: a
fold has two or three targets with any DE gene, most of them with one, so that one gene moves the DES of its fold by a
third or a half.

    python benchmarks/prior_network.py                  # labels or none: trains eight networks
    python benchmarks/prior_network.py --share --seeds 3  # how much of the correction to keep: trains twelve
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import pandas as pd
import torch
from prior_choices import LABEL, REPLICATE, SEEN, TASK, scores

from scvi_tahoe import TahoeST

METHODS = {"prior alone": None, "network that sees labels": True, "network that does not": False}


def folds() -> list[tuple[str, list[str]]]:
    """(replicate, targets held out there)."""
    order = [str(t) for t in np.random.default_rng(0).permutation(SEEN)]
    return [("rep_3", order[0::2]), ("rep_3", order[1::2]), ("rep_1", order[0::2]), ("rep_2", order[1::2])]


def predicted(model: TahoeST, held: list[str], replicate: str, output: str) -> dict[str, np.ndarray]:
    """Cells of each target."""
    found = model.predict(perturbations=held, contexts=[replicate], output=output, progress=False)
    label = found.obs[TASK.perturbation_key].astype(str).to_numpy()
    return {t: np.asarray(found.X)[label == t] for t in held}


def multiply_correction(model: TahoeST, factor: float) -> None:
    """Multiply what the network adds to its prior."""
    with torch.no_grad():
        for parameter in model.module.network.head.project.layers[-1].parameters():
            parameter.mul_(factor)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--share", action="store_true", help="of the correction, instead of labels")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows: list[dict[str, object]] = []
    for seed in range(args.seeds):
        for fold, (replicate, held) in enumerate(folds()):
            train = TASK.train[~((REPLICATE == replicate) & np.isin(LABEL, held))].copy()
            TahoeST.setup_anndata(
                train, perturbation_key=TASK.perturbation_key, control=TASK.control, context_key=TASK.context_key
            )

            def add(name: str, model: TahoeST, output: str = "expression", **more: float) -> None:
                result = scores(predicted(model, held, replicate, output), replicate)  # noqa: B023 (called here)
                rows.append({"method": name, "fold": fold, "seed": seed, **result, **more})  # noqa: B023
                print(rows[-1], flush=True)

            if args.share:
                model = TahoeST(train, seed=seed)
                model.train(args.max_steps, seed=seed, progress=False)
                add("prior alone", model, "prior", share=0.0)
                share = model.training_config_["correction_share"]
                add("the share that validates (chosen)", model, share=share)
                now = share
                for fixed in (0.25, 0.5, 0.75, 1.0):
                    multiply_correction(model, fixed / now)
                    add(f"{fixed:.0%} of the correction", model, share=fixed)
                    now = fixed
                continue
            for name, sees in METHODS.items():
                model = TahoeST(train, network={"sees_perturbation": bool(sees)}, seed=seed)
                if sees is None:
                    add(name, model, "prior")
                else:
                    model.train(args.max_steps, seed=seed, progress=False)
                    add(name, model, **{"best step": model.training_config_["best_step"]})
    table = pd.DataFrame(rows).drop(columns=["fold", "seed"])
    print(table.groupby("method", sort=False).mean().round(4).to_string())


if __name__ == "__main__":
    main()
