"""A model described: the card that travels with weights, and a description of a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvi_tahoe.pretrained._licence import licence_text
from scvi_tahoe.pretrained._pretrained_model import FORMATS
from scvi_tahoe.pretrained._warm_start import zero_names

if TYPE_CHECKING:
    from scvi_tahoe.pretrained._pretrained_model import PretrainedModel

_SHOWN = 5
_CARD = """---
library_name: scvi-tools
license: {licence}
tags:
- single-cell
- perturbation
- scvi-tahoe
---

# {title}

A set transformer that predicts the expression of perturbed cells from control cells. Read it with
`scvi_tahoe.TahoeST.from_pretrained`; nothing in this folder is executed on reading.

| | |
|---|---|
{rows}

## Origin

{origin}

## Licence

{licence_text}
{donors}"""

_DONORS = """
## Cells of the training data

`prior.safetensors` holds the expression of {n} perturbed cells of the training data, from which predictions are made,
and quantiles of its control cells. Pass this folder on only where those cells may be passed on.
"""


def model_card(model: PretrainedModel, title: str | None = None) -> str:
    """Return the text of ``README.md`` for an exported model; ``title`` defaults to the source of the weights."""
    config, labels = model.config, model.labels
    facts = {
        "backbone": f"{config.backbone}, {config.n_layers} layers, {config.hidden} wide, "
        f"{config.n_heads} heads of {config.width_of_head}",
        "attention": f"{config.attention} ({model.provenance.attention_reason or 'as trained'})",
        "head": config.head,
        "cells": f"embedding {labels.embedding}" if labels.genes is None else f"{len(labels.genes)} genes",
        "perturbations": f"{len(labels.perturbations.names)}, "
        + ("one-hot" if labels.perturbations.one_hot else f"features of width {labels.perturbations.width}"),
        "control": str(labels.control),
        "set size": str(labels.set_size),
        "prior": _prior(model) or "none",
        "parameters": _n_parameters(model),
    }
    origin = model.provenance.source + (f", revision {model.provenance.revision}" if model.provenance.revision else "")
    stated = "other" if model.provenance.non_commercial else model.provenance.licence or "unknown"
    scratch = model.provenance.format == "scratch"
    n_donors = 0 if model.prior is None else len(model.prior.get("donor_condition", ()))
    return _CARD.format(
        licence=stated,
        title=title or ("scvi-tahoe model" if scratch else f"{model.provenance.source} (scvi-tahoe)"),
        rows="\n".join(f"| {name} | {value} |" for name, value in facts.items()),
        origin="Trained from scratch." if scratch else f"Weights from {origin}.",
        licence_text=licence_text(model.provenance),
        donors=_DONORS.format(n=f"{n_donors:,}") if n_donors else "",
    )


def describe(model: PretrainedModel) -> str:
    """Return a description of a pretrained model."""
    config, labels, origin = model.config, model.labels, model.provenance
    decoder = config.gene_decoder
    words = origin.source, origin.revision, origin.checkpoint, f"({origin.format} format)"
    tokens = [name for name in ("batch", "confidence") if getattr(config, f"{name}_token")]
    table = model.perturbations
    facts = {
        "source": " ".join(filter(None, words)),
        "parameters": _n_parameters(model),
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
        + ("one-hot" if table.one_hot else f"features of width {table.width}, {len(zero_names(table))} of them zero"),
        "control": repr(labels.control),
        "batches": _names(labels.batches) + (", encoded" if config.n_batches else ", not used by the network"),
        "contexts": _names(labels.contexts),
        "tokens": ", ".join(tokens) or "none",
        "set size": str(labels.set_size),
        "prior": _prior(model),
        "loss": ", ".join(f"{name} {value}" for name, value in model.loss.to_kwargs().items()),
        "tensors": "" if model.report is None else model.report.text().replace("\n", "\n" + " " * 16),
        **{f"{k} export": "; ".join(f.refusals(model)) or "possible" for k, f in FORMATS.items() if f.refusals},
        "licence": licence_text(origin),
    }
    return "\n".join(f"{name:<15} {value}" for name, value in facts.items() if value)


def _prior(model: PretrainedModel) -> str:
    prior = model.prior
    return "" if prior is None else f"{prior['kind']}, of {len(prior['conditions'])} conditions"


def _n_parameters(model: PretrainedModel) -> str:
    return f"{sum(tensor.numel() for tensor in model.state_dict.values()):,}"


def _names(names: tuple[str, ...] | None) -> str:
    if names is None:
        return "not named"
    shown = ", ".join(map(str, names[:_SHOWN]))
    return f"{len(names)} ({shown}{', ...' if len(names) > _SHOWN else ''})"
