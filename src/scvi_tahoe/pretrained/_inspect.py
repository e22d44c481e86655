"""What is in a model folder, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvi_tahoe.pretrained._arc_writer import arc_refusals
from scvi_tahoe.pretrained._checkpoints import list_checkpoints
from scvi_tahoe.pretrained._model_card import LICENCE_SUMMARY

if TYPE_CHECKING:
    from pathlib import Path

    from scvi_tahoe.pretrained._pretrained_model import PretrainedModel

__all__ = ["describe", "inspect_folder"]

_SHOWN = 5


def inspect_folder(folder: str | Path, checkpoint: str | None = None) -> str:
    """Return a description of a model folder: network, attention, labels, tensors, loss, licence.

    Parameters
    ----------
    folder
        A folder in Arc's format or in ours.
    checkpoint
        Which checkpoint of a folder in Arc's format.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`read_pretrained` does.
    """
    from pathlib import Path

    from scvi_tahoe.pretrained._source import read_pretrained

    model = read_pretrained(folder, checkpoint)
    found = list_checkpoints(Path(folder)) if Path(folder).is_dir() else []
    text = describe(model)
    return f"{text}\ncheckpoints     {', '.join(found)}" if found else text


def describe(model: PretrainedModel) -> str:
    """Return a description of a pretrained model."""
    config, labels, origin = model.config, model.labels, model.provenance
    decoder = config.gene_decoder
    n_parameters = sum(tensor.numel() for tensor in model.state_dict.values())
    table = model.perturbations
    facts = {
        "source": " ".join(
            filter(None, (origin.source, origin.revision, origin.checkpoint, f"({origin.format} format)"))
        ),
        "parameters": f"{n_parameters:,}",
        "backbone": f"{config.backbone}, {config.n_layers} layers, hidden {config.hidden}, intermediate "
        f"{config.intermediate}, {config.n_heads} heads of {config.width_of_head} ({config.kv_heads} key/value)",
        "attention": f"{config.attention}: {origin.attention_reason or 'as trained'}"
        + ("" if origin.attention_certain else " [assumed]"),
        "encoders": f"control {config.control_encoder}, {config.n_encoder_layers} layers; {config.n_decoder_layers} "
        f"layers at the output; dropout {config.dropout}",
        "head": f"{config.head}, rectified" if config.rectify else config.head,
        "cells": f"{config.n_input} -> {config.n_output}, "
        + (f"embedding {labels.embedding!r}" if labels.embedding else "expression")
        + f", output space {model.output_space!r}",
        "genes": _names(labels.genes),
        "gene decoder": "none"
        if decoder is None
        else f"{config.n_output} -> {decoder.hidden} -> {decoder.n_genes}{', residual' if decoder.residual else ''}",
        "decoder genes": "" if decoder is None else _names(labels.decoder_genes),
        "perturbations": f"{_names(table.names)}, "
        + ("one-hot" if table.is_one_hot else f"features of width {table.width}, {len(table.zero_names)} of them zero"),
        "control": repr(labels.control),
        "batches": _names(labels.batches) + (", encoded" if config.n_batches else ", not used by the network"),
        "contexts": _names(labels.contexts),
        "tokens": ", ".join(
            name for name, there in (("batch", config.batch_token), ("confidence", config.confidence_token)) if there
        )
        or "none",
        "set size": str(labels.set_size),
        "prior": ""
        if model.prior is None
        else f"{model.prior['kind']}, of {len(model.prior['conditions'])} conditions",
        "loss": ", ".join(f"{name} {value}" for name, value in model.loss.to_kwargs().items()),
        "tensors": "" if model.report is None else model.report.text().replace("\n", "\n" + " " * 16),
        "arc export": "possible" if not arc_refusals(model) else "; ".join(arc_refusals(model)),
        "licence": LICENCE_SUMMARY if origin.non_commercial else "as stated by the author of the weights",
    }
    return "\n".join(f"{name:<15} {value}" for name, value in facts.items() if value)


def _names(names: tuple[str, ...] | None) -> str:
    if names is None:
        return "not named"
    shown = ", ".join(map(str, names[:_SHOWN]))
    return f"{len(names)} ({shown}{', ...' if len(names) > _SHOWN else ''})"
