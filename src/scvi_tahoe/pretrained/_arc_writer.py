"""Writes a model folder that arc-state runs: few files, plain Python values, attention always stated."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import torch
import yaml

from scvi_tahoe.files import atomic_folder
from scvi_tahoe.pretrained._arc_hyper import (
    TOKEN_ROWS,
    ArcColumns,
    config_file,
    dimensions,
    hyper_parameters,
    n_positions,
    output_space,
)
from scvi_tahoe.pretrained._keys import BACKBONE, to_arc
from scvi_tahoe.pretrained._label_maps import NO_BATCHES
from scvi_tahoe.pretrained._model_card import licence_notice
from scvi_tahoe.pretrained._pretrained_model import is_embedding

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from scvi_tahoe.pretrained._pretrained_model import PerturbationTable, PretrainedModel

__all__ = ["arc_refusals", "write_arc_folder"]

_LIGHTNING_VERSION = "2.5.0"


def write_arc_folder(
    model: PretrainedModel, folder: str | Path, *, columns: ArcColumns | None = None, overwrite: bool = False
) -> None:
    """Write a model as a folder in Arc's format, complete or not at all.

    Parameters
    ----------
    model
        The model.
    folder
        The folder to create.
    columns
        Names of ``obs`` columns to write into ``config.yaml``.
    overwrite
        Replace a model folder of that name.

    Raises
    ------
    ValueError
        If the model does something arc-state cannot do; the message names all such things.
    FileExistsError
        If the folder exists and may not be replaced.

    Notes
    -----
    arc-state expects token tables of zeros. They are written as a single zero with a shape, so that they take no room
    in memory or in the file.
    """
    refusals = arc_refusals(model)
    if refusals:
        raise ValueError("arc-state cannot run this model: " + "; ".join(refusals) + ".")
    hyper = hyper_parameters(model)
    with atomic_folder(folder, overwrite=overwrite) as place:
        config = config_file(model, hyper, columns or ArcColumns())
        (place / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), "utf-8")
        (place / "var_dims.pkl").write_bytes(pickle.dumps(dimensions(model), protocol=4))
        torch.save(_perturbation_map(model.perturbations), place / "pert_onehot_map.pt")
        torch.save(_one_hot_map(model.batches or (NO_BATCHES,)), place / "batch_onehot_map.torch")
        if model.contexts:
            torch.save(_one_hot_map(model.contexts), place / "cell_type_onehot_map.torch")
        if model.provenance.non_commercial:
            (place / "LICENSE_NOTICE.md").write_text(licence_notice(), "utf-8")
        (place / "checkpoints").mkdir()
        checkpoint = {
            "state_dict": _state_dict(model),
            "hyper_parameters": hyper,
            "pytorch-lightning_version": _LIGHTNING_VERSION,
            "epoch": 0,
            "global_step": 0,
        }
        torch.save(checkpoint, place / "checkpoints" / "final.ckpt")


def arc_refusals(model: PretrainedModel) -> list[str]:
    """Return what a model does that arc-state has no counterpart for; empty if it can be exported."""
    config = model.config
    expected_rectify = config.gene_decoder is None or not is_embedding(model.embed_key)
    checks = {
        "head='delta' has no counterpart there (choose head='hidden_residual' or 'down_up' when training)": (
            config.head == "delta"
        ),
        f"attention={config.attention!r} of a llama backbone is neither of its two kinds": (
            config.backbone == "llama" and config.attention == "causal"
        ),
        "it knows no prior (export to our own format, or train with prior='none')": (
            model.prior is not None or model.extra.get("prior", "none") != "none"
        ),
        "it encodes a perturbation as one vector (register combinations with combination='sum')": (
            config.n_perturbation_parts > 1
        ),
        "its GPT-2 backbone is always causal": config.backbone == "gpt2" and config.attention == "full",
        "it has either a batch encoder or a batch token": bool(config.n_batches) and config.batch_token,
        f"it would run with rectify={expected_rectify}": config.rectify != expected_rectify,
        "its GPT-2 backbone has intermediate = 4 * hidden": (
            config.backbone == "gpt2" and config.intermediate != 4 * config.hidden
        ),
        "it needs a control label": model.control is None,
        "the number of batch labels differs from the network's": (
            len(model.batches or ()) != (config.n_batches or config.n_batch_classes)
            and bool(config.n_batches or config.n_batch_classes)
        ),
    }
    return [text for text, refused in checks.items() if refused]


def _state_dict(model: PretrainedModel) -> dict[str, Tensor]:
    config = model.config
    state = to_arc(model.state_dict, config)
    # Parts of one of our matrices get memory of their own: shared memory confuses other tools.
    state = {name: tensor if _owns_memory(tensor) else tensor.contiguous().clone() for name, tensor in state.items()}
    if config.backbone == "llama":
        state[f"{BACKBONE}.embed_tokens.weight"] = _zeros(TOKEN_ROWS["llama"], config.hidden)
    else:
        state[f"{BACKBONE}.wte.weight"] = _zeros(TOKEN_ROWS["gpt2"], config.hidden)
        state[f"{BACKBONE}.wpe.weight"] = _zeros(n_positions(config, model.set_size), config.hidden)
    if output_space(model) == "all" and config.head == "absolute":
        width, narrow = config.n_output, config.down_width
        shapes = {"0.weight": (narrow, width), "0.bias": (narrow,), "2.weight": (width, narrow), "2.bias": (width,)}
        state.update({f"final_down_then_up.{name}": _zeros(*shape) for name, shape in shapes.items()})
    return state


def _owns_memory(tensor: Tensor) -> bool:
    return tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(1).expand(*shape) if len(shape) == 1 else torch.zeros(1, 1).expand(*shape)


def _perturbation_map(table: PerturbationTable) -> dict[str, Tensor]:
    if table.matrix is None:
        return _one_hot_map(table.names)
    # Rows of one matrix: torch writes the memory they share once.
    return dict(zip(table.names, torch.from_numpy(table.matrix).float(), strict=True))


def _one_hot_map(names: tuple[str, ...]) -> dict[str, Tensor]:
    return dict(zip(names, torch.eye(len(names)), strict=True))
