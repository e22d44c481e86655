"""Several processes train one model, and each keeps and updates its share of every weight.

Usually all processes average all gradients and all do the same optimizer step. Here a process gets the sum of the
gradients of its share only, in the precision of the products that made them, updates that share, and hands out the new
weights: the first stage of ZeRO (Rajbhandari et al. 2020, *ZeRO: Memory optimizations toward training trillion
parameter models*, arXiv:1910.02054). Weights that only enter products of 16 bits are handed out in 16 bits, which is
what those products round them to anyway; the process that updates them keeps them as they are (Micikevicius et al.
2018, *Mixed precision training*, arXiv:1710.03740), and whoever validates or saves a model gets them from there. So
half as much is sent, the optimizer step takes a share of its time, and weights need not be rounded at every step. They
are the same in all processes, to the bit.
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

#: numbers between two places where a weight or a share may begin, so that kernels read whole lines of memory
_ALIGNED = 64
_AVERAGES = ("exp_avg", "exp_avg_sq")


class ShardedOptimizerStrategy(DDPStrategy):
    """Lightning's strategy for several processes, for a plan whose optimizer exchanges the gradients.

    Everything but that is Lightning's: starting processes, sums over them, checkpoints.
    """

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
    """Trainable parameters of one parameter group, side by side in memory.

    Attributes
    ----------
    number
        Of the parameter group.
    parameters
        They are. While training each is a view into ``values``.
    places
        Where each of them is.
    values
        All weights as training computes with them, and zeros between them.
    share
        The weights that this process updates, as they are: a view into ``values``, or memory of its own where those
        are rounded.
    gradient
        That of ``share``.
    sent
        Gradients of all weights in this process, in the precision in which they are exchanged.
    received
        The sum over all processes, of the share.
    """

    number: int
    parameters: Sequence[Parameter]
    places: Sequence[slice]
    values: Tensor
    share: Parameter
    gradient: Tensor
    sent: Tensor
    received: Tensor

    @classmethod
    def of(
        cls, number: int, parameters: Sequence[Parameter], *, sent: torch.dtype | None, rounded: torch.dtype | None
    ) -> _Group:
        """Move parameters beside each other, with the values that they have in the first process."""
        places, end = [], 0
        for parameter in parameters:
            places.append(slice(end, end + parameter.numel()))
            end = _rounded_up(places[-1].stop, _ALIGNED)
        length = _rounded_up(end, _ALIGNED * dist.get_world_size())
        whole = torch.zeros(length, device=parameters[0].device, dtype=parameters[0].dtype)
        for parameter, place in zip(parameters, places, strict=True):
            whole[place].view_as(parameter).copy_(parameter.detach())
            parameter.data = whole[place].view_as(parameter)
        dist.broadcast(whole, 0)
        values = whole if rounded is None else whole.to(rounded)
        share = torch.nn.Parameter(_own(whole) if rounded is None else _own(whole).clone())
        gradient = share.grad = torch.zeros_like(share)
        exchanged = torch.zeros(length, device=whole.device, dtype=sent or whole.dtype)
        received = torch.empty_like(_own(exchanged))
        return cls(number, parameters, places, values, share, gradient, exchanged, received)

    @property
    def rounds(self) -> bool:
        """Whether training computes with rounded weights."""
        return self.values.dtype != self.share.dtype

    def place_in(self, memory: Tensor) -> None:
        """Let every parameter be a view into weights of all processes."""
        for parameter, place in zip(self.parameters, self.places, strict=True):
            parameter.grad = None
            parameter.data = memory[place].view_as(parameter)

    def send_gradients(self) -> dist.Work | None:
        """Start to sum the gradients over all processes."""
        for parameter, place in zip(self.parameters, self.places, strict=True):
            if parameter.grad is None:
                raise ValueError(
                    f"a weight of shape {tuple(parameter.shape)} has no part in the loss, and processes that share the "
                    "optimizer train all weights together; give strategy='ddp_find_unused_parameters_true'."
                )
            self.sent[place].view_as(parameter).copy_(parameter.grad)
        return _reduce_scatter(self.received, self.sent)

    def hand_out(self) -> dist.Work | None:
        """Start to give every process the weights that the others updated."""
        if self.rounds:
            _own(self.values).copy_(self.share.detach())
        return _all_gather(self.values, _own(self.values))

    def whole(self, share: Tensor) -> Tensor:
        """All of something of which every process has a share."""
        whole = torch.empty(len(self.values), device=share.device, dtype=share.dtype)
        _wait([_all_gather(whole, share.detach())])
        return whole

    def apart(self, share: Tensor) -> list[Tensor]:
        """What belongs to each parameter of something of which every process has a share, in main memory."""
        whole = self.whole(share)
        views = (whole[place].view_as(p) for p, place in zip(self.parameters, self.places, strict=True))
        return [view.to("cpu", copy=True) for view in views]

    def own_share(self, whole: Sequence[Tensor]) -> Tensor:
        """The share of this process of something that was taken apart."""
        together = torch.zeros(len(self.values), device=self.share.device, dtype=self.share.dtype)
        for value, parameter, place in zip(whole, self.parameters, self.places, strict=True):
            together[place].view_as(parameter).copy_(value)
        return _own(together).clone()

    def release(self) -> None:
        """Let every parameter have memory of its own again."""
        for parameter in self.parameters:
            parameter.grad = None
            parameter.data = parameter.detach().to(self.share.dtype, copy=True)


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
    rounded
        Parameters that training uses in ``precision`` only. From :meth:`compact` to :meth:`complete` the module holds
        them rounded, and so are their gradients.
    **kwargs
        Handed to :class:`torch.optim.AdamW`.
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
        """Take the parameters that train from here on; what is frozen stays frozen."""
        self._groups = []
        for number, group in enumerate(self.param_groups):
            trained = [p for p in self._parameters[number] if p.requires_grad]
            exact = [p for p in trained if p not in self._rounded]
            rounded = [p for p in trained if p in self._rounded]
            for parameters, precision in ((exact, None), (rounded, self._precision)):
                if parameters:
                    self._groups.append(_Group.of(number, parameters, sent=self._precision, rounded=precision))
            group["params"] = [flat.share for flat in self._groups if flat.number == number]

    def compact(self) -> None:
        """Let the module hold the weights as training computes with them."""
        if not self._is_compact:
            self._is_compact = True
            for group in (group for group in self._groups if group.rounds):
                group.place_in(group.values)

    def complete(self) -> None:
        """Let the module hold the weights with nothing rounded; all processes have to call it."""
        if self._is_compact:
            self._is_compact = False
            for group in (group for group in self._groups if group.rounds):
                group.place_in(group.whole(group.share))

    def end(self) -> None:
        """Leave nothing behind in the parameters; what is rounded in this moment stays so."""
        for flat in self._groups:
            flat.release()
        for group in self.param_groups:
            group["params"] = []
        self.state.clear()
        self._groups, self._is_compact = [], False

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
        """Update the share of this process, and exchange the weights."""
        result = super().step(closure)
        _wait([group.hand_out() for group in self._groups])
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
            own = self.state.get(flat.share)
            if not own:
                continue
            whole = {name: flat.apart(own[name]) for name in _AVERAGES}
            for i, parameter in enumerate(flat.parameters):
                state[number_of[parameter]] = {
                    "step": own["step"].to("cpu", copy=True),
                    **{name: whole[name][i] for name in _AVERAGES},
                }
        groups = [
            {**{k: v for k, v in group.items() if k != "params"}, "params": [number_of[p] for p in parameters]}
            for group, parameters in zip(self.param_groups, self._parameters, strict=True)
        ]
        self._consolidated = {"state": state, "param_groups": groups} if dist.get_rank() == 0 else None

    def _numbers(self) -> dict[Parameter, int]:
        """Number of each parameter, as torch counts them."""
        return {p: number for number, p in enumerate(p for group in self._parameters for p in group)}

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
            self.state[flat.share] = {
                "step": step.to(flat.values.device) if fused else step.cpu(),
                # torch keeps nothing of a weight that had no gradient yet
                **{
                    n: flat.own_share([s[n] if s else torch.zeros_like(p) for p, s in states.items()])
                    for n in _AVERAGES
                },
            }


def _rounded_up(n: int, multiple: int) -> int:
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
