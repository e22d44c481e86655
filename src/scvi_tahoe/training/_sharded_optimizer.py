"""An optimizer of several processes, each of which keeps and updates its shard of every weight.

Usually all processes average all gradients and all do the same optimizer step. Here a process gets the sum of the
gradients of its shard only, in the precision of the products that made them, updates that shard, and hands out the new
weights: the first stage of ZeRO (Rajbhandari et al. 2020, *ZeRO: Memory optimizations toward training trillion
parameter models*, arXiv:1910.02054). Weights that only enter products of 16 bits are handed out in 16 bits, which is
what those products round them to anyway; the process that updates them keeps them as they are (Micikevicius et al.
2018, *Mixed precision training*, arXiv:1710.03740), and validation and checkpoints get them from there. So half as much
is sent, the optimizer step takes a fraction of its time, and weights need not be rounded at every step. They are the
same in all processes, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from torch import Tensor
    from torch.nn import Parameter

#: how users ask for it
SHARDED = "ddp_sharded"

#: numbers between two places where a weight or a shard may begin, so that kernels read whole lines of memory
_ALIGNED = 64
_AVERAGES = ("exp_avg", "exp_avg_sq")


class ShardedOptimizerStrategy(DDPStrategy):
    """Lightning's data-parallel strategy, for a plan whose optimizer exchanges the gradients itself."""

    def configure_ddp(self) -> None:
        """Leave the module as it is: nothing exchanges gradients during the backward pass."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the state of the model with nothing rounded; all processes have to call it (Lightning does)."""
        for optimizer in self.optimizers:
            if isinstance(optimizer, ShardedAdamW):
                optimizer.complete()
        return super().lightning_module_state_dict()


@dataclass(frozen=True)
class _Group:
    """Trainable parameters of one parameter group, side by side in memory."""

    #: Index of the parameter group.
    number: int
    #: The parameters, each a view into ``values`` while training, and where each of them is there.
    parameters: Sequence[Parameter]
    places: Sequence[slice]
    #: All weights as training computes with them, and zeros between them.
    values: Tensor
    #: Weights that this process updates, and their gradient: a view into ``values``, or memory of its own where those
    #: are rounded.
    shard: Parameter
    gradient: Tensor
    #: Gradients of all weights in this process, in the precision in which they are exchanged.
    sent: Tensor
    #: Their sum over all processes, for the shard.
    received: Tensor

    @classmethod
    def of(
        cls, number: int, parameters: Sequence[Parameter], *, sent: torch.dtype | None, rounded: torch.dtype | None
    ) -> _Group:
        """Move parameters next to each other in memory, with the values that they have in the first process."""
        places, end = [], 0
        for parameter in parameters:
            places.append(slice(end, end + parameter.numel()))
            end = _rounded_up(places[-1].stop, _ALIGNED)
        length = _rounded_up(end, _ALIGNED * dist.get_world_size())
        full = torch.zeros(length, device=parameters[0].device, dtype=parameters[0].dtype)
        for parameter, place in zip(parameters, places, strict=True):
            full[place].view_as(parameter).copy_(parameter.detach())
            parameter.data = full[place].view_as(parameter)
        dist.broadcast(full, 0)
        values = full if rounded is None else full.to(rounded)
        shard = torch.nn.Parameter(_own(full) if rounded is None else _own(full).clone())
        gradient = shard.grad = torch.zeros_like(shard)
        exchanged = torch.zeros(length, device=full.device, dtype=sent or full.dtype)
        received = torch.empty_like(_own(exchanged))
        return cls(number, parameters, places, values, shard, gradient, exchanged, received)

    @property
    def rounds(self) -> bool:
        """Whether training computes with rounded weights."""
        return self.values.dtype != self.shard.dtype

    def place_in(self, memory: Tensor) -> None:
        """Make every parameter a view into the memory of all weights."""
        for parameter, place in zip(self.parameters, self.places, strict=True):
            parameter.grad = None
            parameter.data = memory[place].view_as(parameter)

    def send_gradients(self) -> dist.Work | None:
        """Start summing the gradients over all processes."""
        for parameter, place in zip(self.parameters, self.places, strict=True):
            if parameter.grad is None:
                raise ValueError(
                    f"a weight of shape {tuple(parameter.shape)} has no part in the loss, and processes that shard the "
                    "optimizer train all weights together; give strategy='ddp_find_unused_parameters_true'."
                )
            self.sent[place].view_as(parameter).copy_(parameter.grad)
        return _reduce_scatter(self.received, self.sent)

    def hand_out(self) -> dist.Work | None:
        """Start sending the updated shard to all processes."""
        if self.rounds:
            _own(self.values).copy_(self.shard.detach())
        return _all_gather(self.values, _own(self.values))

    def gather(self, shard: Tensor) -> Tensor:
        """Gather the shards of all processes."""
        full = torch.empty(len(self.values), device=shard.device, dtype=shard.dtype)
        _wait([_all_gather(full, shard.detach())])
        return full

    def split(self, shard: Tensor) -> list[Tensor]:
        """Gather the shards of all processes, split by parameter, in main memory."""
        full = self.gather(shard)
        views = (full[place].view_as(p) for p, place in zip(self.parameters, self.places, strict=True))
        return [view.to("cpu", copy=True) for view in views]

    def own_shard(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return this process's shard of what :meth:`split` returned."""
        together = torch.zeros(len(self.values), device=self.shard.device, dtype=self.shard.dtype)
        for value, parameter, place in zip(tensors, self.parameters, self.places, strict=True):
            together[place].view_as(parameter).copy_(value)
        return _own(together).clone()

    def release(self) -> None:
        """Give every parameter memory of its own again."""
        for parameter in self.parameters:
            parameter.grad = None
            parameter.data = parameter.detach().to(self.shard.dtype, copy=True)


class ShardedAdamW(torch.optim.AdamW):
    """AdamW, sharded over processes.

    Its saved state is that of :class:`torch.optim.AdamW`, so that a run can continue with another number of processes.

    Gradients are exchanged in ``precision`` (if None, that of the weights). The parameters ``rounded`` are those that
    training uses in ``precision`` only: from :meth:`compact` to :meth:`complete` the module holds them rounded, and so
    are their gradients.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        precision: torch.dtype | None,
        rounded: Collection[Parameter] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(groups, **kwargs)
        self._precision = precision
        self._rounded = frozenset(rounded)
        self._parameters: list[list[Parameter]] = [list(g["params"]) for g in self.param_groups]
        self._groups: list[_Group] = []
        self._is_compact = False
        self._consolidated: dict[str, Any] | None = None

    def begin(self) -> None:
        """Take over the parameters that train; what is frozen stays frozen."""
        self._groups = []
        self.extend()

    def extend(self) -> None:
        """Take over further parameters, which were frozen until now; those of before keep their state."""
        held = {parameter for flat in self._groups for parameter in flat.parameters}
        for number, group in enumerate(self.param_groups):
            trained = [p for p in self._parameters[number] if p.requires_grad and p not in held]
            unrounded = [p for p in trained if p not in self._rounded]
            rounded = [p for p in trained if p in self._rounded]
            for parameters, precision in ((unrounded, None), (rounded, self._precision)):
                if parameters:
                    made = _Group.of(number, parameters, sent=self._precision, rounded=precision)
                    self._groups.append(made)
                    if made.rounds and self._is_compact:
                        made.place_in(made.values)
            group["params"] = [flat.shard for flat in self._groups if flat.number == number]
        # norms are summed in one order, whenever a group was taken over
        self._groups.sort(key=lambda flat: (flat.number, flat.rounds))

    def compact(self) -> None:
        """Make the module hold the weights as training computes with them."""
        if not self._is_compact:
            self._is_compact = True
            for group in (group for group in self._groups if group.rounds):
                group.place_in(group.values)

    def complete(self) -> None:
        """Make the module hold the weights unrounded; all processes have to call it."""
        if self._is_compact:
            self._is_compact = False
            for group in (group for group in self._groups if group.rounds):
                group.place_in(group.gather(group.shard))

    def end(self) -> None:
        """Give the parameters back; what is rounded at this moment stays so."""
        for flat in self._groups:
            flat.release()
        for group in self.param_groups:
            group["params"] = []
        self.state.clear()
        self._groups, self._is_compact = [], False

    @torch.no_grad()
    def reduce_gradients(self, limit: float) -> Tensor:
        """Average the gradients over all processes, clip them to norm ``limit``, and return the norm before that."""
        _wait([group.send_gradients() for group in self._groups])
        norms = [torch.linalg.vector_norm(group.received, dtype=torch.float32) for group in self._groups]
        square = torch.stack(norms).square().sum()
        dist.all_reduce(square)
        norm = square.sqrt() / dist.get_world_size()
        # of one dimension, so that the products are of its precision
        factor = ((limit / (norm + 1e-6)).clamp(max=1.0) / dist.get_world_size())[None]
        for group in self._groups:
            torch.mul(group.received, factor, out=group.gradient)
        return norm

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update the shard of this process, exchange the weights, and forget the gradients."""
        result = super().step(closure)
        _wait([group.hand_out() for group in self._groups])
        self.zero_grad()
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of this process."""
        for parameter in (p for group in self._parameters for p in group):
            parameter.grad = None

    def consolidate_state_dict(self) -> None:
        """Collect the state of all processes in the first; all have to call it (Lightning does)."""
        number_of = self._numbers()
        state = {}
        for flat in self._groups:
            own = self.state.get(flat.shard)
            if not own:
                continue
            for parameter, *averages in zip(flat.parameters, *(flat.split(own[n]) for n in _AVERAGES), strict=True):
                averaged = dict(zip(_AVERAGES, averages, strict=True))
                state[number_of[parameter]] = {"step": own["step"].to("cpu", copy=True), **averaged}
        groups = [
            {**{k: v for k, v in group.items() if k != "params"}, "params": [number_of[p] for p in parameters]}
            for group, parameters in zip(self.param_groups, self._parameters, strict=True)
        ]
        self._consolidated = {"state": state, "param_groups": groups} if dist.get_rank() == 0 else None

    def _numbers(self) -> dict[Parameter, int]:
        """Return the index of each parameter, as torch counts them."""
        return {p: number for number, p in enumerate(p for group in self._parameters for p in group)}

    def state_dict(self) -> dict[str, Any]:
        """Return the consolidated state."""
        if self._consolidated is None:
            raise RuntimeError("the state is spread over processes; call consolidate_state_dict() in all of them.")
        state, self._consolidated = self._consolidated, None
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state saved with any number of processes."""
        saved = state_dict["param_groups"]
        if [len(g["params"]) for g in saved] != [*map(len, self._parameters)]:
            raise ValueError("the loaded state has other parameter groups than this run.")
        for group, old in zip(self.param_groups, saved, strict=True):
            group.update({k: v for k, v in old.items() if k != "params"})
        number_of = self._numbers()
        for flat in self._groups:
            states = {p: state_dict["state"].get(number_of[p]) for p in flat.parameters}
            known = [state for state in states.values() if state]
            if not known:
                continue
            step = torch.as_tensor(known[0]["step"], dtype=torch.float32)
            fused = self.param_groups[flat.number]["fused"]
            self.state[flat.shard] = {"step": step.to(flat.values.device) if fused else step.cpu()}
            for name in _AVERAGES:  # torch keeps nothing of a weight that had no gradient yet
                full = [s[name] if s else torch.zeros_like(p) for p, s in states.items()]
                self.state[flat.shard][name] = flat.own_shard(full)


def _rounded_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _own(full: Tensor) -> Tensor:
    """Return this process's shard, as a view."""
    return full.chunk(dist.get_world_size())[dist.get_rank()]


def _reduce_scatter(shard: Tensor, full: Tensor) -> dist.Work | None:
    if dist.get_backend() == "gloo":  # has no such operation in every version
        dist.all_reduce(full)
        shard.copy_(_own(full))
        return None
    # as newer versions of torch call it
    start = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
    return cast("dist.Work | None", start(shard, full, async_op=True))


def _all_gather(full: Tensor, shard: Tensor) -> dist.Work | None:
    start = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
    return cast("dist.Work | None", start(full, shard, async_op=True))


def _wait(started: Iterable[dist.Work | None]) -> None:
    """Make what follows on the device wait for what was started."""
    for work in started:
        if work is not None:
            work.wait()
