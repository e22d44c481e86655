"""A folder of a State Embedding model in the published layout, written from golden numbers; and their screens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
import yaml
from anndata import AnnData
from safetensors.torch import save_file

GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden" / "state_embedding" / "golden.npz"))
SETTINGS = {"dataset": {"pad_length": 64, "cls_token_idx": 3}, "model": {"nhead": 4, "batch_size": 4}}
#: parts of published files that embedding cells does not need, and their widths for this network
UNUSED = {"dataset_encoder.0.weight": (32, 24), "dataset_encoder.2.bias": (32,), "binary_decoder.2.weight": (1, 67)}


def tensors():
    """Tensors under their published names: all 46 + 12 L but for some of the decoder."""
    state = {
        name.removeprefix("weights/"): torch.from_numpy(x) for name, x in GOLDEN.items() if name.startswith("weights/")
    }
    twins = {name.replace("encoder.", "gene_embedding_layer.", 1): x.clone() for name, x in state.items()
             if name.startswith("encoder.")}  # fmt: skip
    table = {"pe_embedding.weight": torch.from_numpy(GOLDEN["proteins/vectors"])}
    return {**state, **twins, **table, **{name: torch.ones(shape) for name, shape in UNUSED.items()}}


def proteins():
    """The table: protein embeddings by gene."""
    return dict(
        zip(GOLDEN["proteins/names"].tolist(), torch.from_numpy(GOLDEN["proteins/vectors"]).clone(), strict=True)
    )


def write_folder(folder, state=None, *, settings=SETTINGS, weights="model.safetensors"):
    """Write the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors() if state is None else state, folder / weights)
    torch.save(proteins(), folder / "protein_embeddings.pt")
    if settings is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def screen(name, kind=sp.csr_matrix):
    """One of the golden screens."""
    var = pd.DataFrame(index=GOLDEN[f"{name}/var_names"])
    for column in ("short", "symbol"):
        if (key := f"{name}/var/{column}") in GOLDEN:
            var[column] = GOLDEN[key]
    values = GOLDEN[f"{name}/X"]
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(len(values))])
    return AnnData(kind(values), obs=obs, var=var)


def counts(n_cells=12, seed=0, genes=None):
    """Counts of genes that the model knows: shallow cells, as from a droplet, with many ties."""
    genes = GOLDEN["proteins/names"][:100] if genes is None else genes
    rng = np.random.default_rng(seed)
    values = rng.poisson(rng.gamma(1.0, 1.0, len(genes)), (n_cells, len(genes))).astype(np.float32)
    obs = pd.DataFrame(index=[f"c{i}" for i in range(n_cells)])
    return AnnData(sp.csr_matrix(values), obs=obs, var=pd.DataFrame(index=list(genes)))
