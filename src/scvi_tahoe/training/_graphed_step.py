"""Forward, loss and backward of a training step as one CUDA graph.

A step of the published network launches about a thousand kernels, which takes a processor as long as the GPU needs to
run them. Recorded once and replayed, they cost the processor nothing, and nothing has to be compiled.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from torch.nn import Parameter

    from scvi_tahoe._module import TahoeSTModule

logger = logging.getLogger(__name__)

#: steps that run as usual before one is recorded: kernels are compiled and chosen in them
_N_USUAL = 3


class StepLosses(NamedTuple):
    """Loss of a minibatch and each of its terms, without the history of gradients."""

    loss: Tensor
    terms: dict[str, Tensor]


class _Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    batch: dict[str, Tensor]
    losses: StepLosses
    gradients: list[tuple[Parameter, Tensor]]


class GraphedStep:
    """Computes losses and gradients of minibatches by replaying a recorded step.

    A recording holds for minibatches of one shape, and for the parameters that train at the time; another one is made
    where either changes. Parameters must stay where they are in memory.
    """

    def __init__(self, module: TahoeSTModule) -> None:
        self._module = module
        self._recording: _Recording | None = None
        self._holds_for: Any = None
        self._n_usual = 0
        self._fails = False

    def __call__(self, batch: Mapping[str, Tensor]) -> StepLosses | None:
        """Set the gradients of all parameters and return the losses; None where the step has to run as usual."""
        if self._fails:
            return None
        trained = tuple(p.requires_grad for p in self._module.parameters())
        place = tuple(p.data_ptr() for p in self._module.parameters())
        holds_for = trained, place, {name: (value.shape, value.dtype, value.device) for name, value in batch.items()}
        if holds_for != self._holds_for:
            self.forget()
            self._holds_for = holds_for
        if self._n_usual < _N_USUAL:
            self._n_usual += 1
            return None
        if self._recording is None:
            self._recording = self._record(batch)
            if self._recording is None:
                return None
        else:
            for name, value in batch.items():
                self._recording.batch[name].copy_(value)
        self._recording.graph.replay()
        for parameter, gradient in self._recording.gradients:
            parameter.grad = gradient
        loss, terms = self._recording.losses
        return StepLosses(loss.clone(), {name: value.clone() for name, value in terms.items()})

    def forget(self) -> None:
        """Give the memory of the recording back."""
        self._recording, self._n_usual = None, 0

    def _record(self, batch: Mapping[str, Tensor]) -> _Recording | None:
        graph, stream, own = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), dict(batch)
        for parameter in self._module.parameters():
            parameter.grad = None
        torch.cuda.empty_cache()  # what the steps before took, which the recording takes again for itself
        try:
            # other threads may bring the next minibatch meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                found = self._module(own)[-1]  # without what the backward pass does not need
                # as after a usual step; products of the energy distance would be rounded to bfloat16
                with torch.autocast("cuda", enabled=False):
                    found.loss.backward()
        except RuntimeError as error:
            self._fails = True
            # what torch leaves of a recording that failed: its stream, and random numbers drawn as if it went on
            torch.cuda.set_stream(stream)
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())
            for parameter in self._module.parameters():
                parameter.grad = None
            logger.warning(f"training steps cannot be recorded and run one by one: {str(error).splitlines()[0]}")
            return None
        losses = StepLosses(found.loss.detach(), {name: value.detach() for name, value in found.extra_metrics.items()})
        gradients = [(p, p.grad) for p in self._module.parameters() if p.grad is not None]
        return _Recording(graph, own, losses, gradients)
