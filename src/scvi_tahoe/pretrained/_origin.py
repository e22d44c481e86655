"""Where weights came from and how they were trained."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["LossSettings", "Provenance"]


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """How the weights were trained, as far as the folder says; names follow the terms of the loss.

    Parameters
    ----------
    loss
        Main loss: ``'energy'``, ``'sinkhorn'``, ``'energy+sinkhorn'`` or ``'mse'``.
    kernel
        Distance of the energy loss: ``'energy'``, ``'gaussian'`` or ``'laplacian'``.
    blur
        Width of the kernel, or of the Sinkhorn smoothing.
    energy_weight, sinkhorn_weight
        Weights of the two terms of ``'energy+sinkhorn'``.
    n_chunks, shuffle_chunks
        Number of feature chunks the loss is averaged over, and whether features are shuffled first.
    decoder_weight, detach_decoder
        Weight of the gene decoder's loss, and whether its gradient stops at the decoder.
    batch_token_weight
        Weight of the batch classifier's cross-entropy.
    confidence_weight, confidence_target_scale
        Weight of the confidence loss and factor on the loss it predicts.
    regularization
        Weight of the mean absolute change against the controls.
    learning_rate
        Learning rate of that training, or ``None`` if unknown.

    Raises
    ------
    ValueError
        If a setting is of another kind, negative or not finite.
    """

    loss: Literal["energy", "sinkhorn", "energy+sinkhorn", "mse"] = "energy"
    kernel: Literal["energy", "gaussian", "laplacian"] = "energy"
    blur: float = 0.05
    energy_weight: float = 1.0
    sinkhorn_weight: float = 0.01
    n_chunks: int = 1
    shuffle_chunks: bool = False
    decoder_weight: float = 1.0
    detach_decoder: bool = False
    batch_token_weight: float = 0.1
    confidence_weight: float = 0.01
    confidence_target_scale: float = 10.0
    regularization: float = 0.0
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        allowed = {
            "loss": ("energy", "sinkhorn", "energy+sinkhorn", "mse"),
            "kernel": ("energy", "gaussian", "laplacian"),
        }
        for name, value in asdict(self).items():
            if name in allowed:
                fits = value in allowed[name]
            elif name in ("shuffle_chunks", "detach_decoder"):
                fits = isinstance(value, bool)
            elif name == "learning_rate" and value is None:
                fits = True
            else:
                fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
            if not fits or (name == "n_chunks" and value < 1):
                raise ValueError(f"the loss setting {name} cannot be {str(value)[:40]!r}")

    def to_kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments that build these settings again, as plain values fit for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where weights came from and how their attention was decided.

    Parameters
    ----------
    source
        Hub name or folder name (never an absolute path).
    revision
        Commit of the hub, or ``None``.
    checkpoint
        File the weights were read from.
    format
        ``'arc'``, ``'scvi-tahoe'`` or ``'scratch'``.
    attention_reason
        Why the attention of the network is what it is.
    attention_certain
        Whether that is stated by the folder rather than assumed.
    non_commercial
        Whether the weights derive from Arc's and inherit their licence.

    Raises
    ------
    ValueError
        If a word is none, or the format is unknown.
    """

    source: str
    revision: str | None = None
    checkpoint: str | None = None
    format: Literal["arc", "scvi-tahoe", "scratch"] = "scratch"
    attention_reason: str = ""
    attention_certain: bool = True
    non_commercial: bool = False

    def __post_init__(self) -> None:
        words = (self.source, self.revision or "", self.checkpoint or "", self.attention_reason)
        if not all(isinstance(word, str) and len(word) < 2_000 and word.isprintable() for word in words):
            raise ValueError("where the weights come from is not stated in plain words")
        if self.format not in ("arc", "scvi-tahoe", "scratch"):
            raise ValueError(f"the weights state the unknown format {str(self.format)[:40]!r}")
