"""Changes of conditions as AnnData: made of a tidy table, and checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scvi_tahoe._arguments import checked
from scvi_tahoe._constants import EFFECTS_KEYS
from scvi_tahoe._names import nearest_names

if TYPE_CHECKING:
    from collections.abc import Sequence


@checked()
def effects_adata(effects: pd.DataFrame, **keys: Any) -> AnnData:
    """Turn the table of :meth:`scvi_tahoe.TahoeST.predict_effects` into AnnData.

    Parameters
    ----------
    effects
        One row for each condition and gene: labels, ``gene``, ``change``, ``support`` and further values of the gene in
        the condition.
    **keys
        Names of the columns of labels, kept in ``uns["scvi_tahoe_effects"]`` as the defaults of functions that read it.

    Returns
    -------
    AnnData ``[conditions, genes]``, float32: ``X``, the change of mean log1p expression; ``layers``, the other values;
    ``obs``, labels and ``support``.

    Raises
    ------
    ValueError
        If conditions do not have the same genes in the same order.
    """
    of_gene = next((name for name in ("result_gene", "gene") if name in effects), None)
    if of_gene is None or not {"change", "result_change"} & set(effects.columns):
        raise ValueError("effects has no columns 'gene' and 'change'; give the table of predict_effects() as returned.")
    genes = np.asarray(pd.unique(effects[of_gene]), dtype=object)
    n = len(effects) // max(len(genes), 1)
    if len(effects) != n * len(genes) or not (effects[of_gene].to_numpy() == np.tile(genes, n)).all():
        raise ValueError("conditions of this table do not have the same genes in the same order; give it as returned.")
    support = "result_support" if "result_support" in effects else "support"
    values = [c for c in effects.columns[list(effects.columns).index(of_gene) + 1 :] if c != support]
    labels = [c for c in effects.columns if c not in (of_gene, *values)]
    obs = effects[labels].iloc[:: len(genes)].reset_index(drop=True)
    texts = obs.drop(columns=support, errors="ignore").astype(str)
    if (dose := str(keys.get("dose_key"))) in texts:  # the label of a dose, as predict() takes it
        first = texts.columns[0]
        texts[first] = [
            name if "@" in name or text == "nan" else f"{name}@{text.removesuffix('.0')}"
            for name, text in zip(texts[first], texts.pop(dose), strict=True)
        ]
    obs.index = pd.Index(texts.agg(" in ".join, axis=1) if len(texts.columns) else texts.index.astype(str))
    arrays = effects[values].to_numpy(dtype=np.float32).T.reshape(len(values), n, len(genes))
    matrices = dict(zip((str(name).removeprefix("result_") for name in values), arrays, strict=True))
    return AnnData(
        matrices.pop("change"), obs=obs, var=pd.DataFrame(index=genes.astype(str)), layers=matrices,
        uns={EFFECTS_KEYS: {name: key for name, key in keys.items() if key is not None}},
    )  # fmt: skip


def read_effects(effects: AnnData) -> tuple[np.ndarray, np.ndarray | None]:
    """Return changes and their standard deviations (None where they are not known), float64 ``[conditions, genes]``."""
    sd = effects.layers["sd"] if "sd" in effects.layers else None
    changes, sd = (None if m is None else (m.toarray() if sp.issparse(m) else np.asarray(m)) for m in (effects.X, sd))
    if changes is None or not changes.size:
        raise ValueError("effects has no values; give an AnnData with one row for each condition, changes in X.")
    if not np.isfinite(changes).all() or (sd is not None and not (np.isfinite(sd) & (sd >= 0)).all()):
        raise ValueError("changes have to be finite, and their standard deviations finite and not negative.")
    return changes.astype(np.float64), None if sd is None else sd.astype(np.float64)


def key_of(effects: AnnData, name: str, given: str | None, *, needed: bool = True) -> str | None:
    """Return the column of ``obs`` that a key names: what was given, or else what the AnnData has kept."""
    key = given if given is not None else effects.uns.get(EFFECTS_KEYS, {}).get(name)
    if key is None and needed:
        raise ValueError(
            f"these effects were made without a {name}; if they have one, name the column of effects.obs, which has "
            f"{list(effects.obs)}."
        )
    if key is not None and key not in effects.obs:
        near = nearest_names(key, [str(column) for column in effects.obs])
        raise KeyError(f"effects.obs has no column {key!r} ({name}){near}; it has {list(effects.obs)}.")
    return key


def positions_of_genes(effects: AnnData, genes: Sequence[str]) -> np.ndarray:
    """Return the positions of genes; a KeyError names those that are not there."""
    found = effects.var_names.get_indexer(list(map(str, genes)))
    if missing := [gene for gene, i in zip(genes, found, strict=True) if i < 0]:
        near = nearest_names(str(missing[0]), effects.var_names.tolist())
        raise KeyError(f"{len(missing)} genes are not among those of the effects, e.g. {missing[0]!r}{near}.")
    return found
