"""Which perturbations undo a signature."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from scvi_tahoe._arguments import checked
from scvi_tahoe.effects._effects_adata import read_effects

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

_FEWEST = 5
_BLOCK = 2**23  # values that are held at once


@checked()
def rank_reversals(
    effects: AnnData,
    signature: Mapping[str, float] | pd.Series | pd.DataFrame,
    *,
    n_permutations: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Rank conditions by how far they undo a signature.

    With the changes :math:`c_g` of a condition and the values :math:`w_g` of the signature over its genes, the score is
    minus their cosine,

    .. math:: s = -\frac{\sum_g w_g c_g}{\|w\| \, \|c\|},

    1 for a condition that undoes the signature, -1 for one that repeats it. The null draws as many genes at random,
    so it asks whether the genes of the signature are special. It assumes that genes are exchangeable: correlated genes
    make small p-values too small, so rely on the ranking rather than on them.

    Parameters
    ----------
    effects
        Changes of conditions; see :mod:`scvi_tahoe.effects`.
    signature
        Gene to value: 1 and -1 for genes that are up and down, or a log fold change. Or the table of
        ``scanpy.get.rank_genes_groups_df`` for one group (``names`` with ``logfoldchanges``, or else ``scores``). Genes
        that are not among those of the effects are ignored; ``attrs["n_genes"]`` of the result counts the others.
    n_permutations
        Random signatures of the null.
    seed
        Random seed of the null.

    Returns
    -------
    ``effects.obs`` with ``score``, ``sd`` (of the score, from ``layers["sd"]``; NaN without it), ``p_value`` and
    ``fdr`` (Benjamini and Hochberg), best first.

    Raises
    ------
    ValueError
        If fewer than five genes of the signature are among those of the effects, or all its values are 0 or missing.

    Examples
    --------
    >>> from scvi_tahoe.effects import rank_reversals
    >>> effects = model.predict_effects(as_adata=True)
    >>> rank_reversals(effects, {"IFIT1": 1, "ISG15": 1, "MX1": 1, "CD86": -1, "CCL2": -1}).head()
    """
    if n_permutations < 1:
        raise ValueError(f"n_permutations={n_permutations} has to be at least 1.")
    changes, sd = read_effects(effects)
    positions, weights = _signature(effects, signature)
    weights = weights / np.linalg.norm(weights)
    here = changes[:, positions]
    length = np.maximum(np.linalg.norm(here, axis=1), 1e-12)
    score = -(here @ weights) / length
    uncertain = np.full(len(score), np.nan)
    if sd is not None:  # the derivative of the cosine, with errors of genes that are independent
        slope = (weights[None] + score[:, None] * here / length[:, None]) / length[:, None]
        uncertain = np.sqrt(np.square(slope * sd[:, positions]).sum(axis=1))
    as_far = np.zeros(len(score))
    rng = np.random.default_rng(seed)
    at_once = max(1, _BLOCK // (len(positions) * changes.shape[1]))
    for start in range(0, n_permutations, at_once):
        n = min(at_once, n_permutations - start)
        spread = np.zeros((changes.shape[1], n))
        member = np.zeros((changes.shape[1], n))
        for k in range(n):
            drawn = rng.choice(changes.shape[1], len(positions), replace=False)
            spread[drawn, k], member[drawn, k] = weights, 1.0
        null = -(changes @ spread) / np.maximum(np.sqrt(np.square(changes) @ member), 1e-12)
        as_far += (null >= score[:, None]).sum(axis=1)
    p_value = (1 + as_far) / (1 + n_permutations)
    found = effects.obs.assign(score=score, sd=uncertain, p_value=p_value, fdr=false_discovery_control(p_value))
    found.attrs["n_genes"] = len(positions)
    return found.sort_values("score", ascending=False)


def _signature(
    effects: AnnData, signature: Mapping[str, float] | pd.Series | pd.DataFrame
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the signature's genes among those of the effects, and its values."""
    if isinstance(signature, pd.DataFrame):
        value = next((c for c in ("logfoldchanges", "scores") if c in signature), None)
        if "names" not in signature or value is None:
            raise ValueError(
                f"the table of the signature has columns {list(signature)}; it needs 'names' and 'logfoldchanges' or "
                "'scores', as scanpy.get.rank_genes_groups_df returns them for one group."
            )
        signature = signature.set_index("names")[value]
    values = pd.Series(signature, dtype=np.float64)
    values.index = values.index.astype(str)
    if values.index.has_duplicates:
        raise ValueError(f"gene {values.index[values.index.duplicated()][0]!r} is in the signature more than once.")
    values = values[np.isfinite(values) & (values != 0)]
    found = effects.var_names.get_indexer(values.index)
    if (found >= 0).sum() < _FEWEST:
        raise ValueError(
            f"{(found >= 0).sum()} genes of the signature with a value other than 0 are among the {effects.n_vars} "
            f"genes of the effects; at least {_FEWEST} are needed. Gene names there look like {effects.var_names[0]!r}."
        )
    return found[found >= 0], values.to_numpy()[found >= 0]
