"""What is minimised: a weighted sum of named terms, each logged under its name."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, get_args

import torch
import torch.nn.functional as F

from scvi_tahoe.nn._losses import KERNELS, SET_LOSSES, Diagonal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from scvi_tahoe.nn._networks import NetworkOutput

__all__ = ["Objective", "ObjectiveConfig"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Terms of the training loss and their weights.

    Attributes
    ----------
    terms
        Weight of each set loss between predicted and observed cells, by name: ``energy``, ``sinkhorn``, ``mmd``,
        ``mse``, ``delta_mse``. The default adds the error of the mean change to the energy distance: the scores of a
        prediction are scores of its deltas, and the energy distance alone hardly sees them among the cells' noise
        (``benchmarks/few_shot_folds.py``). The weight brings both to the same size on log1p expression.
    energy_diagonal
        What the distance of a cell to itself is in the energy distance, see :func:`~scvi_tahoe.nn.energy_distance`;
        ``'rounded'`` reproduces the losses of models that were trained with geomloss.
    blur
        Scale of ``sinkhorn`` and ``mmd``.
    kernel
        Kernel of ``mmd``.
    chunks
        Compute the set losses on this many contiguous chunks of features and average them.
    decoder_weight
        Weight of the same set losses between decoded and observed genes, where the network has a gene decoder.
    embedding_weight
        Weight of the energy distance between predicted and observed cell embeddings, where they are an auxiliary
        signal.
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
    decoder_weight: float = 1.0
    embedding_weight: float = 0.1
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
        unknown = sorted(set(self.terms) - set(SET_LOSSES))
        if unknown:
            raise ValueError(f"objective terms {unknown} are unknown; allowed are {sorted(SET_LOSSES)}.")
        if not self.terms or not any(w > 0 for w in self.terms.values()):
            raise ValueError("the objective needs at least one term with a positive weight.")
        weights = {**self.terms, **{k: v for k, v in asdict(self).items() if k.endswith("_weight")}}
        if negative := {k: v for k, v in weights.items() if v < 0}:
            raise ValueError(f"weights of the objective must not be negative; got {negative}.")
        for name, allowed in (("energy_diagonal", get_args(Diagonal)), ("kernel", KERNELS)):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name}={value!r} is unknown; allowed are {', '.join(map(repr, allowed))}.")
        if self.blur <= 0:
            raise ValueError(f"blur={self.blur} must be positive.")
        if self.chunks < 1:
            raise ValueError(f"chunks={self.chunks} must be 1 or more.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


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
        self.products = torch.float32
        self._options: dict[str, dict[str, Any]] = {
            "energy": {"diagonal": config.energy_diagonal},
            "sinkhorn": {"blur": config.blur},
            "mmd": {"kernel": config.kernel, "blur": config.blur},
        }

    def set_loss(self, name: str, predicted_SNG: Tensor, observed_SMG: Tensor) -> Tensor:
        """One named set loss, one value a set."""
        loss, options = SET_LOSSES[name], self._options.get(name, {})
        if name == "energy":
            options = options | {"products": self.products}
        if self.config.chunks == 1:
            return loss(predicted_SNG, observed_SMG, **options)
        pairs = zip(
            predicted_SNG.chunk(self.config.chunks, -1), observed_SMG.chunk(self.config.chunks, -1), strict=True
        )
        return torch.stack([loss(p, o, **options) for p, o in pairs]).mean(0)

    def main_loss(self, predicted_SNG: Tensor, observed_SMG: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the set losses, one value a set, and the mean of each before weighting."""
        total_S, parts = predicted_SNG.new_zeros(len(predicted_SNG), dtype=torch.float32), {}
        for name, weight in self.config.terms.items():
            loss_S = self.set_loss(name, predicted_SNG, observed_SMG)
            total_S = total_S + weight * loss_S
            parts[name] = loss_S.mean().detach()
        return total_S, parts

    def __call__(
        self,
        output: NetworkOutput,
        observed_SNG: Tensor,
        *,
        control_SNG: Tensor | None = None,
        genes_SNG: Tensor | None = None,
        batch_S: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The loss of a minibatch.

        Parameters
        ----------
        output
            What the network returned.
        observed_SNG
            Observed cells at the width of the prediction.
        control_SNG
            Control cells, for ``shift_weight``.
        genes_SNG
            Observed expression, for the gene decoder.
        batch_S
            Technical batch of each set, for the batch token.

        Returns
        -------
        Total (scalar), main loss of each set ``[S]``, and the value of each term before weighting.
        """
        config = self.config
        main_S, parts = self.main_loss(output.prediction_SNG, observed_SNG)
        total = main_S.mean()
        if output.genes_SNG is not None and genes_SNG is not None and config.decoder_weight > 0:
            decoder_S, _ = self.main_loss(output.genes_SNG, genes_SNG)
            parts["decoder"] = decoder_S.mean()
            total = total + config.decoder_weight * parts["decoder"]
        if output.batch_logits_SB is not None and batch_S is not None:
            parts["batch"] = F.cross_entropy(output.batch_logits_SB.float(), batch_S)
            total = total + config.batch_weight * parts["batch"]
        if output.confidence_S is not None:
            target_S = config.confidence_scale * main_S.detach()
            parts["confidence"] = F.mse_loss(output.confidence_S.float(), target_S)
            total = total + config.confidence_weight * parts["confidence"]
        if config.shift_weight > 0 and control_SNG is not None:
            parts["shift"] = (output.prediction_SNG.float() - control_SNG.float()).abs().mean()
            total = total + config.shift_weight * parts["shift"]
        return total, main_S, {name: value.detach() for name, value in parts.items()}
