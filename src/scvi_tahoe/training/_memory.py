"""What a training run will take of a device's memory, and what to lower where that is too much."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from scvi_tahoe.nn import NetworkConfig

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes that a training run takes on its device.

    Attributes
    ----------
    weights
        Float32 weights, and their copies in the precision of the products.
    gradients, optimizer
        One and two float32 numbers for each trainable weight.
    activations
        What a step keeps for its backward pass, a rough estimate: on an H100, runs took 0.8 of the total.
    expression
        Expression on the device.
    available
        Bytes free on the device now; 0 where that is not known.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    expression: int
    available: int = 0

    @property
    def total(self) -> int:
        """Sum of what is taken."""
        return sum(getattr(self, f.name) for f in fields(self) if f.name != "available")

    @property
    def fits(self) -> bool:
        """Whether that much is free; True where it is not known."""
        return not self.available or self.total <= self.available

    def __str__(self) -> str:
        parts = ", ".join(f"{f.name} {_words(getattr(self, f.name))}" for f in fields(self) if f.name != "available")
        free = f" of {_words(self.available)} free" if self.available else ""
        return f"about {_words(self.total)}{free} ({parts})"


def plan_memory(
    config: NetworkConfig,
    *,
    n_parameters: int,
    n_trainable: int,
    averaged: bool = False,
    shared: bool = False,
    cells_per_step: int,
    in_16_bits: bool,
    expression: int,
    device: torch.device,
) -> MemoryPlan:
    """Estimate what training takes.

    Parameters
    ----------
    config
        Network.
    n_parameters, n_trainable
        Its weights, and how many of them train.
    averaged
        Whether a moving average of the weights is kept.
    shared
        Whether several processes share the optimizer, and hold gradients that they exchange.
    cells_per_step
        Cells of a minibatch: sets times cells of a set.
    in_16_bits
        Whether products are computed in 16 bits.
    expression
        Bytes of expression on the device.
    device
        Where the network runs.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    return MemoryPlan(
        weights=((6 if in_16_bits else 4) + 4 * averaged) * n_parameters,
        gradients=(8 if shared and not in_16_bits else 4) * n_trainable,
        optimizer=8 * n_trainable,
        activations=cells_per_step * _activation_bytes(config, 2 if in_16_bits else 4),
        expression=expression,
        available=free,
    )


def _activation_bytes(config: NetworkConfig, width: int) -> int:
    """Bytes that one cell takes in a step, from the tensors that are kept for the backward pass.

    A block keeps its normed inputs in float32 and queries, keys, values, gate, up and their product; the genes of a
    cell are held as control, observed and predicted, each in float32 and in the width of the products, with gradients.
    """
    hidden, wide = config.hidden, config.intermediate
    heads = (config.n_heads + 2 * config.kv_heads) * config.width_of_head
    block = width * (2 * heads + 4 * hidden + 4 * wide) + 4 * 6 * hidden
    layers = 3 * width * hidden * (config.n_encoder_layers + config.n_decoder_layers)
    genes = config.n_input * (4 + width) + config.n_output * (4 * 4 + 4 * width)
    if config.gene_decoder is not None:
        genes += config.gene_decoder.n_genes * (4 * 4 + 4 * width)
    return config.n_layers * block + layers + genes


def _words(n_bytes: int) -> str:
    return f"{n_bytes / _GIB:.1f} GiB" if n_bytes >= _GIB / 10 else f"{n_bytes / 2**20:.1f} MiB"
