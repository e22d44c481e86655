"""Gene sets that a condition moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scipy.stats import false_discovery_control, norm

from scvi_tahoe._arguments import checked
from scvi_tahoe._constants import EFFECTS_KEYS
from scvi_tahoe.effects._effects_adata import read_effects

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


@checked()
def gene_set_scores(effects: AnnData, gene_sets: Mapping[str, Collection[str]], *, min_genes: int = 5) -> AnnData:
    r"""Score every gene set in every condition by the mean change of its genes.

    With the :math:`m` genes of a set, the score is the mean of their changes minus that of all genes, and the test is
    that of Kim and Volsky [1]_, which assumes that genes are exchangeable: correlated genes make small p-values too
    small, so rely on the ranking rather than on them.

    .. math:: z = \frac{(\bar c_S - \bar c) \sqrt m}{\sigma_c}

    Parameters
    ----------
    effects
        Changes of conditions; see :mod:`scvi_tahoe.effects`.
    gene_sets
        Genes by the name of the set, such as :func:`scvi_tahoe.tables.read_gene_sets` reads; genes that are not among
        those of the effects are ignored.
    min_genes
        Sets with fewer of the effects' genes are left out.

    Returns
    -------
    AnnData ``[conditions, sets]``: ``X``, the score; ``layers["sd"]``, its standard deviation from that of the changes,
    as if errors of genes were independent, if known; ``layers["p_value"]`` and ``layers["fdr"]`` (two-sided; Benjamini
    and Hochberg over the sets of a condition); ``var["n_genes"]``.

    Raises
    ------
    ValueError
        If no set has enough genes.

    References
    ----------
    .. [1] Kim and Volsky 2005, BMC Bioinformatics 6:144.

    Examples
    --------
    >>> from scvi_tahoe.effects import gene_set_scores
    >>> from scvi_tahoe.tables import read_gene_sets
    >>> effects = model.predict_effects(as_adata=True)
    >>> scores = gene_set_scores(effects, read_gene_sets("h.all.v2024.1.Hs.symbols.gmt"))  # doctest: +SKIP
    """
    changes, sd = read_effects(effects)
    found = {name: np.unique(effects.var_names.get_indexer(list(map(str, genes)))) for name, genes in gene_sets.items()}
    found = {str(name): genes[genes >= 0] for name, genes in found.items()}
    kept = {name: genes for name, genes in found.items() if len(genes) >= min_genes}
    if not kept:
        most = max(map(len, found.values()), default=0)
        raise ValueError(
            f"none of {len(found)} gene sets has {min_genes} genes among the {effects.n_vars} of the effects (the most "
            f"is {most}); gene names there look like {effects.var_names[0]!r}."
        )
    n_genes = np.array([len(genes) for genes in kept.values()])
    columns = np.repeat(np.arange(len(kept)), n_genes)
    member = sp.csr_matrix(
        (1 / n_genes[columns], (np.concatenate(list(kept.values())), columns)), shape=(effects.n_vars, len(kept))
    )
    score = changes @ member - changes.mean(axis=1, keepdims=True)
    spread = np.maximum(changes.std(axis=1, keepdims=True), 1e-12)
    p_value = 2 * norm.sf(np.abs(score) * np.sqrt(n_genes) / spread)
    layers = {"p_value": p_value, "fdr": false_discovery_control(p_value, axis=1)}
    if sd is not None:
        layers["sd"] = np.sqrt(np.square(sd) @ member.power(2)).astype(np.float32)
    return AnnData(
        score.astype(np.float32), obs=effects.obs.copy(), var=pd.DataFrame({"n_genes": n_genes}, index=list(kept)),
        layers=layers, uns={EFFECTS_KEYS: dict(effects.uns.get(EFFECTS_KEYS, {}))},
    )  # fmt: skip
