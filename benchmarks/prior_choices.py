"""Choose how the prior of cells is made, on the few-shot task, without looking at its twelve held-out targets.

The targets that are seen in all three replicates are held out in turn: in each of them half are predicted from the
other two, with the other half as what is seen there. Prints one row a variant, means over replicates and draws of the
halves. The last rows are the package's own prior, alone and with the network that corrects it.

    python benchmarks/prior_choices.py
    python benchmarks/prior_choices.py --network 300
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from scipy.stats import false_discovery_control, mannwhitneyu

from scvi_tahoe import TahoeST
from scvi_tahoe.data import Condition
from scvi_tahoe.datasets import papalexi_few_shot
from scvi_tahoe.response._marginals import Population, move_between, with_marginals

TASK = papalexi_few_shot()
LABEL = TASK.train.obs[TASK.perturbation_key].astype(str).to_numpy()
REPLICATE = TASK.train.obs[TASK.context_key].astype(str).to_numpy()
EXPRESSION = TASK.train.X.toarray()
REPLICATES = sorted(set(REPLICATE))
N_GENES = EXPRESSION.shape[1]


def cells(target: str, replicate: str) -> np.ndarray:
    """Observed cells."""
    return EXPRESSION[(LABEL == target) & (REPLICATE == replicate)]


# controls are targets like any other here
SEEN = [t for t in sorted(set(LABEL) - {TASK.control}) if len(cells(t, TASK.context)) >= 20]
CONTROLS = {r: cells(TASK.control, r) for r in REPLICATES}


def de_genes(group: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Genes with a Wilcoxon false discovery rate below 5 %, the largest fold change first."""
    rate = false_discovery_control(np.nan_to_num(mannwhitneyu(group, control, axis=0).pvalue, nan=1.0))
    change = np.abs(np.log2((np.expm1(group).mean(0) + 1e-9) / (np.expm1(control).mean(0) + 1e-9)))
    found = np.flatnonzero(rate < 0.05)
    return found[np.argsort(-change[found])]


TRUE_DE = {(t, r): de_genes(cells(t, r), CONTROLS[r]) for t in SEEN for r in REPLICATES}


def scores(predicted: dict[str, np.ndarray], replicate: str) -> dict[str, float]:
    """Overlap of DE genes, PDS, MAE and Pearson of the deltas."""
    truth = np.stack([cells(t, replicate).mean(0) for t in predicted])
    means = np.stack([block.mean(0) for block in predicted.values()])
    control = CONTROLS[replicate].mean(0)
    distance = np.abs(means[:, None] - truth[None]).sum(-1)
    overlap = []
    for target, block in predicted.items():
        if len(true := TRUE_DE[target, replicate]):
            found = de_genes(block, CONTROLS[replicate])[: len(true)]
            overlap.append(len(set(found) & set(true)) / len(true))
    return {
        "DES": float(np.mean(overlap)),
        "PDS": float(1 - (distance < np.diag(distance)[:, None]).mean()),
        "MAE": float(np.abs(means - truth).mean()),
        "Pearson": float(np.mean([np.corrcoef(m - control, t - control)[0, 1] for m, t in zip(means, truth)])),
    }


def halves(n_draws: int) -> Iterator[tuple[str, list[str], list[str], np.random.Generator]]:
    """(replicate, predicted targets, seen targets, random numbers)."""
    for replicate in REPLICATES:
        for draw in range(n_draws):
            order = np.random.default_rng(100 + draw).permutation(SEEN)
            for k in range(2):
                yield replicate, list(order[k::2]), list(order[1 - k :: 2]), np.random.default_rng((draw, k))


# ---------------------------------------------------------------- variants

Keep = Callable[[np.ndarray, np.ndarray], np.ndarray]  # difference and its noise [G] -> share to keep [G]


def garrote(strength: float) -> Keep:
    """1 - strength * noise / difference^2, where positive."""
    return lambda d, s: np.clip(1 - strength * s / np.maximum(d**2, 1e-12), 0, 1)


def constant(share: float) -> Keep:
    """The same share of every gene."""
    return lambda d, s: np.full(N_GENES, share)


def james_stein(d: np.ndarray, s: np.ndarray) -> np.ndarray:
    """One share for all genes of a target."""
    return np.full(N_GENES, max(0.0, 1 - s.sum() / np.square(d).sum()))


def anchor_groups(kind: str, replicate: str, seen: list[str]) -> list[np.ndarray]:
    """Groups of cells that stand for a replicate, each as much as the next."""
    targets = [cells(t, replicate) for t in seen]
    return {"controls": [CONTROLS[replicate]], "seen": targets, "both": [*targets, CONTROLS[replicate]]}[kind]


def predict(
    targets: list[str],
    seen: list[str],
    replicate: str,
    rng: np.random.Generator,
    *,
    anchors: str,
    keep: Keep,
    drawn: bool,
) -> dict[str, np.ndarray]:
    """Cells of targets moved from the other replicates through the anchors."""

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values.T, dtype=np.float32))

    groups = {r: anchor_groups(anchors, r, seen) for r in REPLICATES}
    quantiles = {}
    for r, parts in groups.items():
        weight = np.concatenate([np.full(len(p), 1 / len(p)) for p in parts])
        quantiles[r] = Population.of(tensor(np.concatenate(parts))).quantiles(torch.from_numpy(weight))
    others = [r for r in REPLICATES if r != replicate]
    predicted = {}
    for target in targets:
        share = np.array([len(cells(target, r)) for r in others]) / sum(len(cells(target, r)) for r in others)
        difference, noise, pool = np.zeros(N_GENES), np.zeros(N_GENES), []
        for w, r in zip(share, others):
            own, parts = cells(target, r), groups[r]
            difference += w * (own.mean(0) - np.mean([p.mean(0) for p in parts], axis=0))
            of_anchors = np.sum([p.var(0) / len(p) for p in parts], axis=0) / len(parts) ** 2
            noise += w**2 * (own.var(0) / len(own) + of_anchors)
            moved = tensor(own)
            pool.append(
                move_between(moved, quantiles[r], quantiles[replicate], torch.from_numpy(rng.random(moved.shape)))
            )
        pool_GM, n = torch.cat(pool, 1), len(cells(target, replicate))
        chosen = rng.choice(pool_GM.shape[1], n, replace=n > pool_GM.shape[1])
        result = pool_GM[:, torch.from_numpy(chosen)]
        if not drawn:
            kept = torch.from_numpy(keep(difference, noise))
            draw = torch.from_numpy(rng.random(result.shape))
            result = with_marginals(result, pool_GM, quantiles[replicate], kept, draw)
        predicted[target] = result.T.numpy()
    return predicted


VARIANTS: dict[str, dict] = {
    "cells drawn, moved through the controls": {"anchors": "controls", "keep": constant(1), "drawn": True},
    "cells drawn, moved through the seen targets": {"anchors": "seen", "keep": constant(1), "drawn": True},
    "cells drawn, moved through both": {"anchors": "both", "keep": constant(1), "drawn": True},
    "quantiles instead of draws, through the controls": {"anchors": "controls", "keep": constant(1), "drawn": False},
    "quantiles, through the seen targets": {"anchors": "seen", "keep": constant(1), "drawn": False},
    "quantiles, through both": {"anchors": "both", "keep": constant(1), "drawn": False},
    "both, 70 % of every difference": {"anchors": "both", "keep": constant(0.7), "drawn": False},
    "both, James-Stein by target": {"anchors": "both", "keep": james_stein, "drawn": False},
    "both, garrote 0.5": {"anchors": "both", "keep": garrote(0.5), "drawn": False},
    "both, garrote 1 (chosen)": {"anchors": "both", "keep": garrote(1), "drawn": False},
    "both, garrote 2": {"anchors": "both", "keep": garrote(2), "drawn": False},
    "both, garrote 4": {"anchors": "both", "keep": garrote(4), "drawn": False},
    "seen targets, garrote 1": {"anchors": "seen", "keep": garrote(1), "drawn": False},
    "controls, garrote 1": {"anchors": "controls", "keep": garrote(1), "drawn": False},
}


def with_package(
    targets: list[str], replicate: str, *, steps: int, lr: float | None = None, sees_perturbation: bool = False
) -> dict[str, dict[str, np.ndarray]]:
    """Predictions of the package: the prior alone and, after ``steps`` of training, the model."""
    train = TASK.train[~((REPLICATE == replicate) & np.isin(LABEL, targets))].copy()
    TahoeST.setup_anndata(
        train, perturbation_key=TASK.perturbation_key, control=TASK.control, context_key=TASK.context_key
    )
    model, predicted = TahoeST(train, network={"sees_perturbation": sees_perturbation}), {}
    sizes = {Condition(replicate, t): len(cells(t, replicate)) for t in targets}
    if steps:
        model.train(steps, lr=lr, progress=False)
    for output in ("prior", "expression") if steps else ("prior",):
        found = model.predict(perturbations=targets, contexts=[replicate], n_cells=sizes, output=output, progress=False)
        labels = found.obs[TASK.perturbation_key].astype(str).to_numpy()
        predicted[output] = {t: np.asarray(found.X)[labels == t] for t in targets}
    return predicted


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2, help="of the halves, in each replicate")
    parser.add_argument("--network", type=int, default=0, help="also train this many steps, at several rates; slow")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows: dict[str, list[dict[str, float]]] = {}
    for replicate, targets, seen, rng in halves(args.draws):
        for name, options in VARIANTS.items():
            rows.setdefault(name, []).append(scores(predict(targets, seen, replicate, rng, **options), replicate))
        found = with_package(targets, replicate, steps=0)
        rows.setdefault("the package's prior alone", []).append(scores(found["prior"], replicate))
        for lr in (3e-5, 1e-4, 1e-3) if args.network else ():
            found = with_package(targets, replicate, steps=args.network, lr=lr)
            rows.setdefault(f"with the network, lr {lr:g}", []).append(scores(found["expression"], replicate))
        if args.network:
            found = with_package(targets, replicate, steps=args.network, sees_perturbation=True)
            rows.setdefault("with a network that sees labels", []).append(scores(found["expression"], replicate))
    table = pd.DataFrame({name: pd.DataFrame(found).mean() for name, found in rows.items()}).T
    print(table.to_markdown(floatfmt=(None, ".3f", ".3f", ".4f", ".3f")))


if __name__ == "__main__":
    main()
