"""Operations of a training step, counted from the network's shapes: what a rate of steps can be compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from scvi_tahoe.nn._networks import SetTransformer

#: layers whose inputs come from the data
_FIRST = ("control_encoder.layers.0", "base_encoder.layers.0", "perturbation_encoder.layers.0")


def step_operations(network: SetTransformer, *, n_sets: int, set_size: int) -> float:
    r"""Count the operations of the matrix products of a training step, two for a multiplication with its addition.

    Each weight matrix is multiplied with every cell, or once a set in the encoder of the perturbation: forward, in the
    backward pass for the gradient of its input, and, if it trains, for its own gradient. Nobody asks for the gradients
    of what comes from the data. To these come attention (forward, and twice that backward) and the
    energy distance, :math:`10 S N^2 G`. Norms, activations, softmax and optimizer are not counted: their operations are
    few.

    Parameters
    ----------
    network
        The network, with the parameters that train marked as such.
    n_sets, set_size
        Sets S of a step, and cells N of a set.
    """
    config, n_cells, total = network.config, n_sets * set_size, 0.0
    last = network.head.project.layers[-1]
    for name, layer in network.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        rows, entries = n_sets if name.startswith("perturbation_encoder.") else n_cells, layer.weight.numel()
        passes = 2 + layer.weight.requires_grad
        if layer is last and network.head.down is not None:
            # multiplied with the layer below the bottleneck first, and then with the cells
            total += 2.0 * passes * entries * network.head.down.out_features
            entries = layer.in_features * network.head.down.out_features
        elif name in _FIRST:
            passes -= 1
        total += 2.0 * passes * rows * entries
    attention = 0 if config.attention == "self_only" else 2 * 2.0 * n_cells * set_size * config.n_heads
    total += 3 * config.n_layers * attention * config.width_of_head
    return total + 10.0 * n_cells * set_size * config.n_output
