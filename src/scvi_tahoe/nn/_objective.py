"""What is minimised: a weighted sum of named terms, each logged under its name; and options without effect."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, get_args

import torch

from scvi_tahoe._arguments import checked_fields
from scvi_tahoe.nn._config import NetworkConfig
from scvi_tahoe.nn._losses import KERNELS, Diagonal, batch_classification, confidence_error, control_shift, decoder_loss
from scvi_tahoe.nn._terms import EMBEDDING_TERMS, SET_LOSSES, TERMS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from scvi_tahoe.nn._networks import NetworkOutput
    from scvi_tahoe.nn._terms import SetReference, Term


@checked_fields
@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Terms of the training loss and their weights.

    Attributes
    ----------
    terms
        Weight of each term between predicted and observed cells, by name: ``energy``, ``sinkhorn``, ``mmd``, ``mse``,
        ``delta_mse``; and, with at least one of these, ``de_weighted`` and ``contrastive``. The default adds the error
        of the mean change to the energy distance: the scores of a prediction are scores of its deltas, and the energy
        distance alone hardly sees them among the cells' noise (``benchmarks/few_shot_folds.py``). The weight brings
        both to the same size on log1p expression.
    energy_diagonal
        What the distance of a cell to itself is in the energy distance, see :func:`~scvi_tahoe.nn.energy_distance`;
        ``'rounded'`` reproduces the losses of models that were trained with geomloss.
    blur
        Scale of ``sinkhorn`` and ``mmd``.
    kernel
        Kernel of ``mmd``.
    chunks
        Compute the distances between sets on this many contiguous chunks of features and average them.
    temperature
        Temperature of ``contrastive`` and ``alignment``, see :func:`~scvi_tahoe.nn.info_nce`.
    decoder_weight
        Weight of the same distances between decoded and observed genes, where the network has a gene decoder.
        ``'auto'`` lets training set it so that both spaces have the same scale, see
        :func:`~scvi_tahoe.suggest_decoder_weight`.
    embedding_terms
        Where the cell embedding is an auxiliary signal (``representation='expression+embedding'``), the weight of
        what compares the embedding read from the hidden cells with the observed one, by name:

        * ``distillation`` - see :func:`~scvi_tahoe.nn.distillation`
        * ``alignment`` - see :func:`~scvi_tahoe.nn.contrastive_alignment`
    batch_weight
        Weight of the classification of the technical batch, where the network has a batch token.
    confidence_weight, confidence_scale
        Weight of the squared error of the confidence, whose target is ``confidence_scale`` times the set's main loss.
    shift_weight
        Weight of the mean absolute difference between predicted cells and the controls they start from.
    """

    terms: dict[str, float] = field(default_factory=lambda: {"energy": 1.0, "delta_mse": 100.0})
    energy_diagonal: Diagonal = "excluded"
    blur: float = 0.05
    kernel: str = "gaussian"
    chunks: int = 1
    temperature: float = 0.1
    decoder_weight: float | Literal["auto"] = 1.0
    embedding_terms: dict[str, float] = field(default_factory=lambda: {"distillation": 0.1})
    batch_weight: float = 0.1
    confidence_weight: float = 0.01
    confidence_scale: float = 10.0
    shift_weight: float = 0.0

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> ObjectiveConfig:
        """Build from keyword arguments, refusing unknown ones by name.

        Raises
        ------
        ValueError
            If one is unknown or out of range.
        """
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(kwargs) - set(known)):
            raise ValueError(f"objective options {unknown} are unknown; there are {known}.")
        return cls(**kwargs)

    def __post_init__(self) -> None:
        for name, allowed in (("terms", TERMS), ("embedding_terms", EMBEDDING_TERMS)):
            if unknown := sorted(set(getattr(self, name)) - set(allowed)):
                raise ValueError(f"objective {name} {unknown} are unknown; allowed are {sorted(allowed)}.")
        if not any(self.terms.get(name, 0) > 0 for name in SET_LOSSES):
            others = " and ".join(name for name in TERMS if name not in SET_LOSSES)
            raise ValueError(
                f"the objective needs at least one of the terms {list(SET_LOSSES)} with a positive weight; "
                f"{others} leave most genes, or the size of a change, open."
            )
        weights = {**self.terms, **self.embedding_terms, **self._single_weights()}
        if negative := {k: v for k, v in weights.items() if not 0 <= v < float("inf")}:
            raise ValueError(f"weights of the objective must not be negative or infinite; got {negative}.")
        for name, choices in (("energy_diagonal", get_args(Diagonal)), ("kernel", KERNELS)):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name}={value!r} is unknown; allowed are {', '.join(map(repr, choices))}.")
        for name in ("blur", "temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive.")
        if self.chunks < 1:
            raise ValueError(f"chunks={self.chunks} must be 1 or more.")

    def _single_weights(self) -> dict[str, float]:
        weights = {k: v for k, v in asdict(self).items() if k.endswith("_weight")}
        if isinstance(self.decoder_weight, str):
            if self.decoder_weight != "auto":
                raise ValueError(f"decoder_weight={self.decoder_weight!r} must be a number or 'auto'.")
            del weights["decoder_weight"]
        return weights

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain values."""
        return asdict(self)

    def logged(self, network: NetworkConfig, *, has_embedding: bool) -> list[str]:
        """Return the names of what a training of this network logs in addition to the total."""
        of_parts = {
            "decoder": network.gene_decoder is not None and self.decoder_weight != 0,
            "batch": network.batch_token,
            "confidence": network.confidence_token,
            "shift": self.shift_weight > 0,
        }
        auxiliary = self.embedding_terms if has_embedding else ()
        return [*self.terms, *auxiliary, *(name for name, there in of_parts.items() if there)]


class ObjectiveOptions(TypedDict, total=False):
    """Options of :class:`ObjectiveConfig` by name, for type checkers: ``TahoeST(objective=...)``."""

    terms: dict[str, float]
    energy_diagonal: Diagonal
    blur: float
    kernel: str
    chunks: int
    temperature: float
    decoder_weight: float | Literal["auto"]
    embedding_terms: dict[str, float]
    batch_weight: float
    confidence_weight: float
    confidence_scale: float
    shift_weight: float


class Objective:
    """Computes the loss of a minibatch from the network's output.

    Parameters
    ----------
    config
        Terms and weights.
    """

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config
        #: precision of the products in the energy distance; a training run on a GPU in 16 bits sets it to float16
        self.matmul_dtype = torch.float32
        #: weight of the gene decoder; with ``'auto'`` 1 until training measures it
        self.decoder_weight = 1.0 if config.decoder_weight == "auto" else float(config.decoder_weight)

    def _value(self, term: Term, predicted: Tensor, observed: Tensor, reference: SetReference | None) -> Tensor:
        """Compute one term, one value a set."""
        needed = [getattr(reference, name) for name in term.needs]
        if any(value is None for value in needed):
            raise ValueError(f"the term {term.name!r} needs {list(term.needs)}, which minibatches of training bring.")
        options = {
            keyword: self.matmul_dtype if name == "matmul_dtype" else getattr(self.config, name)
            for keyword, name in term.options.items()
        }
        return term.function(predicted, observed, *needed, **options)

    def set_loss(self, name: str, predicted_SNG: Tensor, observed_SMG: Tensor) -> Tensor:
        """Compute one of ``SET_LOSSES``, one value per set; with ``chunks`` as the mean over chunks of features."""
        term, n_chunks = TERMS[name], self.config.chunks
        if n_chunks == 1:
            return self._value(term, predicted_SNG, observed_SMG, None)
        pairs = zip(predicted_SNG.chunk(n_chunks, -1), observed_SMG.chunk(n_chunks, -1), strict=True)
        return torch.stack([self._value(term, p, o, None) for p, o in pairs]).mean(0)

    def main_loss(
        self, predicted_SNG: Tensor, observed_SMG: Tensor, reference: SetReference | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the weighted sum of the terms, one value per set, and the mean of each before weighting.

        Without a reference, only terms that compare two sets of cells are computed.
        """
        total_S, parts = predicted_SNG.new_zeros(len(predicted_SNG), dtype=torch.float32), {}
        for name, weight in self.config.terms.items():
            if name in SET_LOSSES:
                loss_S = self.set_loss(name, predicted_SNG, observed_SMG)
            elif reference is None:
                continue
            else:
                loss_S = self._value(TERMS[name], predicted_SNG, observed_SMG, reference)
            total_S = total_S + weight * loss_S
            parts[name] = loss_S.mean().detach()
        return total_S, parts

    def embedding_loss(
        self, predicted_SNE: Tensor, observed_SME: Tensor, reference: SetReference
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the weighted sum of ``embedding_terms`` (scalar), and each before weighting."""
        parts = {
            name: self._value(EMBEDDING_TERMS[name], predicted_SNE, observed_SME, reference).mean()
            for name in self.config.embedding_terms
        }
        total = sum((self.config.embedding_terms[n] * v for n, v in parts.items()), predicted_SNE.new_zeros(()))
        return total, parts

    def __call__(
        self,
        output: NetworkOutput,
        observed_SNG: Tensor,
        *,
        reference: SetReference | None = None,
        genes_SNG: Tensor | None = None,
        batch_S: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compute the loss of a minibatch.

        Returns
        -------
        Total (scalar), main loss of each set ``[S]``, and the value of each term before weighting.
        """
        config = self.config
        main_S, parts = self.main_loss(output.prediction_SNG, observed_SNG, reference)
        total = main_S.mean()
        if output.genes_SNG is not None and genes_SNG is not None and self.decoder_weight > 0:
            decoder_S = decoder_loss(output.genes_SNG, genes_SNG, distance=lambda x, y: self.main_loss(x, y)[0])
            parts["decoder"] = decoder_S.mean()
            total = total + self.decoder_weight * parts["decoder"]
        if output.batch_logits_SB is not None and batch_S is not None:
            parts["batch"] = batch_classification(output.batch_logits_SB, batch_S).mean()
            total = total + config.batch_weight * parts["batch"]
        if output.confidence_S is not None:
            error_S = confidence_error(output.confidence_S, main_S, scale=config.confidence_scale)
            parts["confidence"] = error_S.mean()
            total = total + config.confidence_weight * parts["confidence"]
        if config.shift_weight > 0 and reference is not None:
            parts["shift"] = control_shift(output.prediction_SNG, reference.control_SNG).mean()
            total = total + config.shift_weight * parts["shift"]
        return total, main_S, {name: value.detach() for name, value in parts.items()}


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
    confidence = network.confidence_token, "the network has no confidence token", "network={'confidence_token': True}"
    batch = "network={'batch_token': True, 'n_batch_classes': ...}"
    found = {
        "decoder_weight": (decodes, "no gene decoder is trained", decoder),
        "embedding_terms": (auxiliary, f"representation is {representation!r}", _BOTH),
        "batch_weight": (network.batch_token, "the network has no batch token", batch),
        "confidence_weight": confidence,
        "confidence_scale": confidence,
    }
    owned = {name for term in (*TERMS.values(), *EMBEDDING_TERMS.values()) for name in term.options.values()}
    used = {*config.terms, *(config.embedding_terms if auxiliary else ())}
    for option in owned & {f.name for f in fields(ObjectiveConfig)}:
        places, applies = [], False
        for terms, where in ((TERMS, "terms"), (EMBEDDING_TERMS, f"embedding_terms of {_BOTH}")):
            if owners := [name for name, term in terms.items() if option in term.options.values()]:
                places.append(f"{' or '.join(map(repr, owners))} in {where}")
                applies |= not used.isdisjoint(owners)
        found[option] = applies, f"terms are {sorted(config.terms)}", ", and with ".join(places)
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
    if found := [
        f"{what} {name}={value!r} has no effect: {ineffective[name].reason}. Leave it out; it applies with "
        f"{ineffective[name].instead}."
        for name, value in given.items()
        if name in ineffective
    ]:
        raise ValueError("\n".join(found))


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
