"""Options that have no effect on a model: which they are, why, and what would make them count.

Whoever gives one means something by it, so a model refuses it. What nobody gave is left alone: options that come along
with pretrained weights or with a saved model say what those were trained with.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from scvi_tahoe.nn._objective import ObjectiveConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from scvi_tahoe.nn._config import NetworkConfig

__all__ = [
    "Unused",
    "as_said",
    "default_of",
    "options_given",
    "options_of_user",
    "refuse_unused",
    "unused_in_network",
    "unused_in_objective",
]

#: options of the model that is being made which its user gave, as (objective, network); None: those it is made with
_OF_USER: ContextVar[tuple[Mapping[str, Any], Mapping[str, Any]] | None] = ContextVar("_OF_USER", default=None)


class Unused(NamedTuple):
    """Why an option has no effect, and with what it would have one."""

    reason: str
    instead: str


@contextmanager
def options_of_user(
    *, objective: Mapping[str, Any] | None = None, network: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Say what the user gave of the options of the model that is made inside; the others come from what is taken over.

    scvi-tools makes a loaded model through its constructor, which cannot tell by itself.
    """
    token = _OF_USER.set((objective or {}, network or {}))
    try:
        yield
    finally:
        _OF_USER.reset(token)


def options_given(
    objective: Mapping[str, Any] | None, network: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What the user gave of the options that a model is made with: all of them, unless :func:`options_of_user` says."""
    said = _OF_USER.get()
    return (objective or {}, network) if said is None else said


def unused_in_objective(config: ObjectiveConfig, network: NetworkConfig, representation: str) -> dict[str, Unused]:
    """Options of an objective that this model does not look at.

    A term with weight 0 is computed and logged, so what belongs to it counts.
    """
    terms, auxiliary = set(config.terms), representation == "expression+embedding"
    decodes = representation == "embedding" and network.gene_decoder is not None
    contrasts = "contrastive" in terms or (auxiliary and "alignment" in config.embedding_terms)
    named = f"terms are {sorted(terms)}"
    decoder = "network={'gene_decoder': {...}}" if representation == "embedding" else "representation='embedding'"
    classes = "network={'batch_token': True, 'n_batch_classes': ...}"
    found = {
        "decoder_weight": (decodes, "no gene decoder is trained", decoder),
        "embedding_terms": (
            auxiliary,
            f"representation is {representation!r}",
            "representation='expression+embedding'",
        ),
        "batch_weight": (network.batch_token, "the network has no batch token", classes),
        **dict.fromkeys(
            ("confidence_weight", "confidence_scale"),
            (network.confidence_token, "the network has no confidence token", "network={'confidence_token': True}"),
        ),
        "energy_diagonal": ("energy" in terms, named, "'energy' in terms"),
        "kernel": ("mmd" in terms, named, "'mmd' in terms"),
        "blur": (bool(terms & {"sinkhorn", "mmd"}), named, "'sinkhorn' or 'mmd' in terms"),
        "temperature": (
            contrasts,
            "no term contrasts perturbations",
            "'contrastive' in terms, and with 'alignment' in embedding_terms of representation='expression+embedding'",
        ),
    }
    return {name: Unused(reason, instead) for name, (counts, reason, instead) in found.items() if not counts}


def unused_in_network(config: NetworkConfig, representation: str) -> dict[str, Unused]:
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
    return {name: Unused(reason, instead) for name, (counts, reason, instead) in found.items() if not counts}


def default_of(config: type[NetworkConfig | ObjectiveConfig], name: str) -> Any:
    """Default of an option; ``MISSING`` if it has none."""
    option = next(f for f in fields(config) if f.name == name)
    return option.default if option.default_factory is MISSING else option.default_factory()


def as_said(objective: Mapping[str, Any]) -> dict[str, Any]:
    """An objective that was written out whole, with defaults, as the fewest options that say the same.

    Files of runs have every option, and a default among them does not mean that somebody asked for it.
    """
    said = {k: v for k, v in objective.items() if k == "terms" or v != default_of(ObjectiveConfig, k)}
    return {"terms": default_of(ObjectiveConfig, "terms"), **said} if objective else {}


def refuse_unused(what: str, given: Mapping[str, Any], unused: Mapping[str, Unused]) -> None:
    """Refuse options that were given and have no effect.

    Raises
    ------
    ValueError
        If there is one; it names each with its value, the reason, and what to do instead.
    """
    if found := {name: value for name, value in given.items() if name in unused}:
        raise ValueError(
            "\n".join(
                f"{what} {name}={value!r} has no effect: {unused[name].reason}. Leave it out; it counts with "
                f"{unused[name].instead}."
                for name, value in found.items()
            )
        )
