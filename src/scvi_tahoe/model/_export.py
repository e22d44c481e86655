"""What of a model goes out: its weights and the labels of its axes, as any format writes them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from scvi_tahoe._constants import REGISTRY
from scvi_tahoe.nn import merged_state
from scvi_tahoe.pretrained import AxisLabels, LossSettings, PretrainedModel, Provenance, flat_table, table_settings

if TYPE_CHECKING:
    from scvi_tahoe.model._fitted import FittedModel
    from scvi_tahoe.nn import ObjectiveConfig

_OUTPUT_SPACE = {"expression": "all", "expression+embedding": "all", "embedding": "embedding"}
_KEYS = (
    "perturbation_key", "context_key", "batch_key", "layer", "perturbation_embedding_key", "dose_key",
    "combination_separator", "combination",
)  # fmt: skip


def pretrained_of(model: FittedModel) -> PretrainedModel:
    """Return the model as it is written into a folder."""
    objective = model.module.objective.config
    extra = {
        "representation": model.representation,
        "objective": objective.to_dict(),
        "keys": {name: getattr(model.keys, name) for name in _KEYS},
        **table_settings(model.perturbation_table),
        "training": model.training_config_,
        "prior": model.prior,
        "fitted": {
            "observed_cosine": model.observed_cosine_,
            "observed_noise": model.observed_noise_,
            "decoder_weight": model.decoder_weight_,
            "adapters": model.adapters_,
        },
    }
    if model.criterion != "error":
        extra["criterion"] = model.criterion
    table = model.perturbation_table
    if not table.one_hot and table.composition is None:  # rows of a table of the user's, of which data have some
        extra["measured"] = [str(name) for name in model.state_registry(REGISTRY.PERTURBATION)["names"]]
    return PretrainedModel(
        config=model.module.config,
        state_dict={name: tensor.detach().cpu() for name, tensor in merged_state(model.module.network).items()},
        labels=labels_of(model),
        loss=_loss_of(objective, model.module.objective.decoder_weight),
        output_space=_OUTPUT_SPACE[model.representation],  # type: ignore[arg-type]
        provenance=_provenance(model),
        extra=extra,
        prior=model.prior_,
    )


def labels_of(model: FittedModel) -> AxisLabels:
    """Return what the axes of a model's network stand for."""
    keys, states, config = model.keys, model.registry_["field_registries"], model.module.config

    def names(key: str) -> tuple[str, ...] | None:
        return tuple(map(str, states[key]["state_registry"]["names"])) if key in states else None

    embeds = model.representation == "embedding"
    genes = tuple(model.genes.tolist())
    return AxisLabels(
        genes=None if embeds else genes,
        decoder_genes=genes if config.gene_decoder is not None else None,
        perturbations=flat_table(model.perturbation_table),
        control=keys.control,
        batches=names(REGISTRY.BATCH) if config.n_batches or config.batch_token else None,
        contexts=names(REGISTRY.CONTEXT),
        embedding=(keys.cell_embedding_key or keys.embedding_modality) if embeds else None,
        set_size=model.set_size,
    )


def _loss_of(objective: ObjectiveConfig, decoder_weight: float) -> LossSettings:
    """Return the nearest thing that the settings of a folder can say; the objective itself travels in ``extra``."""
    terms = objective.terms
    both = terms.get("energy") and terms.get("sinkhorn")
    loss = "energy+sinkhorn" if both else next((n for n in ("energy", "sinkhorn", "mse") if n in terms), "energy")
    return LossSettings(
        loss=loss,  # type: ignore[arg-type]
        blur=objective.blur,
        energy_weight=terms.get("energy", 1.0),
        sinkhorn_weight=terms.get("sinkhorn", 0.01),
        n_chunks=objective.chunks,
        decoder_weight=decoder_weight,
        batch_token_weight=objective.batch_weight,
        confidence_weight=objective.confidence_weight,
        confidence_target_scale=objective.confidence_scale,
        regularization=objective.shift_weight,
    )


def _provenance(model: FittedModel) -> Provenance:
    """Return where the weights come from; fine-tuned ones keep the origin, and with it the licence."""
    if model.provenance_ is None:
        return Provenance(source="scvi-tahoe", format="scratch")
    origin = Provenance(**model.provenance_)
    if origin.attention_certain or not model.history_:
        return origin
    return replace(
        origin, attention_certain=True, attention_reason=f"fine-tuned with it; before: {origin.attention_reason}"
    )
