"""A moving average of the weights: what validates, is kept and is given back, while the weights themselves train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim.swa_utils import get_ema_multi_avg_fn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

__all__ = ["AveragedWeights"]


class AveragedWeights:
    """Exponential moving average of a module's parameters.

    After step ``t`` each average moves by ``1 - min(decay, (1 + t) / (10 + t))`` towards its weight: at first it
    forgets faster, or the initial weights would be part of it for a long time. What is frozen equals its average to
    the bit.

    Parameters
    ----------
    module
        Whose parameters.
    decay
        Share of itself that an average keeps at a step, once the run is long enough.

    Notes
    -----
    Polyak & Juditsky 1992, *Acceleration of stochastic approximation by averaging*.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module = module
        self._decay = decay
        self._averages: dict[str, Tensor] = {}
        self._step = 0

    def begin(self, step: int, averages: Mapping[str, Tensor] | None = None) -> None:
        """Start from the weights, or from the averages of the run that goes on."""
        weights = dict(self._module.named_parameters())
        start = weights if averages is None else averages
        self._averages = {n: start[n].detach().to(p.device, copy=True) for n, p in weights.items()}
        self._step = step

    def update(self, step: int) -> None:
        """Follow the weights, once for each optimizer step."""
        if step == self._step:
            return
        self._step = step
        decay = min(self._decay, (1 + step) / (10 + step))
        weights = [p.detach() for p in self._module.parameters()]
        get_ema_multi_avg_fn(decay)(list(self._averages.values()), weights, step)

    def swap(self) -> None:
        """Exchange weights and averages, without copying."""
        for name, parameter in self._module.named_parameters():
            parameter.data, self._averages[name] = self._averages[name], parameter.data

    @property
    def values(self) -> dict[str, Tensor]:
        """The averages by the name of their parameter."""
        return self._averages
