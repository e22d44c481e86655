"""TahoeST from pretrained weights, and back into a folder: what each side calls the same thing."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scvi
import torch

from scvi_tahoe._constants import REGISTRY, TENSORS
from scvi_tahoe.data import NUMBER_COLUMNS, Component, Composition, EmbeddingTable, EmbeddingTableField, TableFusion
from scvi_tahoe.nn import merged_state
from scvi_tahoe.pretrained import (
    LabelMatch,
    Labels,
    LoadingReport,
    LossSettings,
    PerturbationTable,
    PretrainedModel,
    Provenance,
    TensorRecord,
    UnsafeFileError,
    compare_scale,
)
from scvi_tahoe.pretrained._pretrained_model import is_embedding

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from scvi_tahoe._compat import AnnOrMuData
    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.model._fitted import FittedModel

__all__ = [
    "labels_of",
    "objective_of",
    "pretrained_of",
    "reason_to_leave_prior",
    "register_in_order",
    "registered_genes",
    "registered_table",
    "registry_of",
    "report_from_dict",
    "start_options",
    "united_table",
    "verify_scale",
    "with_numbered_genes",
]

logger = logging.getLogger(__name__)

_OUTPUT_SPACE = {"expression": "all", "expression+embedding": "all", "embedding": "embedding"}


def objective_of(loss: LossSettings) -> dict[str, Any]:
    """The objective that a pretrained model was trained with, as options of ``ObjectiveConfig``."""
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


def network_options(
    weights: PretrainedModel, stats: Mapping[str, Any], *, embeds: bool, batches: bool, head: str | None = None
) -> dict[str, Any]:
    """Options of the network for the user's data: everything as in the weights, but the widths of the data.

    Parameters
    ----------
    weights
        The pretrained model.
    stats
        Summary statistics of the registered data.
    embeds
        Whether cells are embeddings.
    batches
        Whether the data have technical batches.
    head
        Of the new network; None: that of the weights.
    """
    source = weights.config
    options = source.to_kwargs()
    width = stats["n_cell_embedding"] if embeds else stats["n_vars"]
    options |= {
        "n_input": width,
        "n_output": width,
        "n_perturbation": stats["n_perturbation_embedding"],
        "n_perturbation_parts": stats["n_perturbation_parts"],
    }
    if source.n_batches:
        options["n_batches"] = stats["n_batch"] if batches else 0
    if source.batch_token:
        options["n_batch_classes"] = stats["n_batch"] if batches else 0
        options["batch_token"] = batches
    if source.gene_decoder is not None:
        options["gene_decoder"] = {**options["gene_decoder"], "n_genes": stats["n_vars"]}
    if embeds != is_embedding(weights.embed_key) or head not in (None, source.head):
        # options of cells or of a head that are left behind say nothing about the new ones
        del options["keep_zeros"], options["base_encoder"]
        options["sees_perturbation"] = True
    elif not source.base_encoder:
        del options["base_encoder"]  # a prior of cells brings one; what the weights know of labels is used
    return options


def _table(table: EmbeddingTable) -> PerturbationTable:
    """The table as a folder holds it; one whose rows are made from parts begins with the parts themselves."""
    composition = table.composition
    if composition is None:
        return PerturbationTable(table.names, None if table.one_hot else table.matrix)
    components = composition.components.names
    labels = [i for i, name in enumerate(table.names) if name not in composition.components.row_of]
    return PerturbationTable(
        (*components, *(table.names[i] for i in labels)),
        np.concatenate([composition.rows((Component(name),) for name in components), table.matrix[labels]]),
        composition.columns,
    )


def _composed(source: PretrainedModel) -> EmbeddingTable:
    """The table of a folder, with what the folder says of how its rows were made."""
    try:
        return _table_of(source)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UnsafeFileError(f"{source.provenance.source} does not say how its table was made: {error!r}") from None


def _table_of(source: PretrainedModel) -> EmbeddingTable:
    table, how, moments = source.perturbations, source.extra.get("composition"), source.extra.get("fusion")
    fusion = None if moments is None else TableFusion.from_dict(moments)
    if how is None:
        matrix = np.eye(len(table.names), dtype=np.float32) if table.matrix is None else table.matrix
        return EmbeddingTable(table.names, matrix, table.is_one_hot, fusion=fusion)
    names = table.names[: how["n_rows"]]
    one_hot = table.columns is not None
    matrix = table.vectors(names)[:, : len(names) if one_hot else how["width"]]
    components = EmbeddingTable(names, np.ascontiguousarray(matrix), one_hot, fusion=fusion)
    composition = Composition.from_dict({k: how[k] for k in ("reading", "combination", "n_parts")}, components)
    return EmbeddingTable.composed(composition, how["labels"])


def _fusion(table: EmbeddingTable) -> dict[str, Any] | None:
    """How several tables became one, as plain values."""
    fusion = table.components.fusion
    return None if fusion is None else {k: [a.tolist() for a in v] for k, v in fusion.to_dict().items()}


def _composition(table: EmbeddingTable) -> dict[str, Any] | None:
    """How rows were made, as plain values that travel in a folder beside the rows."""
    if table.composition is None:
        return None
    size = {"n_rows": len(table.components.names), "width": table.components.width, "labels": list(table.names)}
    return {**table.composition.to_dict(), **size}


def labels_of(model: FittedModel) -> Labels:
    """What the axes of a model's network stand for."""
    keys, states = model.keys, model.registry_["field_registries"]

    def names(key: str) -> tuple[str, ...] | None:
        return tuple(map(str, states[key]["state_registry"]["names"])) if key in states else None

    embeds = model.representation == "embedding"
    genes = tuple(model.genes.tolist())
    config = model.module.config
    return Labels(
        genes=None if embeds else genes,
        decoder_genes=genes if config.gene_decoder is not None else None,
        perturbations=_table(model.perturbation_table),
        control=keys.control,
        batches=names(REGISTRY.BATCH) if config.n_batches or config.batch_token else None,
        contexts=names(REGISTRY.CONTEXT),
        embedding=(keys.cell_embedding_key or keys.embedding_modality) if embeds else None,
        set_size=model.set_size,
    )


def pretrained_of(model: FittedModel) -> PretrainedModel:
    """The model as it is written into a folder."""
    state = merged_state(model.module.network)
    objective = model.module.objective.config
    keys = model.keys
    extra = {
        "representation": model.representation,
        "objective": objective.to_dict(),
        "keys": {
            "perturbation_key": keys.perturbation_key,
            "context_key": keys.context_key,
            "batch_key": keys.batch_key,
            "layer": keys.layer,
            "perturbation_embedding_key": keys.perturbation_embedding_key,
            "dose_key": keys.dose_key,
            "combination_separator": keys.combination_separator,
            "combination": keys.combination,
        },
        "composition": _composition(model.perturbation_table),
        "fusion": _fusion(model.perturbation_table),
        "training": model.training_config_,
        "prior": model.prior,
    }
    return PretrainedModel(
        config=model.module.config,
        state_dict={name: tensor.detach().cpu() for name, tensor in state.items()},
        labels=labels_of(model),
        loss=_loss_of(objective, model.module.objective.decoder_weight),
        output_space=_OUTPUT_SPACE[model.representation],  # type: ignore[arg-type]
        provenance=_provenance(model),
        extra=extra,
        prior=model.prior_,
    )


def _loss_of(objective: Any, decoder_weight: float) -> LossSettings:
    """The nearest thing that the settings of a folder can say; the objective itself travels in ``extra``."""
    both = objective.terms.get("energy") and objective.terms.get("sinkhorn")
    loss = (
        "energy+sinkhorn"
        if both
        else next((n for n in ("energy", "sinkhorn", "mse") if n in objective.terms), "energy")
    )
    return LossSettings(
        loss=loss,  # type: ignore[arg-type]
        blur=objective.blur,
        energy_weight=objective.terms.get("energy", 1.0),
        sinkhorn_weight=objective.terms.get("sinkhorn", 0.01),
        n_chunks=objective.chunks,
        decoder_weight=decoder_weight,
        batch_token_weight=objective.batch_weight,
        confidence_weight=objective.confidence_weight,
        confidence_target_scale=objective.confidence_scale,
        regularization=objective.shift_weight,
    )


def _provenance(model: FittedModel) -> Provenance:
    """Where the weights come from; fine-tuned ones keep the origin, and with it the licence."""
    if model.provenance_ is None:
        return Provenance(source="scvi-tahoe", format="scratch")
    origin = Provenance(**model.provenance_)
    if origin.attention_certain or not model.history_:
        return origin
    return replace(
        origin, attention_certain=True, attention_reason=f"fine-tuned with it; before: {origin.attention_reason}"
    )


def with_numbered_genes(source: PretrainedModel) -> PretrainedModel:
    """The weights with numbers for the genes of their cells, where the folder does not name them; a note says so."""
    same_width = source.config.n_input == source.config.n_output
    if source.genes is not None or is_embedding(source.embed_key) or not same_width:
        return source
    n_genes = source.config.n_output
    note = (
        f"the {n_genes} genes are numbered, gene_0 to gene_{n_genes - 1}: the model runs on tensors, not on named genes"
    )
    return replace(source.with_genes([f"gene_{i}" for i in range(n_genes)]), notes=(*source.notes, note))


def registry_of(source: PretrainedModel, model_name: str) -> dict[str, Any]:
    """A scvi-tools registry for a model without data: labels and genes are those of the folder.

    Genes and batches without names are numbered.
    """
    extra_keys = source.extra.get("keys", {})
    config, embeds = source.config, is_embedding(source.embed_key)
    genes = source.labels.decoder_genes or source.genes
    n_genes = config.gene_decoder.n_genes if config.gene_decoder is not None else config.n_output
    if genes is None:
        genes = tuple(f"gene_{i}" for i in range(n_genes))
    table = _composed(source)
    n_batches = config.n_batches or config.n_batch_classes
    batches = source.batches or tuple(f"batch_{i}" for i in range(n_batches))
    contexts = source.contexts or ("all cells",)
    fields = {
        REGISTRY.EXPRESSION: ({"n_vars": len(genes), "column_names": _objects(genes)}, {"n_vars": len(genes)}),
        REGISTRY.PERTURBATION: ({"names": _objects(table.names)}, {"n_perturbation": len(table.names)}),
        REGISTRY.CONTROL: ({"label": source.control}, {}),
        REGISTRY.PERTURBATION_EMBEDDING: (
            EmbeddingTableField.state(table),
            {"n_perturbation_embedding": table.encoder_width, "n_perturbation_parts": table.n_components},
        ),
        REGISTRY.CONTEXT: ({"names": _objects(contexts)}, {"n_context": len(contexts)}),
    }
    if n_batches:
        fields[REGISTRY.BATCH] = ({"names": _objects(batches)}, {"n_batch": len(batches)})
    if embeds:
        fields[REGISTRY.CELL_EMBEDDING] = ({"width": config.n_input}, {"n_cell_embedding": config.n_input})
    setup = {
        "perturbation_key": "perturbation",
        "context_key": "context",
        "batch_key": "batch" if n_batches else None,
        **extra_keys,
        "control": source.control or "control",
        "cell_embedding_key": source.embed_key if embeds else None,
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


def _objects(names: Any) -> np.ndarray:
    return np.array([str(n) for n in names], dtype=object)


def start_options(
    source: PretrainedModel, stats: Mapping[str, Any], *, batches: bool, head: str | None = None
) -> dict[str, Any]:
    """Constructor arguments of a model for the user's data that starts from these weights; ``head`` if it is new."""
    embeds = is_embedding(source.embed_key)
    if embeds and "n_cell_embedding" not in stats:
        raise ValueError(
            f"{source.provenance.source} works on the cell embedding {source.embed_key!r}; register that embedding of "
            "your cells with cell_embedding_key."
        )
    network = network_options(source, stats, embeds=embeds, batches=batches, head=head)
    representation = source.extra.get("representation", "embedding" if embeds else "expression")
    if representation == "expression+embedding" and "n_cell_embedding" not in stats:
        representation = "expression"  # the embedding is a signal of training only, and may be absent later
    return {
        "representation": representation,
        "set_size": source.set_size,
        "size": network,
        "batch_encoder": bool(network["n_batches"]),
        "objective": source.extra.get("objective"),
        "prior": source.extra.get("prior", "none") if (head or source.config.head) == "delta" else "none",
    }


def reason_to_leave_prior(source: PretrainedModel, kind: str, genes: Iterable[str] | None) -> tuple[str, ...]:
    """Why the prior of a folder is of no use here, as notes of a loading report; empty if it is, or there is none.

    Parameters
    ----------
    source
        The folder.
    kind
        Prior of the new model.
    genes
        Of the user's data; None: there are none.
    """
    if source.prior is None:
        return ()
    if kind != source.prior["kind"]:
        return (f"the prior of the weights, {source.prior['kind']!r}, is left out, as prior={kind!r} was asked for",)
    if genes is not None and set(genes) != set(source.genes or ()):
        return (f"the prior of the weights, {kind!r}, is left out, as the data have other genes; train() learns it",)
    return ()


def register_in_order(cls: type[FittedModel], adata: AnnOrMuData, genes: Sequence[str]) -> None:
    """Register data once more, its genes in the order of the weights: what a prior draws depends on their order."""
    registry = cls._registered(adata)
    fields = registry["field_registries"]
    expression = fields[REGISTRY.EXPRESSION]
    if list(expression["state_registry"]["column_names"]) == list(genes):
        return
    state = {**expression["state_registry"], "column_names": _objects(genes)}
    ordered = {
        **registry,
        "field_registries": {**fields, REGISTRY.EXPRESSION: {**expression, "state_registry": state}},
    }
    getattr(cls, registry["setup_method_name"])(adata, source_registry=ordered, **registry["setup_args"])


def report_from_dict(values: dict[str, Any]) -> LoadingReport:
    """The report whose plain values were saved with a model."""
    return LoadingReport(
        records=tuple(TensorRecord(**record) for record in values["records"]),
        matches=tuple(LabelMatch(**match) for match in values["matches"]),
        notes=tuple(values["notes"]),
        decisions=tuple(values["decisions"]),
    )


def united_table(source: PretrainedModel, data: EmbeddingTable) -> EmbeddingTable | None:
    """Labels of one-hot weights and of one-hot data together; None unless both are one-hot.

    The labels that only the weights know stay predictable after fine-tuning.
    """
    if source.perturbations.columns is None or not data.components.one_hot:
        return None
    known = [name for name in source.perturbations.columns if name not in NUMBER_COLUMNS]
    return data.reindexed(EmbeddingTable.one_hot_of([*known, *(n for n in data.components.names if n not in known)]))


def verify_scale(
    module: TahoeSTModule, report: LoadingReport | None, minibatch: Mapping[str, torch.Tensor], genes: np.ndarray
) -> None:
    """Refuse data on another scale than the weights': they must predict controls from controls.

    Genes that only the data have are left out of the comparison; the others' predictions do not depend on them, nor
    controls on new perturbations or batches. Not checked where a tensor on the way from cells to cells is wholly new,
    or the user decided to change what the network computes: that says nothing about a scale.

    Parameters
    ----------
    module
        In eval mode.
    report
        What became of every pretrained tensor.
    minibatch
        Sets of control cells whose perturbation is the control.
    genes
        Names of the model's genes.

    Raises
    ------
    ValueError
        If the moments of predicted and observed controls disagree.
    """
    if report is None:
        return
    new = [r.tensor for r in report.records if r.status == "new" and not r.tensor.startswith("gene_decoder.")]
    changed = [name for name in report.decisions if name in ("drop_genes", "other_head", "other_attention")]
    if new or changed:
        logger.info(f"Scale not checked: {', '.join([*changed, *new[:1]])} changed what controls are predicted.")
        return
    known = next((np.isin(genes, match.matched) for match in report.matches if match.axis == "genes"), None)
    control_SNX = minibatch[TENSORS.CONTROL]
    with torch.inference_mode():
        output = module(control_SNX, minibatch[TENSORS.PERTURBATION], minibatch.get(TENSORS.BATCH))
    n_genes = output.prediction_SNG.shape[-1]
    compared = torch.arange(n_genes) if known is None else torch.from_numpy(np.flatnonzero(known))
    # where the cells come with an embedding, it stands behind the genes
    check = compare_scale(output.prediction_SNG[..., compared], control_SNX[..., compared])
    if not check.ok:
        raise ValueError(f"{check.message} To load the weights all the same, pass check_scale=False.")
    logger.info(check.message)


def registered_table(registry: Mapping[str, Any]) -> EmbeddingTable:
    """The perturbation table of registered data."""
    return EmbeddingTableField.table(registry["field_registries"][REGISTRY.PERTURBATION_EMBEDDING]["state_registry"])


def registered_genes(registry: Mapping[str, Any]) -> np.ndarray:
    """Gene names of registered data."""
    names = registry["field_registries"][REGISTRY.EXPRESSION]["state_registry"]["column_names"]
    return np.asarray(names).astype(str)
