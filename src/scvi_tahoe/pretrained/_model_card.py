"""Words that travel with weights: the model card and the licence notice."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scvi_tahoe.pretrained._pretrained_model import PretrainedModel

__all__ = ["LICENCE_SUMMARY", "licence_notice", "model_card"]

#: What a user has to know before using Arc's weights.
LICENCE_SUMMARY = (
    "Weights published by Arc Institute are under the Arc Research Institute State Model Non-Commercial License: "
    "non-commercial use only. It covers the weights, what they predict, and every model fine-tuned from them. "
    "Redistribution needs the text of the licence, this notice and the citation of Adduri et al. (2025), "
    "bioRxiv 2025.06.26.661135. Read the licence beside the weights before you use them."
)

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


def licence_notice() -> str:
    """Return the notice to put beside weights that derive from Arc's."""
    return (
        "# Licence notice\n\n"
        f"{LICENCE_SUMMARY}\n\n"
        "These weights, or weights they were trained from, come from Arc Institute. The software that wrote this file "
        "is under its own licence, which does not extend to the weights.\n"
    )


def model_card(model: PretrainedModel) -> str:
    """Return the text of ``README.md`` for an exported model."""
    config, labels = model.config, model.labels
    facts = {
        "backbone": f"{config.backbone}, {config.n_layers} layers, {config.hidden} wide, "
        f"{config.n_heads} heads of {config.width_of_head}",
        "attention": f"{config.attention} ({model.provenance.attention_reason or 'as trained'})",
        "head": config.head,
        "cells": f"embedding {labels.embedding}" if labels.genes is None else f"{len(labels.genes)} genes",
        "perturbations": f"{len(labels.perturbations.names)}, "
        + ("one-hot" if labels.perturbations.is_one_hot else f"features of width {labels.perturbations.width}"),
        "control": str(labels.control),
        "set size": str(labels.set_size),
        "prior": "none"
        if model.prior is None
        else f"{model.prior['kind']}, of {len(model.prior['conditions'])} conditions",
        "parameters": f"{sum(tensor.numel() for tensor in model.state_dict.values()):,}",
    }
    origin = model.provenance.source + (f", revision {model.provenance.revision}" if model.provenance.revision else "")
    arc = model.provenance.non_commercial
    n_donors = 0 if model.prior is None else len(model.prior["donor_condition"])
    return _CARD.format(
        licence="other" if arc else "unknown",
        title=f"{model.provenance.source} (scvi-tahoe)",
        rows="\n".join(f"| {name} | {value} |" for name, value in facts.items()),
        origin=f"Weights from {origin}." if model.provenance.format != "scratch" else "Trained from scratch.",
        licence_text=LICENCE_SUMMARY if arc else "Stated by whoever trained and published these weights.",
        donors=_DONORS.format(n=f"{n_donors:,}") if n_donors else "",
    )
