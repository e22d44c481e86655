"""An arc-state configuration checked: one of our runs, and what arc-state would have made of the file, rule by rule.

Facts about arc-state 0.11.1 and the releases before it, found by running it and by what its runs logged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from scvi_tahoe.study._arc_config import ArcConfig, read_arc_config, run_from_arc
from scvi_tahoe.study._finding import LEVELS, Finding, findings_text, worst

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from scvi_tahoe.study._finding import Level
    from scvi_tahoe.study._run_config import TahoeRun

    Rule = Callable[[ArcConfig], Iterator[Finding]]

#: rules in the order of their definition, which is that of findings on one line
_RULES: list[Rule] = []

#: key that is stored and never read -> what is true, and what we do instead
_IGNORED: dict[str, tuple[str, str]] = {
    "training.weight_decay": ("weights never decay: the optimizer is Adam without decay", "AdamW with this decay"),
    "training.lr_scheduler": ("no schedule is ever attached; the rate is constant", "warm-up and cosine"),
    "training.warmup_ratio": ("there is no warm-up", "train.plan.warmup"),
    "training.min_lr_ratio": ("the rate has no floor, as it never falls", "train.plan.min_lr_ratio"),
    "training.lr_num_cycles": ("no schedule is ever attached", "one cycle of cosine"),
    "training.log_lr": ("no rate is logged", "metrics.csv has the rate of every part of the network"),
    "training.precision": ("training runs in float32 with rounded products", "train.precision"),
    "training.accumulate_grad_batches": (
        "the key is unknown, an optimizer step has one minibatch (gradient_accumulation_steps is read, from 0.9.32 on)",
        "train.accumulate",
    ),
    "training.ckpt_every_n_steps": ("not from 0.9.32 on", "best.ckpt and last.ckpt are always kept"),
    "training.wandb_track": ("not on this model", "train.loggers: [wandb]"),
    "training.betas": ("Adam keeps its default betas", "train.plan.betas"),
    "model.kwargs.softplus": (
        "no softplus is applied; the output of expression models is rectified by ReLU", "ReLU, network.rectify",
    ),
    "model.kwargs.decoder_loss_weight": (
        "the key is unknown; the weight of the gene decoder's loss is decoder_weight (default 1.0)",
        "model.objective.decoder_weight",
    ),
    "model.kwargs.transformer_decoder": ("", "nothing"),
    "model.kwargs.use_effect_gating_token": ("", "nothing"),
    "model.kwargs.confidence_head": ("confidence_token is read", "network.confidence_token"),
    "model.kwargs.predict_mean": ("", "nothing"),
    "model.kwargs.batch_predictor": ("its parameters are deleted before training", "network.batch_token"),
    "model.checkpoint": ("no checkpoint is read from here; init_from is", "start.source"),
    "model.device": ("", "train.accelerator"),
    "data.kwargs.pert_rep": (
        "features are used if perturbation_features_file is set, and only then",
        "data.perturbation_embedding_key",
    ),
    "data.kwargs.basal_rep": ("", "nothing"),
    "data.kwargs.int_counts": ("values are used as they are stored", "setup refuses counts where log1p is expected"),
    "data.kwargs.normalize_counts": ("nothing is normalised", "setup refuses counts where log1p is expected"),
    "data.kwargs.map_controls": ("controls are paired with random controls whatever it says", "controls are no "
    "targets"),
    "data.kwargs.n_basal_samples": ("one control cell is drawn for each cell", "one"),
    "data.kwargs.pin_memory": ("memory is always pinned", "expression lives on the device"),
    "data.kwargs.persistent_workers": ("", "no worker processes"),
    "data.kwargs.prefetch_factor": ("four minibatches are prefetched whatever it says", "no worker processes"),
    "model.kwargs.transformer_backbone_kwargs.hidden_dropout": ("the backbone has no such dropout", "network.dropout"),
    "model.kwargs.transformer_backbone_kwargs.layer_norm_eps": ("the norm keeps its own epsilon", "1e-6"),
    "model.kwargs.transformer_backbone_kwargs.rotary_dim": ("", "network.attention"),
    "model.kwargs.transformer_backbone_kwargs.use_rotary_embeddings": (
        "whether positions are rotated depends on the releases of arc-state and transformers",
        "network.attention, which diagnose_attention finds out",
    ),
}  # fmt: skip
#: Of these, what is ignored changes the course of training; of the others, only what one believes.
_SEVERE = (
    "training.weight_decay", "training.lr_scheduler", "training.warmup_ratio", "training.min_lr_ratio",
    "training.precision", "training.accumulate_grad_batches", "model.kwargs.softplus",
    "model.kwargs.decoder_loss_weight", "training.log_lr",
)  # fmt: skip
#: Values by which an ignored key asks for nothing.
_ASKS_NOTHING = {
    "data.kwargs.n_basal_samples": 1, "training.accumulate_grad_batches": 1, "training.lr_num_cycles": 1,
}  # fmt: skip
_CLIP_AT_MOST = 5.0
_BACKBONE = "model.kwargs.transformer_backbone_kwargs"


@dataclass(frozen=True, eq=False)
class ConfigCheck:
    """An arc-state configuration, seen by us.

    Attributes
    ----------
    path
        The file.
    run
        The same as one of our runs.
    findings
        What arc-state ignores or does otherwise, by line.
    """

    path: Path
    run: TahoeRun
    findings: tuple[Finding, ...]

    def exit_code(self, *, strict: bool = False) -> int:
        """Return 1 if something would make the run meaningless, or, if strict, other than its author thinks; else 0."""
        level = worst(self.findings)
        return int(level == "error" or (strict and level == "warning"))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        found = [finding.to_dict() for finding in self.findings]
        return {"path": str(self.path), "run": self.run.to_dict(), "findings": found}

    def __str__(self) -> str:
        shown = {
            key: {k: v for k, v in part.items() if v not in (None, [], {})} if isinstance(part, dict) else part
            for key, part in self.run.to_dict().items()
            if part is not None
        }
        text = yaml.safe_dump(shown, sort_keys=False, width=100)
        numbers = {level: sum(f.level == level for f in self.findings) for level in LEVELS}
        counts = ", ".join(f"{n} {level}{'s' * (n != 1)}" for level, n in numbers.items() if n)
        return f"{self.path} as a run of ours:\n\n{text}\n{counts or 'nothing to say'}\n{findings_text(self.findings)}"


def check_config(path: str | Path) -> ConfigCheck:
    """Read a configuration of arc-state, convert it, and say what arc-state ignores or gets wrong in it.

    Parameters
    ----------
    path
        The ``config.yaml`` of a run.

    Returns
    -------
    :class:`ConfigCheck`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a configuration of arc-state.

    Examples
    --------
    >>> from scvi_tahoe.study import check_config
    >>> print(check_config("config.yaml"))  # doctest: +SKIP
    """
    config = read_arc_config(path)
    findings = sorted((f for rule in _RULES for f in rule(config)), key=lambda f: f.line or 0)
    return ConfigCheck(config.path, run_from_arc(config), tuple(findings))


def _rule(function: Rule) -> Rule:
    _RULES.append(function)
    return function


def _found(config: ArcConfig, rule: str, level: Level, key: str, message: str, instead: str) -> Finding:
    return Finding(rule, level, key, message, instead, config.lines.get(key))


@_rule
def representation(config: ArcConfig) -> Iterator[Finding]:
    """Find embeddings at the input and genes in the score."""
    key, embedding = "data.kwargs.embed_key", config.embedding
    if embedding is None:
        return
    if not config.has_gene_decoder:
        yield _found(
            config, "no_genes", "error", key,
            f"cells are embeddings ({embedding}) and nothing trained makes genes of them (output_space "
            f"{config.get('data.kwargs.output_space')!r}): a score on genes would mean nothing.",
            "model.representation: expression, or output_space all with a gene decoder.",
        )  # fmt: skip
        return
    weight = config.number("model.kwargs.decoder_weight", 1.0)
    yield _found(
        config, "scored_space", "error" if weight == 0 else "warning", key,
        f"cells are embeddings ({embedding}), scores are of genes: val_loss, by which checkpoints are chosen, is the "
        f"embedding's alone, and genes come from a decoder beside it (weight {weight:g}). The two losses differ by "
        "orders of magnitude." + (" With weight 0 the decoder stays random." if weight == 0 else ""),
        "model.representation: expression+embedding trains and scores genes, with the embedding as auxiliary signal.",
    )  # fmt: skip


@_rule
def named_loss(config: ArcConfig) -> Iterator[Finding]:
    """Find a loss in ``training.loss_fn`` that is not the one trained, ``model.kwargs.loss``."""
    key, trained = "training.loss_fn", config.get("model.kwargs.loss", "energy")
    if config.has(key) and config.get(key) != trained:
        yield _found(
            config, "loss_fn", "warning", key,
            f"{config.get(key)!r} has no effect: model.kwargs.loss, here {trained!r}, is what is trained.",
            "model.objective.terms names what is trained, and the log has a column for each term.",
        )  # fmt: skip


@_rule
def decoder_weights(config: ArcConfig) -> Iterator[Finding]:
    """Find two weights of the decoder's loss, one of which is read."""
    unread, read = "model.kwargs.decoder_loss_weight", "model.kwargs.decoder_weight"
    if config.has(unread) and config.has(read) and config.get(unread) != config.get(read):
        yield _found(
            config, "decoder_weight", "warning", unread,
            f"it says {config.get(unread)!r} and decoder_weight says {config.get(read)!r}: decoder_weight counts.",
            f"model.objective.decoder_weight: {config.get(read)!r}.",
        )  # fmt: skip


@_rule
def clipping(config: ArcConfig) -> Iterator[Finding]:
    """Find a clip that never clips."""
    key = "training.gradient_clip_val"
    value = config.number(key, 10.0)
    if value is not None and value >= _CLIP_AT_MOST:
        said = f"{value:g}" if config.has(key) else f"it is not set, and the default is {value:g}"
        yield _found(
            config, "clipping", "warning", key,
            f"{said}: gradients of these models rarely reach it, so nothing is clipped.",
            "train.plan.gradient_clip: 1.0.",
        )  # fmt: skip


@_rule
def set_length(config: ArcConfig) -> Iterator[Finding]:
    """Find sets of another length than the loader's or the checkpoint's."""
    key, size = "model.kwargs.cell_set_len", config.set_size
    loader = config.number(f"{_BACKBONE}.n_positions", config.number(f"{_BACKBONE}.max_position_embeddings"))
    if size is None:
        return
    if loader is not None and int(loader) != size:
        yield _found(
            config, "set_length", "error", key,
            f"sets have {size} cells here and {int(loader)} in the loader (max_position_embeddings): reshaping fails.",
            "model.set_size is the only place.",
        )  # fmt: skip
    theirs = config.set_size_of_source
    if theirs is not None and size < theirs:
        yield _found(
            config, "shorter_sets", "warning", key,
            f"sets of {size} cells, and the weights it starts from were trained with {theirs}: the energy distance has "
            "a floor of about (mean distance of two cells) / (cells of a set), so losses of different lengths cannot "
            "be compared, and means over fewer cells are noisier.",
            f"model.set_size: {theirs}, unless start.accept names other_set_size.",
        )  # fmt: skip


@_rule
def attention(config: ArcConfig) -> Iterator[Finding]:
    """Find that the flag on which the meaning of a checkpoint depends is missing."""
    key = f"{_BACKBONE}.bidirectional_attention"
    llama = str(config.get("model.kwargs.transformer_backbone_key", "llama")).lower() == "llama"
    if llama and not config.has(key) and not config.get("model.kwargs.mask_attn", False):
        yield Finding(
            "bidirectional", "warning", key,
            "the flag is missing: arc-state from 0.9.32 on reads such weights as causal with rotary positions, earlier "
            "releases as full or causal, depending on the release of transformers.",
            "full, stated in network.attention; model.diagnose_attention() compares.",
            config.lines.get(_BACKBONE),
        )  # fmt: skip


@_rule
def start(config: ArcConfig) -> Iterator[Finding]:
    """Explain ``init_from``, and what is carried along with it."""
    key, source = "model.kwargs.init_from", config.get("model.kwargs.init_from")
    if not source:
        return
    yield _found(
        config, "init_from_resumes", "warning", key,
        "if the run's folder holds checkpoints/last.ckpt, that run is resumed with its optimizer, rate and step, and "
        "this key is ignored; otherwise tensors are copied by position, not by the names of genes or perturbations, "
        "and those that do not fit are skipped in silence.",
        "start.source: weights only, matched by name, with a report; what does not fit is asked for.",
    )  # fmt: skip
    if str(source).replace("\\", "/").endswith("/last.ckpt"):
        yield _found(
            config, "starts_from_last", "warning", key,
            "last.ckpt is where the earlier run ended, not where it was best.", "start.checkpoint: best.",
        )  # fmt: skip
    if config.get("model.kwargs.lora.enable", False):
        yield _found(
            config, "lora", "error", "model.kwargs.lora.enable",
            "with init_from every tensor of the backbone is skipped, and the random backbone is frozen.",
            "train.recipe: heads, or freeze_then_unfreeze.",
        )  # fmt: skip


@_rule
def frozen_random_head(config: ArcConfig) -> Iterator[Finding]:
    """Find a frozen backbone that takes the output layer along."""
    key = "model.kwargs.freeze_pert_backbone"
    if not config.get(key, False):
        return
    if not config.get("model.kwargs.init_from"):
        yield _found(
            config, "frozen_random", "error", key, "nothing is loaded (no init_from), so what is frozen is random.",
            "only tensors with pretrained values are ever frozen.",
        )  # fmt: skip
    elif config.embedding is None and config.starts_from_tahoe and config.get("data.kwargs.output_space") == "all":
        yield _found(
            config, "frozen_random", "warning", key,
            "freezing takes project_out along, before weights are loaded. The released weights have 2,000 genes, so "
            "with all genes at the output its last layer does not fit, stays random, and is frozen at that.",
            "tensors that are not loaded always train.",
        )  # fmt: skip
    else:
        yield _found(
            config, "freezing", "note", key, "the backbone and project_out are frozen for the whole run.",
            "train.freeze_backbone: true freezes the backbone; the layers at the output train.",
        )  # fmt: skip


@_rule
def decoder_without_gradient(config: ArcConfig) -> Iterator[Finding]:
    """Find a decoder that is built and never trained."""
    if config.embedding is None and config.has("model.kwargs.decoder_hidden_dims"):
        yield _found(
            config, "idle_decoder", "note", "model.kwargs.decoder_hidden_dims",
            "cells are expression, so the gene decoder is built and never receives a gradient.", "no gene decoder.",
        )  # fmt: skip


@_rule
def ignored_keys(config: ArcConfig) -> Iterator[Finding]:
    """Find keys that are stored and never read."""
    for key, (truth, ours) in _IGNORED.items():
        value = config.get(key)
        off = value in (None, False, 0) and not (key == "training.weight_decay" and value == 0)
        if config.has(key) and not off and value != _ASKS_NOTHING.get(key):
            why = f": {truth}" if truth else ""
            level: Level = "warning" if key in _SEVERE else "note"
            yield _found(config, "ignored", level, key, f"{value!r} has no effect{why}.", f"{ours}.")
