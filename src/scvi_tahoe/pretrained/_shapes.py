"""The shape of every tensor of a network, without its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scvi_tahoe.nn import SetTransformer

if TYPE_CHECKING:
    from scvi_tahoe.nn import NetworkConfig

__all__ = ["target_shapes"]


def target_shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a network, without building its weights."""
    with torch.device("meta"):
        network = SetTransformer(config)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
