"""Does the network on top of a prior of cells do better if it sees labels, and what does it add at all?

On the few-shot task, without looking at its twelve held-out targets: of the targets that are seen in all replicates
half are held out in one replicate, in four folds, and predicted by the prior alone and by networks trained on the rest
with the package's defaults. Every fold trains twice; prints one row a fold and method, and the means. DES hangs on
single genes here: a fold has two or three targets with any DE gene, most of them with one, so that one gene moves the
DES of its fold by a third or a half.

    python benchmarks/prior_network.py
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import pandas as pd
from prior_choices import LABEL, REPLICATE, SEEN, TASK, scores

from scvi_tahoe import TahoeST

METHODS = {"prior alone": None, "network that sees labels": True, "network that does not": False}


def folds() -> list[tuple[str, list[str]]]:
    """(replicate, targets held out there)."""
    order = [str(t) for t in np.random.default_rng(0).permutation(SEEN)]
    return [("rep_3", order[0::2]), ("rep_3", order[1::2]), ("rep_1", order[0::2]), ("rep_2", order[1::2])]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-steps", type=int, default=1000)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = []
    for fold, (replicate, held) in enumerate(folds()):
        train = TASK.train[~((REPLICATE == replicate) & np.isin(LABEL, held))].copy()
        TahoeST.setup_anndata(
            train, perturbation_key=TASK.perturbation_key, control=TASK.control, context_key=TASK.context_key
        )
        for name, sees in METHODS.items():
            model = TahoeST(train, network={"sees_perturbation": bool(sees)})
            if sees is not None:
                model.train(args.max_steps, progress=False)
            output = "prior" if sees is None else "expression"
            found = model.predict(perturbations=held, contexts=[replicate], output=output, progress=False)
            label = found.obs[TASK.perturbation_key].astype(str).to_numpy()
            result = scores({t: np.asarray(found.X)[label == t] for t in held}, replicate)
            best = np.nan if sees is None else model.training_config_["best_step"]
            rows.append({"method": name, "fold": fold, **result, "best step": best})
            print(rows[-1], flush=True)
    print(pd.DataFrame(rows).drop(columns="fold").groupby("method", sort=False).mean().round(4).to_string())


if __name__ == "__main__":
    main()
