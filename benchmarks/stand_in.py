"""Stand-ins for what cannot be shipped: an H1-shaped screen, ST weights in three layouts, and six configurations.

    python benchmarks/stand_in.py FOLDER            # small
    python benchmarks/stand_in.py FOLDER --full     # 18,080 genes, 1,488 hidden units

Cells are simulated, weights random and small in amplitude; names, widths, files and folders are those of the originals:
genes without names in ST-Tahoe, which lies flat in its folder; ST-HVG-Tahoe and ST-SE-Tahoe with checkpoints in a
folder of their own. `write_all` is what the walk and its test in the suite use.
"""

from __future__ import annotations

import argparse
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch
import yaml

from scvi_tahoe import SIZES
from scvi_tahoe.data import EmbeddingTable
from scvi_tahoe.datasets import simulate_screen
from scvi_tahoe.nn import GeneDecoderConfig, NetworkConfig, SetTransformer
from scvi_tahoe.pretrained import AxisLabels, PretrainedModel, Provenance, write_arc_folder

CONTROL = "non-targeting"
_DRUG_CONTROL = "[('DMSO_TF', 0.0, 'uM')]"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a stand-in; the defaults are small, `full` has those of the originals."""

    n_genes: int = 60
    n_variable: int = 24
    n_embedding: int = 10
    n_features: int = 12
    n_drugs: int = 9
    set_size: int = 8
    n_perturbations: int = 6
    n_cells: int = 12
    n_controls: int = 40
    network: tuple[tuple[str, int], ...] = (
        ("hidden", 24), ("n_layers", 3), ("intermediate", 32), ("n_heads", 4), ("head_dim", 6),
        ("n_encoder_layers", 2), ("n_decoder_layers", 2),
    )  # fmt: skip
    decoder: tuple[int, ...] = (16, 16, 12)

    @classmethod
    def full(cls, **changes: Any) -> Shape:
        """Return the sizes of the case study, with few cells."""
        sizes: dict[str, Any] = {
            "n_genes": 18_080, "n_variable": 2_000, "n_embedding": 2_058, "n_features": 5_120, "n_drugs": 1_138,
            "set_size": 512, "n_perturbations": 20, "n_cells": 32, "n_controls": 256,
            "network": tuple(SIZES["tahoe"].items()), "decoder": (1024, 1024, 512),
        }  # fmt: skip
        return cls(**{**sizes, **changes})


_KINDS: dict[str, dict[str, Any]] = {
    "ST-Tahoe": {"flat": True}, "ST-HVG-Tahoe": {}, "ST-SE-Tahoe": {"embedding": "X_state"},
}  # fmt: skip


def write_all(folder: Path, shape: Shape) -> dict[str, Path]:
    """Write all that is not there, and return the places by name; configurations by the day of their run."""
    if not (folder / "starter.toml").exists():
        write_screen(folder, shape)
    for name, kind in _KINDS.items():
        if not (folder / name).exists():
            write_weights(folder / name, shape, **kind)
    return {name: folder / name for name in _KINDS} | write_configs(folder, shape)


def write_screen(folder: Path, shape: Shape) -> None:
    """Write cells of four lines in two files, their features as a dictionary of tensors, and a table of files."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = simulate_screen(
        4, shape.n_perturbations, n_genes=shape.n_genes, n_cells=shape.n_cells, n_control_cells=shape.n_controls,
        n_cell_embedding=shape.n_embedding,
    )  # fmt: skip
    names = {"control": CONTROL}
    lines = dict(zip(sorted(cells.obs["context"].unique()), ("H1", "K562", "RPE1", "HepG2"), strict=True))
    cells.obs = cells.obs.assign(
        target_gene=[names.get(str(p), str(p).upper()) for p in cells.obs["perturbation"]],
        cell_type=[lines[c] for c in cells.obs["context"]],
        batch_var=[f"{lines[c]}-{b}" for c, b in zip(cells.obs["context"], cells.obs["batch"], strict=True)],
    )[["target_gene", "cell_type", "batch_var"]].astype("category")
    cells.obsm = {"X_state": np.asarray(next(iter(cells.obsm.values())), dtype=np.float32)}
    cells.uns = {}
    is_h1 = (cells.obs["cell_type"] == "H1").to_numpy()
    for name, rows in (("h1", is_h1), ("support", ~is_h1)):
        part = cells[rows].copy()
        ad.AnnData(part.X, part.obs, part.var[[]], obsm=dict(part.obsm)).write_h5ad(folder / f"{name}.h5ad")
    generator = torch.Generator().manual_seed(0)
    labels = [str(label) for label in cells.obs["target_gene"].cat.categories]
    torch.save({name: torch.randn(shape.n_features, generator=generator) for name in labels}, folder / "ESM2.pt")
    (folder / "starter.toml").write_text(
        f'[datasets]\ncompetition = "{folder}/{{h1,support}}.h5ad"\n\n[training]\ncompetition = "train"\n\n'
        f'[zeroshot]\n"competition.HepG2" = "test"\n\n[fewshot."competition.K562"]\nval = ["{labels[0]}"]\n'
        f'test = ["{labels[1]}"]\n'
    )


def write_weights(folder: Path, shape: Shape, *, embedding: str | None = None, flat: bool = False) -> Path:
    """Write random weights in Arc's format: one-hot drugs, cells of variable genes or embeddings."""
    width = shape.n_variable if embedding is None else shape.n_embedding
    decoder = None if embedding is None else GeneDecoderConfig(n_genes=shape.n_variable, hidden=shape.decoder)
    config = NetworkConfig(
        n_input=width, n_output=width, n_perturbation=shape.n_drugs, head="hidden_residual", attention="full",
        rectify=embedding is None, gene_decoder=decoder, **dict(shape.network),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        state = SetTransformer(config).state_dict()
    drugs = (_DRUG_CONTROL, *(f"[('drug {i}', 0.5, 'uM')]" for i in range(shape.n_drugs - 1)))
    genes = tuple(f"variable_{i}" for i in range(shape.n_variable))
    labels = AxisLabels(
        genes=genes if embedding is None else None, decoder_genes=None if decoder is None else genes,
        perturbations=EmbeddingTable.one_hot_of(drugs), control=_DRUG_CONTROL, set_size=shape.set_size,
        embedding=embedding,
    )  # fmt: skip
    source = Provenance(source=folder.name, format="arc", non_commercial=True)
    write_arc_folder(PretrainedModel(config=config, state_dict=state, labels=labels, provenance=source), folder)
    del state
    checkpoint = folder / "checkpoints" / "final.ckpt"
    if embedding is None:  # the published ones name other genes than those of the network
        content = torch.load(checkpoint, weights_only=True, mmap=True)
        content["hyper_parameters"]["gene_names"] = [f"gene_{i}" for i in range(shape.n_genes)]
        torch.save(content, folder / "final.ckpt")
        (folder / "final.ckpt").replace(checkpoint)
        sizes = pickle.loads((folder / "var_dims.pkl").read_bytes())
        names = content["hyper_parameters"]["gene_names"]
        (folder / "var_dims.pkl").write_bytes(pickle.dumps({**sizes, "gene_names": names}))
    if flat:
        checkpoint.replace(folder / "final.ckpt")
        (folder / "checkpoints").rmdir()
    return folder


#: rounds of the case study: what each changes
_ROUNDS: dict[str, dict[str, Any]] = {
    "0826": {"decoder_weight": 0.5, "lr": 3e-4, "batch_size": 32},
    "0901": {"decoder_weight": 1.0, "lr": 5e-5, "batch_size": 48, "from": "0826", "checkpoint": "best.ckpt"},
    "0905": {"lr": 1e-4, "batch_size": 16},
    "0906": {"lr": 5e-5, "batch_size": 12, "from": "0905", "checkpoint": "last.ckpt"},
    "0907": {"lr": 1e-5, "batch_size": 6, "from": "0906", "checkpoint": "last.ckpt", "frozen": False},
    "0908": {"lr": 3e-5, "batch_size": 6, "from": "0906", "checkpoint": "last.ckpt", "frozen": False},
}


def write_configs(folder: Path, shape: Shape) -> dict[str, Path]:
    """Write six configurations of the shape of the case study's; later ones start from the folders of earlier runs."""
    paths = {}
    for day, said in _ROUNDS.items():
        path = folder / f"config-{day}.yaml"
        path.write_text(yaml.safe_dump(_config(folder, shape, day, **said), sort_keys=False))
        paths[day] = path
    return paths


def _config(folder: Path, shape: Shape, day: str, **said: Any) -> dict[str, Any]:
    embeds, sizes = "decoder_weight" in said, dict(shape.network)
    source = f"{folder}/ST-Tahoe/final.ckpt"
    if "from" in said:
        source = f"{folder}/runs/{said['from']}/{said['checkpoint']}"
    set_size = max(2, shape.set_size // 2) if embeds else shape.set_size
    decoder = (
        {"decoder_weight": said.get("decoder_weight"), "decoder_hidden_dims": list(shape.decoder)} if embeds else {}
    )
    return {
        "data": {"kwargs": {
            "toml_config_path": f"{folder}/starter.toml", "embed_key": "X_state" if embeds else None,
            "output_space": "all", "batch_col": "batch_var", "pert_col": "target_gene", "cell_type_key": "cell_type",
            "control_pert": CONTROL, "perturbation_features_file": f"{folder}/ESM2.pt",
        }},
        "model": {"name": "PertSets", "kwargs": {
            "cell_set_len": set_size, "hidden_dim": sizes["hidden"], "loss": "energy", "predict_residual": True,
            "n_encoder_layers": sizes["n_encoder_layers"], "n_decoder_layers": sizes["n_decoder_layers"],
            "batch_encoder": True, **decoder, "gene_decoder_bool": embeds, "use_basal_projection": not embeds,
            "init_from": source, "transformer_backbone_key": "llama", "transformer_backbone_kwargs": {
                "max_position_embeddings": set_size, "hidden_size": sizes["hidden"],
                "intermediate_size": sizes["intermediate"], "num_hidden_layers": sizes["n_layers"],
                "num_attention_heads": sizes["n_heads"], "num_key_value_heads": sizes["n_heads"],
                "head_dim": sizes["head_dim"],
            },
            "freeze_pert_backbone": said.get("frozen", True),
        }},
        "training": {
            "weight_decay": 1e-3, "batch_size": said["batch_size"], "lr": said["lr"], "max_steps": 10_000,
            "train_seed": 42, "val_freq": 500, "gradient_clip_val": 1.0, "loss_fn": "mse", "precision": "bf16-mixed",
            "lr_scheduler": "cosine", "accumulate_grad_batches": 8,
        },
        "name": day, "use_wandb": True,
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--genes", type=int, help="instead of 60, or of 18,080 with --full")
    parser.add_argument("--full", action="store_true", help="sizes of the case study, with few cells")
    arguments = parser.parse_args()
    sizes = {} if arguments.genes is None else {"n_genes": arguments.genes}
    made = Shape.full(**sizes) if arguments.full else Shape(**sizes)
    for name, place in write_all(arguments.folder.resolve(), made).items():
        print(f"{name:<14} {place}")
