"""Options that have no effect on a model: which they are, why, and what would make them apply.

Whoever gives one means something by it, so it is rejected. What nobody gave is left alone: options that come along with
pretrained weights or with a saved model say what those were trained with.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from scvi_tahoe.nn._config import NetworkConfig
from scvi_tahoe.nn._objective import ObjectiveConfig
from scvi_tahoe.nn._terms import EMBEDDING_TERMS, TERMS

if TYPE_CHECKING:
    from collections.abc import Mapping

_BOTH = "representation='expression+embedding'"


class Ineffective(NamedTuple):
    """Why an option has no effect, and what it needs to have one."""

    reason: str
    instead: str


def ineffective_in_objective(
    config: ObjectiveConfig, network: NetworkConfig, representation: str
) -> dict[str, Ineffective]:
    """Options of an objective that this model does not look at.

    A term with weight 0 is computed and logged, so its options apply.
    """
    auxiliary = representation == "expression+embedding"
    decodes = representation == "embedding" and network.gene_decoder is not None
    decoder = "network={'gene_decoder': {...}}" if representation == "embedding" else "representation='embedding'"
    confidence = (
        network.confidence_token,
        "the network has no confidence token",
        "network={'confidence_token': True}",
    )
    found = {
        "decoder_weight": (decodes, "no gene decoder is trained", decoder),
        "embedding_terms": (auxiliary, f"representation is {representation!r}", _BOTH),
        "batch_weight": (
            network.batch_token,
            "the network has no batch token",
            "network={'batch_token': True, 'n_batch_classes': ...}",
        ),
        "confidence_weight": confidence,
        "confidence_scale": confidence,
    }
    owned = {name for term in (*TERMS.values(), *EMBEDDING_TERMS.values()) for name in term.options.values()}
    for option in owned & {f.name for f in fields(ObjectiveConfig)}:
        owners, embedding_owners = (
            [name for name, term in terms.items() if option in term.options.values()]
            for terms in (TERMS, EMBEDDING_TERMS)
        )
        used = {*config.terms, *(config.embedding_terms if auxiliary else ())}
        places = [f"{' or '.join(map(repr, owners))} in terms"] if owners else []
        if embedding_owners:
            places.append(f"{' or '.join(map(repr, embedding_owners))} in embedding_terms of {_BOTH}")
        found[option] = (
            bool(used & {*owners, *embedding_owners}),
            f"terms are {sorted(config.terms)}",
            ", and with ".join(places),
        )
    return _without_effect(found)


def ineffective_in_network(config: NetworkConfig, representation: str) -> dict[str, Ineffective]:
    """Options of a network that it, or the training of this model, does not look at."""
    between = (
        max(config.n_encoder_layers, config.n_decoder_layers) > 1,
        "it belongs between two layers, and n_encoder_layers and n_decoder_layers are 1",
        "2 or more of either",
    )
    found = {
        "attention_dropout": (config.attention != "self_only", "a cell looks at itself alone", "another attention"),
        "backbone_dropout": (config.backbone != "llama", "backbone='llama' has no dropout", "backbone='gpt2'"),
        "activation": between,
        "dropout": between,
        "gene_decoder": (
            representation == "embedding",
            f"representation={representation!r} predicts genes without it, and does not train it",
            "representation='embedding'",
        ),
    }
    return _without_effect(found)


def _without_effect(found: Mapping[str, tuple[bool, str, str]]) -> dict[str, Ineffective]:
    return {name: Ineffective(reason, instead) for name, (applies, reason, instead) in found.items() if not applies}


def default_of(config: type[NetworkConfig | ObjectiveConfig], name: str) -> Any:
    """Default of an option; ``MISSING`` if it has none."""
    option = next(f for f in fields(config) if f.name == name)
    return option.default if option.default_factory is MISSING else option.default_factory()


def non_default(objective: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce an objective that was written out in full, with defaults, to the fewest options that say the same.

    Run files have every option, and a default among them does not mean that the user asked for it.
    """
    chosen = {k: v for k, v in objective.items() if k == "terms" or v != default_of(ObjectiveConfig, k)}
    return {"terms": default_of(ObjectiveConfig, "terms"), **chosen} if objective else {}


def reject_ineffective(what: str, given: Mapping[str, Any], ineffective: Mapping[str, Ineffective]) -> None:
    """Raise a ``ValueError`` that names each given option without effect, the reason, and what to do instead."""
    if found := {name: value for name, value in given.items() if name in ineffective}:
        raise ValueError(
            "\n".join(
                f"{what} {name}={value!r} has no effect: {ineffective[name].reason}. Leave it out; it applies with "
                f"{ineffective[name].instead}."
                for name, value in found.items()
            )
        )


def reject_ineffective_options(
    objective: Mapping[str, Any] | None,
    network: Mapping[str, Any] | None,
    *,
    config: ObjectiveConfig,
    network_config: NetworkConfig,
    representation: str,
) -> None:
    """Raise a ``ValueError`` if an option that a user gave for the objective or the network has no effect.

    A network's options are written out with their defaults in many places, so one that is the default asks for nothing.
    """
    given = {k: v for k, v in (network or {}).items() if v != default_of(NetworkConfig, k)}
    reject_ineffective("network option", given, ineffective_in_network(network_config, representation))
    ineffective = ineffective_in_objective(config, network_config, representation)
    reject_ineffective("objective option", objective or {}, ineffective)
