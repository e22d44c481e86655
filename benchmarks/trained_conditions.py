"""What does a prior do to conditions that the model *was* trained on? Asked of the Norman screen, half by half.

The cells of every condition are halved at random. A model is trained on one half and predicts the conditions it was
trained on; the other half is the truth. A prior predicts every condition from others, also the trained ones; without it
the network learns each condition from its own cells. The first row is what the cells of the first half say themselves.
Draw, seed of the weights and of training are one number.

    python benchmarks/trained_conditions.py --draws 3 --max-steps 400
"""

from __future__ import annotations

import argparse
import logging
import warnings

import numpy as np
import pandas as pd

from scvi_tahoe import TahoeST
from scvi_tahoe.datasets import norman_k562

CONTROL = "control"
VARIANTS = {
    "TahoeST": {},
    "TahoeST, prior='none'": {"prior": "none"},
}


def means(expression, label: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """Mean cell of each condition."""
    dense = np.asarray(expression.toarray() if hasattr(expression, "toarray") else expression)
    return {name: dense[label == name].mean(0, dtype=np.float64) for name in names}


def main() -> None:
    """Print mean scores over draws, by kind of condition."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--max-steps", type=int, default=400)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    adata = norman_k562()
    label = adata.obs["perturbation"].astype(str).to_numpy()
    names = sorted(set(label) - {CONTROL})
    kinds = {n: "single" if "+" not in n else "pair of measured parts" for n in names}
    kinds |= {n: "other pair" for n in names if "+" in n and not set(n.split("+")) <= set(names)}
    rows = []
    for draw in range(args.draws):
        rng = np.random.default_rng(draw)
        first = np.zeros(len(label), dtype=bool)
        for name in [CONTROL, *names]:
            cells = rng.permutation(np.flatnonzero(label == name))
            first[cells[: len(cells) // 2]] = True
        truth = means(adata.X[~first], label[~first], names)
        start = means(adata.X[first], label[first], [CONTROL])[CONTROL]
        predicted = {"the first half itself": means(adata.X[first], label[first], names)}
        for name, options in VARIANTS.items():
            train = adata[first].copy()
            TahoeST.setup_anndata(train, "perturbation", CONTROL, combination_separator="+")
            model = TahoeST(train, seed=draw, **options)
            model.train(args.max_steps, seed=draw, progress=False)
            found = model.predict(perturbations=names, n_cells=100, progress=False)
            predicted[name] = means(found.X, found.obs["perturbation"].astype(str).to_numpy(), names)
        for method, of_name in predicted.items():
            for name in names:
                change, wanted = of_name[name] - start, truth[name] - start
                rows.append(
                    {
                        "method": method,
                        "kind": kinds[name],
                        "Pearson": np.corrcoef(change, wanted)[0, 1],
                        "MAE": np.abs(change - wanted).mean(),
                    }
                )
        print(f"draw {draw} done", flush=True)
    table = pd.DataFrame(rows).groupby(["kind", "method"], sort=False).mean().round(4)
    print(table.unstack("kind").swaplevel(axis=1).sort_index(axis=1, level=0, sort_remaining=False).to_string())
    print(pd.Series(kinds).value_counts().to_dict())


if __name__ == "__main__":
    main()
