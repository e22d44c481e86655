"""Tensors of Arc's checkpoints and of our networks: names both ways, strictly, shapes, and adapters folded in.

Layouts differ: we keep queries, keys and values in one matrix, gate and up projection in another, GPT-2 matrices as
linear layers (transposed), and no token table, which is all zeros and never used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from scvi_tahoe.files import UnsafeFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from scvi_tahoe.nn import NetworkConfig

BACKBONE = "transformer_backbone"

#: Token and position tables of the peer's backbones: all zeros, bypassed, dropped on reading, zeros again on writing.
DEAD_TABLES = (f"{BACKBONE}.embed_tokens.weight", f"{BACKBONE}.wte.weight", f"{BACKBONE}.wpe.weight")


class KeyEntry(NamedTuple):
    """One of our tensors and the tensors of Arc's that it is made of."""

    ours: str
    theirs: tuple[str, ...]  # several are stacked along the first dimension
    rows: tuple[int, ...] = ()  # of each of theirs
    transpose: bool = False  # Arc stores the transpose


def key_entries(config: NetworkConfig) -> list[KeyEntry]:
    """Return the complete map for a network of this configuration, in the order of Arc's state dict."""
    return [*_encoders(config), *_tokens(config), *_backbone(config), *_head(config), *_gene_decoder(config)]


def from_arc(
    theirs: Mapping[str, Tensor],
    config: NetworkConfig,
    shapes: Mapping[str, tuple[int, ...]],
    check: Callable[[str, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Return our state dict of Arc's tensors (no dead tables, LoRA folded), in float32 and in memory of its own."""
    entries = key_entries(config)
    known = {name for entry in entries for name in entry.theirs}
    if missing := sorted(known - theirs.keys()):
        raise UnsafeFileError(f"The checkpoint lacks {len(missing)} tensors that its layout needs, e.g. {missing[:3]}.")
    if unknown := sorted(theirs.keys() - known):
        raise UnsafeFileError(f"The checkpoint holds {len(unknown)} tensors of no known meaning, e.g. {unknown[:3]}.")
    state = {}
    for entry in entries:
        parts = [check(name, theirs[name]).float() for name in entry.theirs]
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        # One clone: what stays behind is a memory map that may go away with its file.
        whole = whole.T.contiguous() if entry.transpose else whole.clone() if len(parts) == 1 else whole
        if entry.ours in ("batch_token", "confidence.token"):
            whole = whole.reshape(1, 1, -1)
        if tuple(whole.shape) != (wanted := tuple(shapes[entry.ours])):
            found = f"{' + '.join(entry.theirs)} has shape {tuple(whole.shape)}"
            raise UnsafeFileError(f"{found}; the hyper-parameters of the folder ask for {wanted}.")
        state[entry.ours] = whole
    return state


def to_arc(ours: Mapping[str, Tensor], config: NetworkConfig) -> dict[str, Tensor]:
    """Return Arc's state dict, without dead tables; tensors share memory with ours where they can."""
    entries = key_entries(config)
    if different := ours.keys() ^ {entry.ours for entry in entries}:
        raise ValueError(f"State dict and configuration disagree about {sorted(different)}.")
    theirs: dict[str, Tensor] = {}
    for entry in entries:
        whole = ours[entry.ours].T if entry.transpose else ours[entry.ours]
        parts = whole.split(list(entry.rows)) if len(entry.theirs) > 1 else (whole,)
        theirs.update(zip(entry.theirs, parts, strict=True))
    return theirs


def _linear(ours: str, theirs: str) -> Iterator[KeyEntry]:
    for part in ("weight", "bias"):
        yield KeyEntry(f"{ours}.{part}", (f"{theirs}.{part}",))


def _mlp(ours: str, theirs: str, n_layers: int) -> Iterator[KeyEntry]:
    # Arc counts activation and dropout as layers: linear layers sit at 0, 3, 6, ...
    for i in range(n_layers):
        yield from _linear(f"{ours}.layers.{i}", f"{theirs}.{3 * i}")


def _encoders(config: NetworkConfig) -> Iterator[KeyEntry]:
    yield from _mlp("perturbation_encoder", "pert_encoder", config.n_encoder_layers)
    if config.control_encoder == "linear":
        yield from _linear("control_encoder.layers.0", "basal_encoder")
    else:
        yield from _mlp("control_encoder", "basal_encoder", config.n_encoder_layers)
    if config.n_batches:
        yield KeyEntry("batch_encoder.weight", ("batch_encoder.weight",))


def _tokens(config: NetworkConfig) -> Iterator[KeyEntry]:
    if config.batch_token:
        yield KeyEntry("batch_token", ("batch_token",))
        yield from _linear("batch_classifier", "batch_classifier.0")
    if config.confidence_token:
        yield KeyEntry("confidence.token", ("confidence_token.confidence_token",))
        projection = "confidence_token.confidence_projection"
        for i, theirs in enumerate((0, 4, 8)):
            yield from _linear(f"confidence.projection.{i}", f"{projection}.{theirs}")
        for i, theirs in enumerate((1, 5)):
            yield from _linear(f"confidence.norms.{i}", f"{projection}.{theirs}")


def _backbone(config: NetworkConfig) -> Iterator[KeyEntry]:
    block = _llama_block if config.backbone == "llama" else _gpt2_block
    for i in range(config.n_layers):
        yield from block(config, i)
    if config.backbone == "llama":
        yield KeyEntry("backbone.norm.weight", (f"{BACKBONE}.norm.weight",))
    else:
        yield from _linear("backbone.norm", f"{BACKBONE}.ln_f")


def _llama_block(config: NetworkConfig, i: int) -> Iterator[KeyEntry]:
    ours, theirs = f"backbone.blocks.{i}", f"{BACKBONE}.layers.{i}"
    queries, keys = config.n_heads * config.width_of_head, config.kv_heads * config.width_of_head
    qkv = tuple(f"{theirs}.self_attn.{x}_proj.weight" for x in "qkv")
    gate_up = (f"{theirs}.mlp.gate_proj.weight", f"{theirs}.mlp.up_proj.weight")
    yield KeyEntry(f"{ours}.attention.qkv.weight", qkv, (queries, keys, keys))
    yield KeyEntry(f"{ours}.attention.out.weight", (f"{theirs}.self_attn.o_proj.weight",))
    yield KeyEntry(f"{ours}.gate_up.weight", gate_up, (config.intermediate,) * 2)
    yield KeyEntry(f"{ours}.down.weight", (f"{theirs}.mlp.down_proj.weight",))
    yield KeyEntry(f"{ours}.attention_norm.weight", (f"{theirs}.input_layernorm.weight",))
    yield KeyEntry(f"{ours}.feed_forward_norm.weight", (f"{theirs}.post_attention_layernorm.weight",))


def _gpt2_block(config: NetworkConfig, i: int) -> Iterator[KeyEntry]:
    ours, theirs = f"backbone.blocks.{i}", f"{BACKBONE}.h.{i}"
    yield from _linear(f"{ours}.attention_norm", f"{theirs}.ln_1")
    yield from _linear(f"{ours}.feed_forward_norm", f"{theirs}.ln_2")
    matrices = {"attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}
    for mine, other in matrices.items():
        yield KeyEntry(f"{ours}.{mine}.weight", (f"{theirs}.{other}.weight",), transpose=True)
        yield KeyEntry(f"{ours}.{mine}.bias", (f"{theirs}.{other}.bias",))


def _head(config: NetworkConfig) -> Iterator[KeyEntry]:
    yield from _mlp("head.project", "project_out", config.n_decoder_layers)
    if config.head == "down_up":
        yield from _linear("head.down", "final_down_then_up.0")
        yield from _linear("head.up", "final_down_then_up.2")


def _gene_decoder(config: NetworkConfig) -> Iterator[KeyEntry]:
    if config.gene_decoder is None:
        return
    n_blocks = len(config.gene_decoder.hidden)
    for k in range(n_blocks):
        residual = config.gene_decoder.residual
        linear, norm = (f"blocks.{k}.0", f"blocks.{k}.1") if residual else (f"decoder.{4 * k}", f"decoder.{4 * k + 1}")
        yield from _linear(f"gene_decoder.layers.{k}", f"gene_decoder.{linear}")
        yield from _linear(f"gene_decoder.norms.{k}", f"gene_decoder.{norm}")
    last = "final_layer.0" if config.gene_decoder.residual else f"decoder.{4 * n_blocks}"
    yield from _linear("gene_decoder.out", f"gene_decoder.{last}")


_INFIX = f"{BACKBONE}.base_model.model."


def fold_lora(
    state: Mapping[str, Tensor], hyper: Mapping[str, Any], check: Callable[[str, Tensor], Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state dict with ``W + alpha / r * B @ A`` in place of LoRA adapters, and the names of such matrices.

    Hu et al. 2021, arXiv:2106.09685. The rank r is read off the shapes. ``transposed`` matrices are stored input-major
    (GPT-2), and so is the update.
    """
    if not any(name.startswith(_INFIX) for name in state):
        return dict(state), []
    settings = hyper.get("lora")
    alpha = settings.get("alpha") if isinstance(settings, dict) else None
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise UnsafeFileError("The checkpoint has LoRA adapters and the hyper-parameters do not state lora.alpha.")
    transposed = str(hyper.get("transformer_backbone_key", "llama")).lower() == "gpt2"
    plain, folded = {}, []
    for name, tensor in state.items():
        if ".lora_A." in name or ".lora_B." in name:
            if name.split(".lora_")[0] + ".base_layer.weight" not in state:
                raise UnsafeFileError(f"LoRA adapter {name} adapts no matrix of the checkpoint.")
            continue
        target = name.replace(_INFIX, f"{BACKBONE}.").replace(".base_layer.", ".")
        if name.endswith(".base_layer.weight"):
            stem = name.removesuffix(".base_layer.weight")
            tensor = _folded(state, stem, float(alpha), transposed=transposed, check=check)
            folded.append(target)
        plain[target] = tensor
    return plain, folded


def _folded(
    state: Mapping[str, Tensor], stem: str, alpha: float, *, transposed: bool, check: Callable[[str, Tensor], Tensor]
) -> Tensor:
    names = {part: f"{stem}.{part}.weight" for part in ("base_layer", "lora_A.default", "lora_B.default")}
    if missing := [name for name in names.values() if name not in state]:
        raise UnsafeFileError(f"LoRA of {stem} is incomplete: {missing} missing.")
    base, a, b = (check(name, state[name]).float() for name in names.values())
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise UnsafeFileError(f"LoRA of {stem} has factors of shapes {tuple(b.shape)} and {tuple(a.shape)}.")
    update = alpha / a.shape[0] * (b @ a)
    update = update.T if transposed else update
    if update.shape != base.shape:
        raise UnsafeFileError(f"LoRA of {stem} has shape {tuple(update.shape)}, its matrix {tuple(base.shape)}.")
    return base + update
