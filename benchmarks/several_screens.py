"""What another screen is worth, and what a harmful one costs: simulated sources, with harm control and without it.

python benchmarks/several_screens.py              # three seeds, about five minutes on one core
python benchmarks/several_screens.py --data-sets  # effects that a data set has of its own, with the kernel and without

One simulated screen of six cell lines is taken apart into three sources of two lines each. The first is the user's: in
its lines, half of the perturbations are not measured, and are predicted. The third source helps (it is what it says),
its labels are shuffled, its changes are those of noise, or their sign is wrong. Errors are root mean squared errors of
the predicted change of mean log1p expression against the true one.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from anndata import AnnData

from scvi_tahoe import TahoeST, concat_screens
from scvi_tahoe.datasets import simulate_screen
from scvi_tahoe.response import ResponseModel

KINDS = ("helps", "shuffled labels", "no effects", "opposite")


def sources(seed: int, kind: str | None) -> tuple[dict[str, AnnData], dict[str, pd.DataFrame], list[str]]:
    """Return the screens, the true changes in the lines of the first, and what is not measured there."""
    whole = simulate_screen(6, 24, n_genes=120, n_cells=25, n_control_cells=150, seed=seed)
    hidden = sorted(set(whole.obs["perturbation"]) - {"control"})[1::2]
    found = {}
    for k, name in enumerate(("mine", "second", "third")):
        lines = [f"context_{2 * k + 1}", f"context_{2 * k + 2}"]
        cells = whole[whole.obs["context"].isin(lines)]
        found[name] = (cells if k else cells[~cells.obs["perturbation"].isin(hidden)]).copy()
    if kind is None:
        del found["third"]
    elif kind != "helps":
        found["third"] = _damaged(found["third"], kind, np.random.default_rng(seed))
    truth = {f"mine: {line}": whole.uns["true_delta"][line] for line in ("context_1", "context_2")}
    return found, truth, hidden


def _damaged(cells: AnnData, kind: str, rng: np.random.Generator) -> AnnData:
    labels = cells.obs["perturbation"].astype(str).to_numpy()
    perturbed = np.flatnonzero(labels != "control")
    if kind == "shuffled labels":  # of whole conditions, otherwise in each line
        for line in cells.obs["context"].unique():
            here = perturbed[cells.obs["context"].to_numpy()[perturbed] == line]
            names = np.unique(labels[here])
            labels[here] = pd.Series(labels[here]).map(dict(zip(names, rng.permutation(names), strict=True)))
        cells.obs["perturbation"] = labels
        return cells
    dense = cells.X.toarray()
    for line in cells.obs["context"].unique():
        here = cells.obs["context"].to_numpy() == line
        controls = np.flatnonzero(here & (labels == "control"))
        mean = dense[controls].mean(axis=0)
        for label in np.unique(labels[here & (labels != "control")]):
            rows = np.flatnonzero(here & (labels == label))
            change = dense[rows].mean(axis=0) - mean
            drawn = dense[rng.choice(controls, len(rows))]
            dense[rows] = drawn if kind == "no effects" else np.maximum(drawn - change, 0)
    return AnnData(dense, obs=cells.obs, var=cells.var, uns=cells.uns)


def error(seed: int, kind: str | None, *, harm_control: bool) -> tuple[float, float]:
    """Return the error of what was not measured in the first source, and the weight of the third."""
    screens, truth, hidden = sources(seed, kind)
    cells = concat_screens(
        screens, perturbation_key="perturbation", control="control", context_key="context", target="mine",
        harm_control=harm_control, progress=False,
    )  # fmt: skip
    TahoeST.setup_anndata(
        cells, "perturbation", "control", context_key="context", source_key="source", weight_key="source_weight"
    )
    found = TahoeST(cells).predict_effects(perturbations=hidden, contexts=list(truth), as_adata=True)
    true = np.stack(
        [truth[c].loc[p].to_numpy() for p, c in zip(found.obs.perturbation, found.obs.context, strict=True)]
    )
    weight = cells.uns["scvi_tahoe_sources"]["weight"].get("third", np.nan)
    return float(np.sqrt(np.mean(np.square(found.X - true)))), float(weight)


def data_set_kernel(seed: int, share: float, *, source_key: str | None) -> float:
    """Return the error in two data sets of three lines each, with some effects that each data set has of its own."""
    shared = simulate_screen(6, 30, n_genes=150, n_cells=2, n_control_cells=2, seed=seed).uns["true_delta"]
    own = simulate_screen(6, 30, n_genes=150, n_cells=2, n_control_cells=2, seed=100 + seed).uns["true_delta"]
    lines, rng = list(shared), np.random.default_rng(seed)
    scale = np.std([d.to_numpy() for d in shared.values()]) / np.std([d.to_numpy() for d in own.values()])
    true = {
        c: np.sqrt(1 - share) * shared[c] + np.sqrt(share) * scale * own[lines[3 * (k // 3)]]
        for k, c in enumerate(lines)
    }
    rows = pd.concat({c: frame if k else frame.iloc[:12] for k, (c, frame) in enumerate(true.items())})
    context = rows.index.get_level_values(0)
    obs = pd.DataFrame({
        "perturbation": rows.index.get_level_values(1), "context": context,
        "source": [f"data set {lines.index(c) // 3}" for c in context],
    }, index=[f"{p} in {c}" for c, p in rows.index])  # fmt: skip
    adata = AnnData(
        rows.to_numpy() + rng.normal(0, 0.15, rows.shape), obs=obs, layers={"variance": np.full(rows.shape, 0.15**2)}
    )
    model = ResponseModel.fit(
        adata, perturbation_key="perturbation", context_key="context", variance_layer="variance", source_key=source_key,
        progress=False,
    )  # fmt: skip
    hidden = true[lines[0]].iloc[12:]
    return float(np.sqrt(np.mean(np.square(model.predict(list(hidden.index), [lines[0]]).X - hidden.to_numpy()))))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data-sets", action="store_true", help="the data-set kernel instead")
    chosen = parser.parse_args()
    n_seeds = chosen.seeds
    if chosen.data_sets:
        for share in (0.0, 0.3, 0.6):
            errors = np.mean(
                [[data_set_kernel(s, share, source_key=k) for k in (None, "source")] for s in range(n_seeds)], axis=0
            )
            print(
                f"own to the data set {share:.0%}: without the kernel {errors[0]:.3f}, with it {errors[1]:.3f}",
                flush=True,
            )
        return
    rows = []
    for seed in range(n_seeds):
        without, _ = error(seed, None, harm_control=False)
        for kind in KINDS:
            naive, _ = error(seed, kind, harm_control=False)
            controlled, weight = error(seed, kind, harm_control=True)
            rows.append({
                "third source": kind, "seed": seed, "error without it": without, "full weight": naive / without - 1,
                "harm control": controlled / without - 1, "its weight": weight,
            })  # fmt: skip
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    print(table.groupby("third source", sort=False).mean().drop(columns="seed").round(3).to_string())


if __name__ == "__main__":
    main()
