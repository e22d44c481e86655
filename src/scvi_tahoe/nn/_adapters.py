"""Adapters: low-rank matrices that train next to frozen linear layers (Hu et al. 2022, *LoRA*, arXiv:2106.09685).

The layers are those of PEFT, an optional dependency: ``W x + (alpha / rank) B A x``, with ``B`` zero at the start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    from torch import Tensor

_NAME = "default"


def linear_layers(network: nn.Module, weights: Container[str]) -> list[str]:
    """Return the names of the linear layers whose weight is among the given ones."""
    return [n for n, m in network.named_modules() if isinstance(m, nn.Linear) and f"{n}.weight" in weights]


def attach_adapters(network: nn.Module, layers: Sequence[str], *, rank: int, alpha: float, seed: int) -> None:
    """Put an adapter next to each of these layers; the network computes what it did until they are trained."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("adapters need PEFT; install it with: pip install 'scvi-tahoe[lora]'") from error

    wanted = {original_name(n): p.requires_grad for n, p in network.named_parameters()}
    mode = network.training
    with torch.random.fork_rng(devices=[]):  # drawn on the CPU, wherever the network is
        torch.default_generator.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(layers))
        inject_adapter_in_model(config, network, _NAME)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(wanted.get(original_name(name), True))
    network.train(mode)


def adapted_layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield layers that carry an adapter, with their names."""
    return ((n, m) for n, m in network.named_modules() if hasattr(m, "lora_A") and hasattr(m, "get_base_layer"))


def original_name(name: str) -> str:
    """Return the name that a parameter has in the network without adapters."""
    return name.replace(".base_layer.", ".")


def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of the network without adapters that computes the same: ``W + (alpha / rank) B A``."""
    state = {original_name(n): t for n, t in network.state_dict().items() if ".lora_" not in n}
    for name, layer in adapted_layers(network):
        state[f"{name}.weight"] = state[f"{name}.weight"] + layer.get_delta_weight(_NAME).detach()
    return state


def merged_tensors(state: Mapping[str, Tensor], *, scale: float = 1.0) -> dict[str, Tensor]:
    """Return the tensors of a network without adapters that computes what one with these tensors does.

    ``scale`` is alpha / rank, by which what an adapter adds is multiplied.
    """
    merged = {original_name(name): tensor for name, tensor in state.items() if ".lora_" not in name}
    for name, down in state.items():
        if name.endswith(ending := f".lora_A.{_NAME}.weight"):
            layer = name.removesuffix(ending)
            up = state[f"{layer}.lora_B.{_NAME}.weight"]
            merged[f"{layer}.weight"] = merged[f"{layer}.weight"] + scale * (up @ down)
    return merged


def merge_adapters(network: nn.Module) -> None:
    """Add the adapters to the weights and remove them."""
    merged = merged_state(network)
    for name, layer in list(adapted_layers(network)):
        network.set_submodule(name, layer.get_base_layer())
    del network.peft_config
    network.load_state_dict(merged)
