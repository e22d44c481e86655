"""The shape of every tensor of a network, without its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scvi_tahoe.files import UnsafeFileError
from scvi_tahoe.nn import SetTransformer

if TYPE_CHECKING:
    from scvi_tahoe.nn import NetworkConfig

__all__ = ["target_shapes", "verify_depth"]

#: Building a network, even without weights, takes a millisecond a layer.
_MAX_LAYERS = 1_000


def target_shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a network, without building its weights."""
    with torch.device("meta"):
        network = SetTransformer(config)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def verify_depth(config: NetworkConfig) -> None:
    """Raise :class:`UnsafeFileError` if a network claims so many layers that its shapes could not be listed."""
    n_layers = config.n_layers + config.n_encoder_layers + config.n_decoder_layers
    n_layers += len(config.gene_decoder.hidden) if config.gene_decoder else 0
    if n_layers > _MAX_LAYERS:
        raise UnsafeFileError(f"The folder describes a network of {n_layers:,} layers; the largest known has 16.")
