"""Ways to leave out training conditions, and folds of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi_tahoe.response._kernels import Conditions
    from scvi_tahoe.response._members import Members

_N_FOLDS = 4


def left_out_blocks(conditions: Conditions, members: Members) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Ways to leave out: conditions left out together, and which of them are predicted so."""
    every = np.arange(len(conditions))
    blocks = {"condition": [(np.array([i]), np.array([True])) for i in every if len(every) > 1]}
    by_label = [np.flatnonzero(conditions.label == k) for k in range(len(conditions.labels))]
    position = {label: k for k, label in enumerate(conditions.labels)}
    blocks["perturbation"] = []
    for k, label in enumerate(conditions.labels):
        sharing = sorted(members.labels_sharing(label) & position.keys())  # members may know further conditions
        rows = np.concatenate([by_label[position[other]] for other in sharing])
        if len(rows) < len(conditions):
            blocks["perturbation"].append((rows, conditions.label[rows] == k))
    if any(len(members.labels_sharing(label) & position.keys()) > 1 for label in conditions.labels):
        blocks["label"] = [(rows, np.ones(len(rows), bool)) for rows in by_label if len(rows) < len(conditions)]
    if len(conditions.context_names) > 1:
        found = [np.flatnonzero(conditions.context == k) for k in range(len(conditions.context_names))]
        blocks["context"] = [(rows, np.ones(len(rows), bool)) for rows in found]
    return {way: of_way for way, of_way in blocks.items() if of_way}


def folds_of_blocks(
    blocks: Sequence[tuple[np.ndarray, np.ndarray]], rng: np.random.Generator
) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Deal the blocks out to folds."""
    n = min(_N_FOLDS, len(blocks))
    fold = rng.permutation(np.arange(len(blocks)) % n)
    return [[block for block, f in zip(blocks, fold, strict=True) if f == k] for k in range(n)]


def fold_of_labels(conditions: Conditions, n_folds: int, seed: int) -> np.ndarray:
    """Deal labels out to folds; the fold of each condition."""
    order = np.random.default_rng([seed, n_folds]).permutation(len(conditions.labels))
    return (order % n_folds)[conditions.label]


def some_labels(conditions: Conditions, n: int, rng: np.random.Generator) -> np.ndarray:
    """All conditions of random labels until there are ``n``."""
    if len(conditions) <= n:
        return np.arange(len(conditions))
    order = rng.permutation(len(conditions.labels))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return np.sort(np.argsort(rank[conditions.label], kind="stable")[:n])
