"""Options that have no effect on a model: which they are, why, and what would make them count.

Whoever gives one means something by it, so a model refuses it. What nobody gave is left alone: options that come along
with pretrained weights or with a saved model say what those were trained with.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from scvi_tahoe.nn import NetworkConfig, ObjectiveConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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
    """Why an option has no effect, and what to do for it to have one."""

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
    embeds, auxiliary = representation == "embedding", representation == "expression+embedding"
    terms = set(config.terms)
    contrasts = "contrastive" in terms or (auxiliary and "alignment" in config.embedding_terms)
    decoder = "network={'gene_decoder': {...}} adds one" if embeds else "representation='embedding' brings one"
    confidence = Unused("the network has no confidence token", "network={'confidence_token': True} adds one")
    found = {
        "decoder_weight": None
        if embeds and network.gene_decoder is not None
        else Unused("no gene decoder is trained", decoder),
        "embedding_terms": None
        if auxiliary
        else Unused(
            f"representation={representation!r} has no cell embedding as auxiliary signal",
            "representation='expression+embedding' has one",
        ),
        "batch_weight": None
        if network.batch_token
        else Unused(
            "the network has no batch token",
            "network={'batch_token': True, 'n_batch_classes': number of batches} adds one",
        ),
        "confidence_weight": None if network.confidence_token else confidence,
        "confidence_scale": None if network.confidence_token else confidence,
        "energy_diagonal": _of_terms("energy", terms=terms),
        "kernel": _of_terms("mmd", terms=terms),
        "blur": _of_terms("sinkhorn", "mmd", terms=terms),
        "temperature": None
        if contrasts
        else Unused(
            "nothing is contrasted",
            "'contrastive' in terms does so, and 'alignment' in embedding_terms with "
            "representation='expression+embedding'",
        ),
    }
    return {name: unused for name, unused in found.items() if unused is not None}


def _of_terms(*names: str, terms: set[str]) -> Unused | None:
    if terms & set(names):
        return None
    said = " or ".join(map(repr, names))
    return Unused(f"terms are {sorted(terms)}", f"{said} in terms makes it count")


def unused_in_network(config: NetworkConfig, representation: str) -> dict[str, Unused]:
    """Options of a network that it, or the training of this model, does not look at."""
    found: dict[str, Unused] = {}
    if config.attention == "self_only":
        found["attention_dropout"] = Unused(
            "with attention='self_only' a cell looks at itself alone", "attention='full' has weights to drop"
        )
    if config.backbone == "llama":
        found["backbone_dropout"] = Unused("backbone='llama' has no dropout", "backbone='gpt2' has it")
    if config.n_encoder_layers == config.n_decoder_layers == 1:
        between = Unused(
            "it belongs between two linear layers, and n_encoder_layers and n_decoder_layers are 1",
            "2 or more make it count",
        )
        found |= {"activation": between, "dropout": between}
    if representation != "embedding":
        found["gene_decoder"] = Unused(
            f"representation={representation!r} predicts genes itself, and a decoder beside it would never be trained",
            "representation='embedding' trains it",
        )
    return found


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
    if found := [name for name in given if name in unused]:
        lines = [
            f"{what} {name}={given[name]!r} has no effect: {unused[name].reason}. Leave it out; {unused[name].instead}."
            for name in found
        ]
        raise ValueError("\n".join(lines))
