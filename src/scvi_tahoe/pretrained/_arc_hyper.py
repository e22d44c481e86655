"""A model's settings in arc-state's words: hyper-parameters, dimensions and configuration file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scvi_tahoe.pretrained._label_maps import NO_BATCHES

if TYPE_CHECKING:
    from scvi_tahoe.nn import NetworkConfig
    from scvi_tahoe.pretrained._pretrained_model import PretrainedModel

__all__ = ["TOKEN_ROWS", "ArcColumns", "config_file", "dimensions", "hyper_parameters", "n_positions", "output_space"]

#: Rows of the token tables that arc-state's backbones carry and never use.
TOKEN_ROWS = {"llama": 32_000, "gpt2": 50_257}
_LOSSES = {"energy": "energy", "sinkhorn": "sinkhorn", "energy+sinkhorn": "se", "mse": "mse"}


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


def output_space(model: PretrainedModel) -> str:
    """Return the output space under which arc-state forms the output as the network does."""
    if model.config.head == "down_up":
        return "all"
    if model.config.head == "hidden_residual" and model.output_space == "all":
        return "gene"
    return model.output_space


def _gene_names(model: PretrainedModel) -> list[str]:
    names = model.labels.decoder_genes if model.config.gene_decoder else model.labels.genes
    return list(names or ())


def dimensions(model: PretrainedModel) -> dict[str, Any]:
    """Return the numbers and names that arc-state keeps in ``var_dims.pkl``."""
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


def hyper_parameters(model: PretrainedModel) -> dict[str, Any]:
    """Return the hyper-parameters of a model in arc-state's words."""
    config, loss, sizes = model.config, model.loss, dimensions(model)
    decoder = config.gene_decoder
    hyper: dict[str, Any] = {
        **{key: sizes[key] for key in ("input_dim", "output_dim", "pert_dim", "batch_dim", "gene_dim", "hvg_dim")},
        "hidden_dim": config.hidden,
        "gene_names": sizes["gene_names"],
        "control_pert": model.control,
        "embed_key": model.embed_key,
        "output_space": output_space(model),
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
    n_tokens = n_positions(config, 0)
    if n_tokens:
        hyper["extra_tokens"] = n_tokens
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
            "n_positions": n_positions(config, set_size),
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
        "n_positions": n_positions(config, set_size),
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.width_of_head,
        "attention_dropout": config.attention_dropout,
        "vocab_size": TOKEN_ROWS["llama"],
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "use_cache": False,
    }


def n_positions(config: NetworkConfig, set_size: int) -> int:
    """Return the number of tokens of a full set."""
    return set_size + int(config.confidence_token) + int(config.batch_token)


def config_file(model: PretrainedModel, hyper: dict[str, Any], columns: ArcColumns) -> dict[str, Any]:
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
