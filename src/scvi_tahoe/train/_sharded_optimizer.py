"""Several processes train one model, and each keeps and updates its share of every weight.

Usually all processes average all gradients and all do the same optimizer step. Here a process gets the sum of the
gradients of its share only, in the precision of the products that made them, updates that share, and hands out the new
weights: the first stage of ZeRO (Rajbhandari et al. 2020, *ZeRO: Memory optimizations toward training trillion
parameter models*, arXiv:1910.02054). As much is sent, half of it in 16 bits, and the optimizer step takes a share of
its time. The weights are the same in all processes, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor
    from torch.nn import Parameter

__all__ = ["SHARDED", "ShardedAdamW", "ShardedOptimizerStrategy"]

#: how users ask for it
SHARDED = "ddp_sharded"

#: numbers between two places where a weight or a share may begin, so that kernels read whole lines of memory
_ALIGNED = 64
_AVERAGES = ("exp_avg", "exp_avg_sq")


class ShardedOptimizerStrategy(DDPStrategy):
    """Lightning's strategy for several processes, for a plan whose optimizer exchanges the gradients.

    Everything but that is Lightning's: starting processes, sums over them, checkpoints.
    """

    def configure_ddp(self) -> None:
        """Leave the module as it is: nothing exchanges gradients during the backward pass."""


@dataclass(frozen=True)
class _Group:
    """Trainable parameters of one parameter group, side by side in memory.

    Attributes
    ----------
    parameters
        They are, and each is a view into ``values``.
    places
        Where each of them is.
    values
        All weights, and zeros between them.
    share
        The part of ``values`` that this process updates.
    gradient
        That of ``share``.
    sent
        Gradients of all weights in this process, in the precision in which they are exchanged.
    received
        The sum over all processes, of the share.
    """

    parameters: Sequence[Parameter]
    places: Sequence[slice]
    values: Tensor
    share: Parameter
    gradient: Tensor
    sent: Tensor
    received: Tensor

    @classmethod
    def of(cls, parameters: Sequence[Parameter], precision: torch.dtype | None) -> _Group:
        """Move parameters beside each other, with the values that they have in the first process."""
        places, end = [], 0
        for parameter in parameters:
            places.append(slice(end, end + parameter.numel()))
            end = _rounded(places[-1].stop, _ALIGNED)
        length = _rounded(end, _ALIGNED * dist.get_world_size())
        values = torch.zeros(length, device=parameters[0].device, dtype=parameters[0].dtype)
        for parameter, place in zip(parameters, places, strict=True):
            values[place].view_as(parameter).copy_(parameter.detach())
            parameter.data = values[place].view_as(parameter)
        dist.broadcast(values, 0)
        share = torch.nn.Parameter(_own(values))
        gradient = share.grad = torch.zeros_like(_own(values))
        sent = torch.zeros(length, device=values.device, dtype=precision or values.dtype)
        return cls(parameters, places, values, share, gradient, sent, torch.empty_like(_own(sent)))

    def send_gradients(self) -> dist.Work | None:
        """Start to sum the gradients over all processes."""
        for parameter, place in zip(self.parameters, self.places, strict=True):
            if parameter.grad is None:  # of a weight that had no part in the loss of this process
                self.sent[place].zero_()
            else:
                self.sent[place].view_as(parameter).copy_(parameter.grad)
        return _reduce_scatter(self.received, self.sent)

    def hand_out(self) -> dist.Work | None:
        """Start to give every process the weights that the others updated."""
        return _all_gather(self.values, self.share.detach())

    def apart(self, share: Tensor) -> list[Tensor]:
        """What belongs to each parameter of something of which every process has a share, in main memory."""
        whole = torch.empty_like(self.values)
        _wait([_all_gather(whole, share)])
        views = (whole[place].view_as(p) for p, place in zip(self.parameters, self.places, strict=True))
        return [view.to("cpu", copy=True) for view in views]

    def own_share(self, whole: Sequence[Tensor]) -> Tensor:
        """The share of this process of something that was taken apart."""
        together = torch.zeros_like(self.values)
        for value, parameter, place in zip(whole, self.parameters, self.places, strict=True):
            together[place].view_as(parameter).copy_(value)
        return _own(together).clone()

    def release(self) -> None:
        """Let every parameter have memory of its own again."""
        for parameter in self.parameters:
            parameter.data = parameter.detach().clone()


class ShardedAdamW(torch.optim.AdamW):
    """AdamW of which every process has a share.

    Its state, when it is saved, is that of :class:`torch.optim.AdamW`, so that a run can go on with another number of
    processes.

    Parameters
    ----------
    groups
        Parameter groups.
    precision
        In which gradients are exchanged; None for that of the weights.
    **kwargs
        Handed to :class:`torch.optim.AdamW`.
    """

    def __init__(self, groups: list[dict[str, Any]], *, precision: torch.dtype | None, **kwargs: Any) -> None:
        super().__init__(groups, **kwargs)
        self._precision = precision
        self._parameters: list[list[Parameter]] = [list(g["params"]) for g in self.param_groups]
        self._groups: list[_Group | None] = []
        self._consolidated: dict[str, Any] | None = None

    def begin(self) -> None:
        """Take the parameters that train from here on; what is frozen stays frozen."""
        self._groups = []
        for group, parameters in zip(self.param_groups, self._parameters, strict=True):
            trained = [p for p in parameters if p.requires_grad]
            self._groups.append(_Group.of(trained, self._precision) if trained else None)
            group["params"] = [self._groups[-1].share] if self._groups[-1] else []

    def end(self) -> None:
        """Leave nothing behind in the parameters."""
        for group in self._present:
            group.release()
        self._groups = []

    @property
    def _present(self) -> list[_Group]:
        return [group for group in self._groups if group is not None]

    @torch.no_grad()
    def exchange(self, limit: float) -> Tensor:
        """Average the gradients over all processes, and clip them by their norm.

        Parameters
        ----------
        limit
            Largest norm of all gradients together.

        Returns
        -------
        The norm before clipping.
        """
        _wait([group.send_gradients() for group in self._present])
        gradients = [group.gradient.copy_(group.received) for group in self._present]
        square = torch.nn.utils.get_total_norm(gradients).square()
        dist.all_reduce(square)
        norm = square.sqrt() / dist.get_world_size()
        factor = (limit / (norm + 1e-6)).clamp(max=1.0) / dist.get_world_size()
        for gradient in gradients:
            gradient.mul_(factor)
        return norm

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update the share of this process, and exchange the weights."""
        result = super().step(closure)
        _wait([group.hand_out() for group in self._present])
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of this process."""
        for parameter in (p for group in self._parameters for p in group):
            parameter.grad = None

    def consolidate_state_dict(self) -> None:
        """Collect the state of all processes in the first; all have to call it (Lightning does)."""
        numbers = iter(range(sum(map(len, self._parameters))))
        groups, state = [], {}
        for group, parameters, flat in zip(self.param_groups, self._parameters, self._groups, strict=True):
            number_of = {parameter: next(numbers) for parameter in parameters}
            groups.append({**{k: v for k, v in group.items() if k != "params"}, "params": [*number_of.values()]})
            own = self.state.get(flat.share) if flat else None
            if not flat or not own:
                continue
            whole = {name: flat.apart(own[name]) for name in _AVERAGES}
            for i, parameter in enumerate(flat.parameters):
                state[number_of[parameter]] = {
                    "step": own["step"].to("cpu", copy=True),
                    **{n: whole[n][i] for n in _AVERAGES},
                }
        self._consolidated = {"state": state, "param_groups": groups} if dist.get_rank() == 0 else None

    def state_dict(self) -> dict[str, Any]:
        """What was consolidated."""
        if self._consolidated is None:
            raise RuntimeError("the state is spread over processes; call consolidate_state_dict() in all of them.")
        state, self._consolidated = self._consolidated, None
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state, of whatever number of processes."""
        saved = state_dict["param_groups"]
        if [len(g["params"]) for g in saved] != [*map(len, self._parameters)]:
            raise ValueError("the loaded state has other parameter groups than this run.")
        for group, old, parameters, flat in zip(self.param_groups, saved, self._parameters, self._groups, strict=True):
            group.update({k: v for k, v in old.items() if k != "params"})
            states = {p: state_dict["state"].get(i) for p, i in zip(parameters, old["params"], strict=True)}
            known = [states[p] for p in flat.parameters] if flat else []
            if not flat or not all(known):
                continue
            step = torch.as_tensor(known[0]["step"], dtype=torch.float32)
            self.state[flat.share] = {
                "step": step.to(flat.values.device) if group["fused"] else step.cpu(),
                **{name: flat.own_share([s[name] for s in known]) for name in _AVERAGES},
            }


def _rounded(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _own(whole: Tensor) -> Tensor:
    """The part of this process, as a view."""
    return whole.chunk(dist.get_world_size())[dist.get_rank()]


def _reduce_scatter(share: Tensor, whole: Tensor) -> dist.Work | None:
    if dist.get_backend() == "gloo":  # has no such operation in every version
        dist.all_reduce(whole)
        share.copy_(_own(whole))
        return None
    # as newer versions of torch call it
    start = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
    return cast("dist.Work | None", start(share, whole, async_op=True))


def _all_gather(whole: Tensor, share: Tensor) -> dist.Work | None:
    start = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
    return cast("dist.Work | None", start(whole, share, async_op=True))


def _wait(started: Iterable[dist.Work | None]) -> None:
    """Let what follows on the device wait for what was started."""
    for work in started:
        if work is not None:
            work.wait()
