"""A strategy in which each process keeps its shard of weights, gradients and optimizer state: for networks of billions.

PyTorch's fully sharded data parallel (``fully_shard``; Zhao et al. 2023, *PyTorch FSDP: Experiences on scaling fully
sharded data parallel*, arXiv:2304.11277) gathers the weights of a part of the network when that part is computed, and
forgets them after it. What is saved is what other strategies save, so that either can resume the other's run.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from scvi_tahoe._module import TahoeSTModule

#: how users ask for it
FULLY_SHARDED = "fsdp2"


def verify_sharding(*, ema: float | None, recipe: Any, compiles: object) -> None:
    """Refuse what needs the whole weights; a ValueError names the option."""
    needs_whole = {"plan_kwargs={'ema': ...}": ema is not None, "recipe='lora'": recipe == "lora",
                   f"compile={compiles!r}": compiles in (True, "record")}  # fmt: skip
    for option in (name for name, given in needs_whole.items() if given):
        raise ValueError(
            f"{option} does not go with strategy={FULLY_SHARDED!r}, in which no process has the whole weights; leave "
            "it out, or give strategy='ddp_sharded'."
        )


class ShardedWeightsStrategy(DDPStrategy):
    """Lightning's data-parallel strategy, for weights that processes share out."""

    def model_to_device(self) -> None:
        """Give the device its shard of each part in turn, so that it never holds the whole network."""
        precision = torch.bfloat16 if self.precision_plugin.precision == "bf16-mixed" else None
        shard_weights(self.lightning_module.module, self.root_device, precision)  # type: ignore[union-attr, arg-type]
        super().model_to_device()

    def configure_ddp(self) -> None:
        """Leave the module as it is: its own parts exchange gradients."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the state of the model with whole weights; all processes have to call it (Lightning does)."""
        return whole_state(self.lightning_module)  # type: ignore[arg-type]

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Return the state of the optimizer as one process would have it; all processes have to call it."""
        state = optimizer.state_dict()
        whole = {i: {name: _whole(value) for name, value in of.items()} for i, of in state["state"].items()}
        return {**state, "state": whole} if self.is_global_zero else {}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process's shard of a state saved by any strategy."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                i: {name: _sharded_like(parameters[i], value) for name, value in of.items()}
                for i, of in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})

    def teardown(self) -> None:
        """Forget the shards, which the optimizer would keep as long as there is the trainer."""
        for optimizer in self.optimizers:
            optimizer.state.clear()
            for group in optimizer.param_groups:
                group["params"] = []
        super().teardown()


def shard_weights(module: TahoeSTModule, device: torch.device, precision: torch.dtype | None) -> None:
    """Replace the weights by this process's shards of those of the first process.

    Parts of linear layers are gathered in ``precision``, which is that of their products, and so are their gradients;
    norms, tokens and embeddings in their own, together.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for part in [*_linear_parts(module), module.network]:  # whose output PyTorch can look into, unlike the module's
        for tensor in [*part.parameters(), *part.buffers()]:
            if not isinstance(tensor, DTensor):
                tensor.data = tensor.data.to(device)
                dist.broadcast(tensor.data, 0)
        dtype = None if part is module.network else precision
        fully_shard(part, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=dtype, cast_forward_inputs=False))


def _linear_parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the largest parts whose weights are those of linear layers, which use them in products only."""
    of_linear = {id(p) for m in module.modules() if isinstance(m, nn.Linear) for p in m.parameters(recurse=False)}
    for child in module.children():
        parameters = list(child.parameters())
        if isinstance(child, nn.ModuleList) or not all(id(p) in of_linear for p in parameters):
            yield from _linear_parts(child)
        elif parameters:
            yield child


def copy_to_shard(module: nn.Module) -> Any:
    """Copy a module without its weights, which both share until those of the copy become shards."""
    return copy.deepcopy(module, {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in module.parameters()})


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Gather the state of a sharded module in main memory, one weight at a time."""
    return {name: _whole(value) for name, value in module.state_dict().items()}


def _whole(value: Any) -> Any:
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value


def _sharded_like(parameter: Tensor, value: Any) -> Any:
    if not isinstance(parameter, DTensor) or not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
