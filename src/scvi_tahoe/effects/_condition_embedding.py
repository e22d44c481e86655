"""Conditions as points: near one another where they do the same."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from scvi_tahoe._arguments import checked
from scvi_tahoe.effects._effects_adata import key_of, read_effects


@checked()
def condition_embedding(
    effects: AnnData, *, n_components: int = 30, center_contexts: bool = True, context_key: str | None = None
) -> AnnData:
    """Embed conditions by the principal components of their changes.

    Parameters
    ----------
    effects
        Changes of conditions; see :mod:`scvi_tahoe.effects`.
    n_components
        Maximum number of components; there are always fewer than conditions and genes.
    center_contexts
        Whether changes are relative to the mean of their context, so that a perturbation lies near itself in other
        contexts; otherwise contexts with different common responses lie apart.
    context_key
        Column of ``obs`` with the contexts. If None, that which ``effects`` was made with, if any.

    Returns
    -------
    AnnData ``[conditions, components]``, float32: ``X`` and ``obsm["X_pca"]``, largest component first; ``obs`` of the
    conditions with ``condition`` (its name) and ``effect_size`` (root mean square of the change over genes);
    ``uns["pca"]["variance_ratio"]``. It is ready for ``scanpy.pp.neighbors`` and what follows.

    Raises
    ------
    ValueError
        If there are fewer than three conditions, or all change in the same way.
    """
    if n_components < 1:
        raise ValueError(f"n_components={n_components!r} has to be 1 or more.")
    changes, _ = read_effects(effects)
    if len(changes) < 3:
        raise ValueError(f"{len(changes)} conditions are too few to lay out; give three or more.")
    size = np.sqrt(np.square(changes).mean(axis=1))
    key = key_of(effects, "context_key", context_key, needed=False)
    groups = np.zeros(len(changes), dtype=str) if key is None or not center_contexts else effects.obs[key].astype(str)
    for rows in pd.Series(range(len(changes))).groupby(np.asarray(groups)).indices.values():
        changes[rows] -= changes[rows].mean(axis=0)
    left, length, _ = np.linalg.svd(changes - changes.mean(axis=0), full_matrices=False)
    kept = int((length > 1e-6 * max(length[0], 1e-12)).sum()) if length[0] > 1e-12 else 0
    if not kept:
        raise ValueError("all conditions change in the same way; there is nothing to tell them apart by.")
    n = min(n_components, kept)
    points = (left[:, :n] * length[:n]).astype(np.float32)
    return AnnData(
        points, obs=effects.obs.assign(condition=effects.obs_names, effect_size=size),
        var=pd.DataFrame(index=[f"component_{k + 1}" for k in range(n)]), obsm={"X_pca": points.copy()},
        uns={"pca": {"variance_ratio": (np.square(length) / np.square(length).sum())[:n]}},
    )  # fmt: skip
