"""Writes a model folder that arc-state runs: few files, plain Python values, attention always stated."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import yaml

from scvi_tahoe.pretrained._atomic_folder import atomic_folder
from scvi_tahoe.pretrained._keys import BACKBONE, to_arc
from scvi_tahoe.pretrained._label_maps import NO_BATCHES
from scvi_tahoe.pretrained._model_card import licence_notice
from scvi_tahoe.pretrained._pretrained_model import is_embedding

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from scvi_tahoe.nn import NetworkConfig
    from scvi_tahoe.pretrained._pretrained_model import PerturbationTable, PretrainedModel

__all__ = ["ArcColumns", "arc_refusals", "write_arc_folder"]

_TOKEN_ROWS = {"llama": 32_000, "gpt2": 50_257}
_LOSSES = {"energy": "energy", "sinkhorn": "sinkhorn", "energy+sinkhorn": "se", "mse": "mse"}
_LIGHTNING_VERSION = "2.5.0"


@dataclass(frozen=True, kw_only=True)
class ArcColumns:
    """Names of ``obs`` columns for arc-state's configuration file; its command line can override them.

    Parameters
    ----------
    perturbation, context, batch
        Column of the perturbation, of the cell line or type, of the technical batch.
    """

    perturbation: str = "perturbation"
    context: str = "cell_type"
    batch: str = "batch"


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
    hyper = _hyper_parameters(model)
    with atomic_folder(folder, overwrite=overwrite) as place:
        config = _config(model, hyper, columns or ArcColumns())
        (place / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), "utf-8")
        (place / "var_dims.pkl").write_bytes(pickle.dumps(_dimensions(model), protocol=4))
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


def _output_space(model: PretrainedModel) -> str:
    """Return the output space under which arc-state forms the output as the network does."""
    if model.config.head == "down_up":
        return "all"
    if model.config.head == "hidden_residual" and model.output_space == "all":
        return "gene"
    return model.output_space


def _gene_names(model: PretrainedModel) -> list[str]:
    names = model.labels.decoder_genes if model.config.gene_decoder else model.labels.genes
    return list(names or ())


def _dimensions(model: PretrainedModel) -> dict[str, Any]:
    config = model.config
    decoder = config.gene_decoder
    n_genes = decoder.n_genes if decoder else config.n_output
    return {
        "input_dim": config.n_input,
        "gene_dim": n_genes,
        "hvg_dim": config.n_output if model.embed_key == "X_hvg" else n_genes,
        "output_dim": config.n_output,
        "pert_dim": config.n_perturbation,
        "batch_dim": config.n_batches or config.n_batch_classes or len(model.batches or (NO_BATCHES,)),
        "gene_names": _gene_names(model),
        "pert_names": list(model.perturbations.names),
    }


def _hyper_parameters(model: PretrainedModel) -> dict[str, Any]:
    config, loss, sizes = model.config, model.loss, _dimensions(model)
    decoder = config.gene_decoder
    hyper: dict[str, Any] = {
        **{key: sizes[key] for key in ("input_dim", "output_dim", "pert_dim", "batch_dim", "gene_dim", "hvg_dim")},
        "hidden_dim": config.hidden,
        "gene_names": sizes["gene_names"],
        "control_pert": model.control,
        "embed_key": model.embed_key,
        "output_space": _output_space(model),
        "cell_set_len": model.set_size,
        "n_encoder_layers": config.n_encoder_layers,
        "n_decoder_layers": config.n_decoder_layers,
        "dropout": config.dropout,
        "activation": config.activation,
        "use_basal_projection": config.control_encoder == "mlp",
        "predict_residual": config.head != "absolute",
        "mask_attn": config.attention == "self_only",
        "batch_encoder": bool(config.n_batches),
        "use_batch_token": config.batch_token,
        "basal_mapping_strategy": "batch" if config.batch_token else "random",
        "confidence_token": config.confidence_token,
        "gene_decoder_bool": decoder is not None,
        "finetune_vci_decoder": False,
        "loss": _LOSSES[loss.loss],
        "loss_fn": "mse",
        "distributional_loss": loss.kernel,
        "blur": loss.blur,
        "energy_weight": loss.energy_weight,
        "sinkhorn_weight": loss.sinkhorn_weight,
        "mmd_num_chunks": loss.n_chunks,
        "randomize_mmd_chunks": loss.shuffle_chunks,
        "decoder_weight": loss.decoder_weight,
        "detach_decoder": loss.detach_decoder,
        "batch_token_weight": loss.batch_token_weight,
        "confidence_weight": loss.confidence_weight,
        "confidence_target_scale": loss.confidence_target_scale,
        "regularization": loss.regularization,
        "lr": 1e-4 if loss.learning_rate is None else loss.learning_rate,
        "transformer_backbone_key": "llama" if config.backbone == "llama" else "GPT2",
        "transformer_backbone_kwargs": _backbone_settings(config, model.set_size),
        "lora": {"enable": False},
    }
    if decoder is not None:
        hyper["decoder_cfg"] = {
            "latent_dim": config.n_output,
            "gene_dim": decoder.n_genes,
            "hidden_dims": list(decoder.hidden),
            "dropout": decoder.dropout,
            "residual_decoder": decoder.residual,
        }
    return hyper


def _backbone_settings(config: NetworkConfig, set_size: int) -> dict[str, Any]:
    if config.backbone == "gpt2":
        # No max_position_embeddings here: it would override n_positions and leave no room for a token.
        return {
            "n_positions": _n_positions(config, set_size),
            "n_embd": config.hidden,
            "hidden_size": config.hidden,
            "n_layer": config.n_layers,
            "n_head": config.n_heads,
            "resid_pdrop": config.backbone_dropout,
            "embd_pdrop": config.backbone_dropout,
            "attn_pdrop": config.attention_dropout,
            "use_cache": False,
        }
    return {
        "bidirectional_attention": config.attention in ("full", "self_only"),
        "max_position_embeddings": set_size,
        "n_positions": _n_positions(config, set_size),
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.width_of_head,
        "attention_dropout": config.attention_dropout,
        "vocab_size": _TOKEN_ROWS["llama"],
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "use_cache": False,
    }


def _n_positions(config: NetworkConfig, set_size: int) -> int:
    return set_size + int(config.confidence_token) + int(config.batch_token)


def _config(model: PretrainedModel, hyper: dict[str, Any], columns: ArcColumns) -> dict[str, Any]:
    """Return what arc-state expects in ``config.yaml``."""
    keys = ("embed_key", "output_space", "basal_mapping_strategy", "control_pert")
    data = {
        **{key: hyper[key] for key in keys},
        "pert_col": columns.perturbation,
        "cell_type_key": columns.context,
        "batch_col": columns.batch,
        "perturbation_features_file": None if model.perturbations.is_one_hot else "pert_onehot_map.pt",
    }
    left_out = {"gene_names", "transformer_backbone_kwargs", "input_dim", "output_dim", "pert_dim", "batch_dim"}
    backbone = {k: v for k, v in hyper["transformer_backbone_kwargs"].items() if k != "n_positions"}
    if model.config.backbone == "gpt2":
        backbone = hyper["transformer_backbone_kwargs"]
    kwargs = {key: value for key, value in hyper.items() if key not in left_out}
    return {
        "name": "exported",
        "output_dir": ".",
        "data": {"name": "PerturbationDataModule", "kwargs": data},
        "model": {"name": "state", "kwargs": {**kwargs, "transformer_backbone_kwargs": dict(backbone)}},
        "training": {"batch_size": 16, "lr": hyper["lr"], "max_steps": 0, "train_seed": 42, "loss_fn": "mse"},
    }


def _state_dict(model: PretrainedModel) -> dict[str, Tensor]:
    config = model.config
    state = to_arc(model.state_dict, config)
    # Parts of one of our matrices get memory of their own: shared memory confuses other tools.
    state = {name: tensor if _owns_memory(tensor) else tensor.contiguous().clone() for name, tensor in state.items()}
    if config.backbone == "llama":
        state[f"{BACKBONE}.embed_tokens.weight"] = _zeros(_TOKEN_ROWS["llama"], config.hidden)
    else:
        state[f"{BACKBONE}.wte.weight"] = _zeros(_TOKEN_ROWS["gpt2"], config.hidden)
        state[f"{BACKBONE}.wpe.weight"] = _zeros(_n_positions(config, model.set_size), config.hidden)
    if _output_space(model) == "all" and config.head == "absolute":
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
