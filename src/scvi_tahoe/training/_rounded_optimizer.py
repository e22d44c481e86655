"""An optimizer for one GPU, whose module holds weights in the 16 bits that its products round them to anyway.

Weights as they are, and their averages, stay with the optimizer (Micikevicius et al. 2018, *Mixed precision training*,
arXiv:1710.03740). Gradients then have 16 bits, too, no weight is rounded again at every step, and clipping, AdamW and
rounding are one pass over a weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from torch import Tensor
    from torch.nn import Parameter


class RoundedAdamW(torch.optim.AdamW):
    """AdamW, whose saved state is that of :class:`torch.optim.AdamW`.

    The parameters ``rounded`` are those that training uses in ``precision`` only: from :meth:`compact` to
    :meth:`complete` the module holds them rounded.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, precision: torch.dtype, rounded: Collection[Parameter], **kwargs: Any
    ) -> None:
        super().__init__(groups, **kwargs)
        self._precision = precision
        self._rounded = frozenset(rounded)
        #: unrounded values of the parameters that the module holds rounded now
        self._full: dict[Parameter, Tensor] = {}
        #: where the module holds them, always the same place
        self._place: dict[Parameter, Tensor] = {}
        self._factor: Tensor | None = None

    def compact(self) -> None:
        """Make the module hold the weights as training computes with them."""
        for parameter in self._rounded - self._full.keys():
            full = self._full[parameter] = parameter.data
            if parameter not in self._place:
                self._place[parameter] = torch.empty_like(full, dtype=self._precision)
            parameter.grad, parameter.data = None, self._place[parameter].copy_(full)

    def complete(self) -> None:
        """Make the module hold the weights unrounded."""
        for parameter, full in self._full.items():
            parameter.grad, parameter.data = None, full
        self._full.clear()

    def end(self) -> None:
        """Give the parameters back."""
        self.complete()
        self._place.clear()

    @torch.no_grad()
    def reduce_gradients(self, limit: float) -> Tensor:
        """Return the norm of the gradients; the step that follows clips them to norm ``limit``."""
        from scvi_tahoe.training._adamw_kernel import total_norm

        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = total_norm(gradients)
        self._factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        return norm

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update the weights, and forget the gradients, so that the next forward pass has their memory."""
        from scvi_tahoe.training._adamw_kernel import adamw

        result = None if closure is None else torch.enable_grad()(closure)()
        if self._factor is None:
            raise RuntimeError("reduce_gradients() comes before step().")
        factor, self._factor = self._factor, None
        rest = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None and p not in self._full]
        if rest:
            torch._foreach_mul_(rest, factor)
        for group in self.param_groups:
            trained = [p for p in group["params"] if p in self._full and p.grad is not None]
            if not trained:
                continue
            torch._foreach_add_([self._state_of(p)["step"] for p in trained], 1)
            options = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
            with torch.cuda.device(factor.device):
                for p in trained:
                    state = self.state[p]
                    averages = state["exp_avg"], state["exp_avg_sq"]
                    adamw(self._full[p], p.data, p.grad, *averages, state["step"], factor, **options)
                    p.grad = None
        super().step()  # what is not rounded
        self.zero_grad()
        return result

    def _state_of(self, parameter: Parameter) -> dict[str, Any]:
        """Return the state of a rounded parameter, which begins with zeros."""
        state: dict[str, Any] = self.state[parameter]
        if not state:
            full = self._full[parameter]
            state["step"] = torch.zeros((), dtype=torch.float32, device=full.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(full), torch.zeros_like(full)
        return state
