"""A model that starts from pretrained weights: its options for the user's data, and its registry without data."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scvi

from scvi_tahoe._constants import REGISTRY
from scvi_tahoe.data import NUMBER_COLUMNS, EmbeddingTable, EmbeddingTableField
from scvi_tahoe.pretrained._tables import composed_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from scvi_tahoe.data import Representation
    from scvi_tahoe.pretrained._pretrained_model import LossSettings, PretrainedModel


def start_options(
    weights: PretrainedModel,
    stats: Mapping[str, Any],
    *,
    representation: Representation | None = None,
    batch_encoder: bool | None = None,
    head: str | None = None,
) -> dict[str, Any]:
    """Return constructor arguments for registered data with these summary statistics; None is as in the weights."""
    config, extra = weights.config, weights.extra
    embeds = weights.embeds if representation is None else representation == "embedding"
    if weights.embeds and embeds and "n_cell_embedding" not in stats:
        name = f"{weights.provenance.source} works on the cell embedding {weights.embed_key!r}"
        raise ValueError(f"{name}; register that embedding of your cells with cell_embedding_key.")
    if representation is None:
        representation = extra.get("representation", "embedding" if embeds else "expression")
        if representation == "expression+embedding" and "n_cell_embedding" not in stats:
            representation = "expression"  # the embedding is a signal of training only, and may be absent later
    network = _network_options(weights, stats, embeds=embeds, batch_encoder=batch_encoder, head=head)
    prior = extra.get("prior", "none") if (head or config.head) == "delta" else "none"
    return {
        "representation": representation,
        "set_size": weights.set_size,
        "size": network,
        "batch_encoder": bool(network["n_batches"]) if batch_encoder is None else batch_encoder,
        "objective": extra.get("objective"),
        "prior": prior,
        "criterion": extra.get("criterion", "error") if prior == "response" else "error",
    }


def _network_options(
    weights: PretrainedModel, stats: Mapping[str, Any], *, embeds: bool, batch_encoder: bool | None, head: str | None
) -> dict[str, Any]:
    config = weights.config
    width = stats.get("n_cell_embedding") if embeds else stats["n_vars"]
    n_batches = 0 if batch_encoder is False else stats.get("n_batch", 0)
    options = config.to_kwargs() | {
        "n_input": width,
        "n_output": width,
        "n_perturbation": stats["n_perturbation_embedding"],
        "n_perturbation_parts": stats["n_perturbation_parts"],
    }
    if config.n_batches or (batch_encoder and not config.batch_token):
        options["n_batches"] = n_batches
    if config.batch_token:
        options |= {"n_batch_classes": n_batches, "batch_token": n_batches > 0}
    if config.gene_decoder is not None:
        options["gene_decoder"] = {**options["gene_decoder"], "n_genes": stats["n_vars"]}
    other_cells = embeds != weights.embeds
    if other_cells:
        options["rectify"] = not embeds
        if not embeds:
            options["gene_decoder"] = None
        elif config.gene_decoder is None:
            del options["gene_decoder"]  # the constructor adds one
    if other_cells or head not in (None, config.head):
        # options of cells or of a head that are left behind say nothing about the new ones
        del options["keep_zeros"], options["base_encoder"]
        options["sees_perturbation"] = True
    elif not config.base_encoder:
        del options["base_encoder"]  # a prior of cells brings one; what the weights know of labels is used
    return options


def for_other_cells(weights: PretrainedModel) -> PretrainedModel:
    """Return the weights without what their training says of cells: representation, objective and prior."""
    note = "the prior of the weights is left out, as the new model works on another representation"
    notes = weights.notes if weights.prior is None else (*weights.notes, note)
    return replace(weights, extra={"prior": "auto"}, prior=None, notes=notes)


def fitted_values(weights: PretrainedModel) -> dict[str, Any]:
    """Return what an export says of the data that its model was trained on, by the names of the model's attributes."""
    found = weights.extra.get("fitted") or {}
    names = ("observed_cosine", "observed_noise", "decoder_weight")
    values = {f"{name}_": found[name] for name in names if found.get(name)}
    return values | ({"training_config_": weights.extra["training"]} if weights.extra.get("training") else {})


def objective_of(loss: LossSettings) -> dict[str, Any]:
    """Return the objective that weights were trained with, as options of ``ObjectiveConfig``."""
    terms = {
        "energy": {"energy" if loss.kernel == "energy" else "mmd": 1.0},
        "sinkhorn": {"sinkhorn": 1.0},
        "energy+sinkhorn": {"energy": loss.energy_weight, "sinkhorn": loss.sinkhorn_weight},
        "mse": {"mse": 1.0},
    }[loss.loss]
    return {
        "terms": terms,
        "energy_diagonal": "rounded",
        "blur": loss.blur,
        "kernel": "gaussian" if loss.kernel == "energy" else loss.kernel,
        "chunks": loss.n_chunks,
        "decoder_weight": loss.decoder_weight,
        "batch_weight": loss.batch_token_weight,
        "confidence_weight": loss.confidence_weight,
        "confidence_scale": loss.confidence_target_scale,
        "shift_weight": loss.regularization,
    }


def united_table(weights: PretrainedModel, data: EmbeddingTable) -> EmbeddingTable | None:
    """Return the labels of one-hot weights, which stay predictable, and one-hot data; None unless both are one-hot."""
    if weights.perturbations.columns is None or not data.components.one_hot:
        return None
    known = [name for name in weights.perturbations.columns if name not in NUMBER_COLUMNS]
    return data.reindexed(EmbeddingTable.one_hot_of([*known, *(n for n in data.components.names if n not in known)]))


def reason_to_leave_prior(weights: PretrainedModel, kind: str, genes: Iterable[str] | None) -> tuple[str, ...]:
    """Return, as notes, why a model with prior ``kind`` and these genes of data cannot use that of the weights."""
    if weights.prior is None:
        return ()
    if kind != weights.prior["kind"]:
        return (f"the prior of the weights, {weights.prior['kind']!r}, is left out, as prior={kind!r} was asked for",)
    if genes is not None and set(genes) != set(weights.genes or ()):
        return (f"the prior of the weights, {kind!r}, is left out, as the data have other genes; train() learns it",)
    return ()


def with_numbered_genes(weights: PretrainedModel) -> PretrainedModel:
    """Return the weights with numbers for the genes of their cells, where the folder does not name them."""
    n_genes = weights.config.n_output
    if weights.genes is not None or weights.embeds or weights.config.n_input != n_genes:
        return weights
    note = f"the {n_genes} genes are numbered from gene_0 on: the model runs on tensors, not on named genes"
    return replace(weights.with_genes([f"gene_{i}" for i in range(n_genes)]), notes=(*weights.notes, note))


def registry_of(weights: PretrainedModel, model_name: str) -> dict[str, Any]:
    """Return the scvi-tools registry of a model without data; genes and batches without names are numbered."""
    config = weights.config
    n_genes = config.gene_decoder.n_genes if config.gene_decoder is not None else config.n_output
    genes = weights.labels.decoder_genes or weights.genes or tuple(f"gene_{i}" for i in range(n_genes))
    table = composed_table(weights)
    measured = weights.extra.get("measured") or table.names
    n_batches = config.n_batches or config.n_batch_classes
    batches = weights.batches or tuple(f"batch_{i}" for i in range(n_batches))
    contexts = weights.contexts or ("all cells",)
    fields = {
        REGISTRY.EXPRESSION: ({"n_vars": len(genes), "column_names": _objects(genes)}, {"n_vars": len(genes)}),
        REGISTRY.PERTURBATION: ({"names": _objects(measured)}, {"n_perturbation": len(measured)}),
        REGISTRY.CONTROL: ({"label": weights.control}, {}),
        REGISTRY.PERTURBATION_EMBEDDING: (
            EmbeddingTableField.state(table),
            {"n_perturbation_embedding": table.encoder_width, "n_perturbation_parts": table.n_components},
        ),
        REGISTRY.CONTEXT: ({"names": _objects(contexts)}, {"n_context": len(contexts)}),
    }
    if n_batches:
        fields[REGISTRY.BATCH] = ({"names": _objects(batches)}, {"n_batch": len(batches)})
    if weights.embeds:
        fields[REGISTRY.CELL_EMBEDDING] = ({"width": config.n_input}, {"n_cell_embedding": config.n_input})
    setup = {
        "perturbation_key": "perturbation",
        "context_key": "context",
        "batch_key": "batch" if n_batches else None,
        **weights.extra.get("keys", {}),
        "control": weights.control or "control",
        "cell_embedding_key": weights.embed_key if weights.embeds else None,
    }
    return {
        "scvi_version": scvi.__version__,
        "model_name": model_name,
        "setup_method_name": "setup_anndata",
        "setup_args": setup,
        "field_registries": {
            key: {"data_registry": {}, "state_registry": state, "summary_stats": stats}
            for key, (state, stats) in fields.items()
        },
    }


def registry_in_order(registry: dict[str, Any], genes: Iterable[str]) -> dict[str, Any]:
    """Return a registry of data with genes in the order of the weights: what a prior draws depends on their order."""
    fields = registry["field_registries"]
    expression = fields[REGISTRY.EXPRESSION]
    state = {**expression["state_registry"], "column_names": _objects(genes)}
    return {**registry, "field_registries": {**fields, REGISTRY.EXPRESSION: {**expression, "state_registry": state}}}


def _objects(names: Iterable[str]) -> np.ndarray:
    return np.array([str(n) for n in names], dtype=object)
