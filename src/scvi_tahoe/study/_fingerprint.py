"""What the cells of a run were: counted and hashed, so that a rebuild can tell whether it has the same ones."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from scvi_tahoe.data import ScreenKeys, read_screen
from scvi_tahoe.study._data import screen_keys

if TYPE_CHECKING:
    from anndata import AnnData

    from scvi_tahoe.study._data import RunData

__all__ = ["fingerprint", "verify_same_data"]


def fingerprint(data: RunData, *, seed: int) -> dict[str, Any]:
    """Return counts and SHA-256 of genes, labels, expression and split.

    Parameters
    ----------
    data
        The cells.
    seed
        By which the split is drawn.
    """
    config = data.config
    keys = ScreenKeys(**screen_keys(config))
    index = read_screen(data.train, keys).index
    assigned = data.split.assign(index, seed=seed)
    sides = {
        "train": _side(data.train, config.layer, config.perturbation_key, config.context_key, config.embedding_key)
    }
    if data.held_out is not None:
        sides["held_out"] = _side(
            data.held_out, config.layer, config.perturbation_key, config.context_key, config.embedding_key
        )
    content = "".join(side[part] for side in sides.values() for part in ("genes", "labels", "expression"))
    return {
        "sha256": hashlib.sha256(content.encode()).hexdigest(),
        **sides,
        "contexts": list(index.contexts),
        "n_perturbations": len(index.perturbations),
        "n_control_cells": int(index.is_control.sum()),
        "split": {
            "rule": data.split.to_dict(),
            "cells": {part: len(assigned.rows(part)) for part in ("train", "validation")},
            "conditions": {
                part: len(np.unique(index.condition_of_cell[assigned.rows(part)])) for part in ("train", "validation")
            },
            "sha256": _hash(assigned.train.tobytes(), assigned.validation.tobytes()),
        },
    }


def verify_same_data(expected: str | None, found: str) -> None:
    """Raise if the cells are not those that a run was made with.

    Raises
    ------
    ValueError
        If the hashes differ.
    """
    if expected is not None and expected != found:
        raise ValueError(
            f"the data are not those of the run: their content hashes to {found[:12]}, data.sha256 says "
            f"{expected[:12]}. Bring back the data, or leave data.sha256 out to run on these."
        )


def _side(
    adata: AnnData, layer: str | None, perturbation_key: str | None, context_key: str | None, embedding: str | None
) -> dict[str, Any]:
    labels = [adata.obs[key].astype(str).to_numpy() for key in (perturbation_key, context_key) if key is not None]
    matrix = adata.X if layer is None else adata.layers[layer]
    found = {
        "n_cells": int(adata.n_obs),
        "n_genes": int(adata.n_vars),
        "genes": _hash("\n".join(map(str, adata.var_names)).encode()),
        "labels": _hash(*("\n".join(column).encode() for column in labels)),
        "expression": _hash(*_bytes(matrix)),
    }
    return found if embedding is None else found | {"embedding_width": int(adata.obsm[embedding].shape[1])}


def _bytes(matrix: Any) -> list[bytes | memoryview]:
    if sp.issparse(matrix):
        rows = matrix.tocsr()
        rows.sort_indices()
        # dtypes of indices depend on how a file was written, values and places do not
        parts = [rows.data.astype(np.float32), rows.indices.astype(np.int64), rows.indptr.astype(np.int64)]
    else:
        parts = [np.ascontiguousarray(matrix[:], dtype=np.float32)]
    return [np.ascontiguousarray(part).view(np.uint8).data for part in parts]


def _hash(*parts: bytes | memoryview) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
