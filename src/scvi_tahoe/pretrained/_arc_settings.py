"""Settings in arc-state's words and in ours, both ways: hyper-parameters, network configuration, loss.

Reading, sizes come from the tensors, never from rules: hyper-parameters decide only what shapes cannot tell, the number
of heads, the attention, how the head forms its output, and the loss.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from scvi_tahoe.files import UnsafeFileError
from scvi_tahoe.nn import AttentionName, GeneDecoderConfig, NetworkConfig
from scvi_tahoe.pretrained._arc_files import NO_BATCHES
from scvi_tahoe.pretrained._arc_tensors import BACKBONE
from scvi_tahoe.pretrained._pretrained_model import LossSettings, is_embedding

if TYPE_CHECKING:
    from scvi_tahoe.pretrained._pretrained_model import PretrainedModel

#: Rows of the token tables that arc-state's backbones carry and never use.
TOKEN_ROWS = {"llama": 32_000, "gpt2": 50_257}

Shapes = Mapping[str, tuple[int, ...]]

_NB_DECODER = re.compile(r"gene_decoder\.(px_scale|l_encoder|log_theta|skip|post_norm|encoder)\b")
_SE_DECODER = re.compile(
    r"gene_decoder\.(read_depth|latent_decoder|gene_decoder_proj|binary_decoder|finetune|missing_table)\b"
)
_LOSSES = {"energy": "energy", "sinkhorn": "sinkhorn", "se": "energy+sinkhorn", "mse": "mse"}
_RENAMED = {"n_chunks": "mmd_num_chunks", "shuffle_chunks": "randomize_mmd_chunks"}
#: Our name of a loss setting to arc-state's.
_LOSS_KEYS = {
    name: _RENAMED.get(name, name)
    for name in LossSettings.__dataclass_fields__
    if name not in ("loss", "kernel", "learning_rate")
}


class AttentionDecision(NamedTuple):
    """Which attention a checkpoint is taken to have been trained with, why, and whether that is known or assumed."""

    kind: AttentionName
    reason: str
    certain: bool = True


def decide_attention(hyper: Mapping[str, Any], override: AttentionName | None = None) -> AttentionDecision:
    """Return the attention of a checkpoint.

    The same weights were run as full, causal, or causal-with-rotary attention by different versions of arc-state and
    transformers. The rule: what the user says; else the diagonal mask; else causal for GPT-2; else the flag
    ``bidirectional_attention``; else full attention, which is then an assumption.
    """
    if override is not None:
        return AttentionDecision(override, "given by the user")
    if flag_of(hyper, "mask_attn"):
        return AttentionDecision("self_only", "mask_attn is set (transformers before 4.53 ignored it: full attention)")
    if backbone_kind(hyper) == "gpt2":
        return AttentionDecision("causal", "the peer's GPT-2 backbone is causal in spite of its name")
    settings = backbone_settings(hyper)
    if settings.get("bidirectional_attention") is None:
        return AttentionDecision(
            "full",
            "the folder does not say (no bidirectional_attention): full is assumed, but weights trained in August and "
            "September 2025 may be causal; compare with diagnose_attention or give attention=",
            certain=False,
        )
    if flag_of(settings, "bidirectional_attention"):
        return AttentionDecision("full", "bidirectional_attention is true")
    return AttentionDecision("causal_rope", "bidirectional_attention is false")


def network_config(shapes: Shapes, hyper: Mapping[str, Any], attention: AttentionName) -> NetworkConfig:
    """Return the configuration of a checkpoint's network."""
    verify_supported(shapes, hyper)
    single = "basal_encoder.weight" in shapes
    n_encoder_layers = _depth(shapes, r"pert_encoder\.([0-9]{1,6})\.weight")
    n_decoder_layers = _depth(shapes, r"project_out\.([0-9]{1,6})\.weight")
    hidden, n_perturbation = _matrix(shapes, "pert_encoder.0.weight")
    n_input = _matrix(shapes, "basal_encoder.weight" if single else "basal_encoder.0.weight")[1]
    n_output = _matrix(shapes, f"project_out.{3 * (n_decoder_layers - 1)}.weight")[0]
    batch_token = "batch_token" in shapes
    decoder = gene_decoder_config(shapes, hyper)
    try:
        return NetworkConfig(
            n_input=n_input,
            n_output=n_output,
            n_perturbation=n_perturbation,
            hidden=hidden,
            n_encoder_layers=n_encoder_layers,
            n_decoder_layers=n_decoder_layers,
            control_encoder="linear" if single else "mlp",
            backbone=backbone_kind(hyper),
            attention=attention,
            head=_head(shapes, hyper),
            rectify=decoder is None or not is_embedding(hyper.get("embed_key")),
            n_batches=_matrix(shapes, "batch_encoder.weight")[0] if "batch_encoder.weight" in shapes else 0,
            batch_token=batch_token,
            n_batch_classes=_matrix(shapes, "batch_classifier.0.weight")[0] if batch_token else 0,
            confidence_token="confidence_token.confidence_token" in shapes,
            gene_decoder=decoder,
            activation=str(hyper.get("activation", "gelu")).lower(),
            dropout=float(hyper.get("dropout", 0.1)),
            **_backbone_dimensions(shapes, hyper, hidden),
        )
    except (ArithmeticError, ValueError, TypeError) as error:
        raise UnsafeFileError(f"The folder describes an impossible network: {error}") from None


def unused_tensors(shapes: Shapes, hyper: Mapping[str, Any]) -> dict[str, str]:
    """Return the tensors that no number depends on (second head without residual, untrained decoder), and why."""
    key, space = hyper.get("embed_key"), hyper.get("output_space", "gene")
    reasons = {}
    if space != "all" or not flag_of(hyper, "predict_residual", default=True):
        reasons["final_down_then_up."] = "not used without predict_residual"
    if key is None or (space != "all" and key == "X_hvg"):
        reasons["gene_decoder."] = "gene decoder that was never trained"
    return {name: reason for name in shapes for prefix, reason in reasons.items() if name.startswith(prefix)}


def loss_settings(hyper: Mapping[str, Any]) -> LossSettings:
    """Return how a checkpoint was trained. Keys that arc-state stores and never reads are left aside."""
    loss = str(hyper.get("loss", "energy")).lower()
    kernel = str(hyper.get("distributional_loss", "energy")).lower()
    if loss not in _LOSSES or kernel not in ("energy", "gaussian", "laplacian"):
        loss, kernel = "energy", "energy"
    try:
        defaults = {name: getattr(LossSettings, name) for name in _LOSS_KEYS}
        values = {name: type(value)(hyper.get(_LOSS_KEYS[name], value)) for name, value in defaults.items()}
        rate = None if hyper.get("lr") is None else float(hyper["lr"])
        return LossSettings(loss=_LOSSES[loss], kernel=kernel, learning_rate=rate, **values)  # type: ignore[arg-type]
    except (ArithmeticError, TypeError, ValueError) as error:
        raise UnsafeFileError(f"A loss setting of the folder is damaged: {error}") from None


def verify_supported(shapes: Shapes, hyper: Mapping[str, Any]) -> None:
    """Raise ``ValueError``, naming the part, if the checkpoint needs what this package does not have."""
    parts = {
        "has a negative-binomial (NB) gene decoder": any(map(_NB_DECODER.match, shapes)),
        "has an SE (State Embedding) gene decoder": any(map(_SE_DECODER.match, shapes)),
        "normalises raw counts inside (log1p_from_raw_counts)": hyper.get("log1p_from_raw_counts", False),
    }
    for part, found in parts.items():
        if found:
            raise ValueError(f"This checkpoint {part}, which is not supported.")


def flag_of(settings: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    """Return a setting that is true or false; text such as ``'no'`` would count as true and is refused."""
    value = settings.get(name)
    if value is not None and (not isinstance(value, bool | int) or value not in (0, 1)):
        raise UnsafeFileError(f"The hyper-parameter {name} is {str(value)[:40]!r}; it can be true or false.")
    return default if value is None else bool(value)


def backbone_kind(hyper: Mapping[str, Any]) -> Literal["llama", "gpt2"]:
    """Return the kind of backbone."""
    kind = str(hyper.get("transformer_backbone_key", "llama")).lower()
    if kind in ("llama", "gpt2"):
        return "gpt2" if kind == "gpt2" else "llama"
    raise ValueError(f"This checkpoint has a backbone of kind {kind[:40]!r}; 'llama' and 'GPT2' are supported.")


def backbone_settings(hyper: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the backbone's part of the hyper-parameters."""
    settings = hyper.get("transformer_backbone_kwargs")
    if not isinstance(settings, Mapping):
        raise UnsafeFileError("The hyper-parameters lack transformer_backbone_kwargs, which state the number of heads.")
    return settings


def gene_decoder_config(shapes: Shapes, hyper: Mapping[str, Any]) -> GeneDecoderConfig | None:
    """Return the gene decoder's configuration from its shapes, or ``None``."""
    residual = "gene_decoder.final_layer.0.weight" in shapes
    stem = r"blocks\.([0-9]{1,6})\.0" if residual else r"decoder\.([0-9]{1,6})"
    pattern = rf"gene_decoder\.{stem}\.weight"
    layers = sorted((int(m[1]), name) for name in shapes if (m := re.fullmatch(pattern, name)))
    widths = [shapes[name][0] for _, name in layers if len(shapes[name]) == 2]
    if residual:
        widths.append(shapes["gene_decoder.final_layer.0.weight"][0])
    if not widths:
        return None
    settings = hyper.get("decoder_cfg")
    dropout = settings.get("dropout", 0.1) if isinstance(settings, Mapping) else 0.1
    try:
        *hidden, n_genes = widths
        return GeneDecoderConfig(n_genes=n_genes, hidden=tuple(hidden), residual=residual, dropout=float(dropout))
    except (ArithmeticError, TypeError, ValueError) as error:
        raise UnsafeFileError(f"The folder describes an impossible gene decoder: {error}") from None


def _head(shapes: Shapes, hyper: Mapping[str, Any]) -> Literal["absolute", "down_up", "hidden_residual"]:
    if not flag_of(hyper, "predict_residual", default=True):
        return "absolute"
    # Versions before 0.9.12 had no second head: their output space 'all' is residual in hidden space.
    return "down_up" if "final_down_then_up.0.weight" in shapes else "hidden_residual"


def _backbone_dimensions(shapes: Shapes, hyper: Mapping[str, Any], hidden: int) -> dict[str, Any]:
    settings = backbone_settings(hyper)
    if backbone_kind(hyper) == "gpt2":
        return {
            "n_layers": _count(shapes, rf"{BACKBONE}\.h\.([0-9]{{1,6}})\.ln_1\.weight"),
            "intermediate": _matrix(shapes, f"{BACKBONE}.h.0.mlp.c_fc.weight")[1],
            "n_heads": _integer(settings, ("n_head", "num_attention_heads")),
            "attention_dropout": float(settings.get("attn_pdrop", 0.1)),
            "backbone_dropout": float(settings.get("resid_pdrop", 0.1)),
        }
    n_heads = _integer(settings, ("num_attention_heads",))
    n_kv_heads, head_dim = settings.get("num_key_value_heads"), settings.get("head_dim")
    queries = _matrix(shapes, f"{BACKBONE}.layers.0.self_attn.q_proj.weight")[0]
    head_dim = queries // n_heads if head_dim is None else _integer(settings, ("head_dim",))
    if n_heads * head_dim != queries:
        raise UnsafeFileError(f"{n_heads} heads of width {head_dim} do not make up the {queries} rows of q_proj.")
    return {
        "n_layers": _count(shapes, rf"{BACKBONE}\.layers\.([0-9]{{1,6}})\.input_layernorm\.weight"),
        "intermediate": _matrix(shapes, f"{BACKBONE}.layers.0.mlp.gate_proj.weight")[0],
        "n_heads": n_heads,
        "n_kv_heads": n_heads if n_kv_heads is None else n_kv_heads,
        "head_dim": head_dim,
        "attention_dropout": float(settings.get("attention_dropout", 0.0)),
    }


def _matrix(shapes: Shapes, name: str) -> tuple[int, int]:
    if name not in shapes:
        raise UnsafeFileError(f"The checkpoint lacks {name}; it is not a State Transition (ST) model.")
    if len(shapes[name]) != 2:
        raise UnsafeFileError(f"{name} has shape {shapes[name]}; a matrix is expected.")
    return shapes[name][0], shapes[name][1]


def _count(shapes: Shapes, pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in shapes)


def _depth(shapes: Shapes, pattern: str) -> int:
    """Return the number of linear layers of an encoder, whose indices go 0, 3, 6, ..."""
    indices = sorted(int(m[1]) for name in shapes if (m := re.fullmatch(pattern, name)))
    if not indices or indices != list(range(0, 3 * len(indices), 3)):
        raise UnsafeFileError(f"The checkpoint has no complete {pattern.partition(chr(92))[0]}: layers {indices}.")
    return len(indices)


def _integer(settings: Mapping[str, Any], names: tuple[str, ...]) -> int:
    for name in names:
        value = settings.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10_000:
            return value
    raise UnsafeFileError(f"The hyper-parameters do not state {names[0]}, which shapes cannot tell.")


@dataclass(frozen=True, kw_only=True)
class ArcColumns:
    """Names of ``obs`` columns for arc-state's configuration file; its command line can override them."""

    #: Column of the perturbation, of the cell line or type, of the technical batch.
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
        "gene_names": list((model.labels.decoder_genes if decoder else model.labels.genes) or ()),
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
        "loss": {ours: theirs for theirs, ours in _LOSSES.items()}[loss.loss],
        "loss_fn": "mse",
        "distributional_loss": loss.kernel,
        **{theirs: getattr(loss, ours) for ours, theirs in _LOSS_KEYS.items()},
        "lr": 1e-4 if loss.learning_rate is None else loss.learning_rate,
        "transformer_backbone_key": "llama" if config.backbone == "llama" else "GPT2",
        "transformer_backbone_kwargs": _backbone_settings(config, model.set_size),
        "lora": {"enable": False},
    }
    if n_tokens := n_positions(config, 0):
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
        "perturbation_features_file": None if model.perturbations.one_hot else "pert_onehot_map.pt",
    }
    left_out = {"gene_names", "transformer_backbone_kwargs", "input_dim", "output_dim", "pert_dim", "batch_dim"}
    backbone = dict(hyper["transformer_backbone_kwargs"])
    if model.config.backbone == "llama":
        del backbone["n_positions"]
    kwargs = {key: value for key, value in hyper.items() if key not in left_out}
    return {
        "name": "exported",
        "output_dir": ".",
        "data": {"name": "PerturbationDataModule", "kwargs": data},
        "model": {"name": "state", "kwargs": {**kwargs, "transformer_backbone_kwargs": backbone}},
        "training": {"batch_size": 16, "lr": hyper["lr"], "max_steps": 0, "train_seed": 42, "loss_fn": "mse"},
    }
