"""What frozen means: no gradient, no decay, no dropout, bit-identical afterwards. And how it is undone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvi_tahoe.training._recipe import part_in_run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn

    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.training._recipe import PartSchedule

__all__ = ["Freezing"]


class Freezing:
    """Freezes and unfreezes the parts of a module as its training proceeds.

    Parameters
    ----------
    module
        What is trained.
    parts
        Schedule of each part.
    pretrained
        Names of the parameters that hold pretrained values; only these are ever frozen.
    """

    def __init__(self, module: TahoeSTModule, parts: Mapping[str, PartSchedule], pretrained: Iterable[str]) -> None:
        self._module = module
        self._parts = parts
        self._pretrained = frozenset(pretrained)
        self._n_blocks = module.config.n_layers
        self._before: dict[str, bool] = {}
        self._last: frozenset[str] | None = None

    def begin(self, step: int) -> None:
        """Remember how the module was, and freeze what is frozen at this step."""
        self._before = {n: p.requires_grad for n, p in self._module.named_parameters()}
        self._last = None
        self.update(step)

    def update(self, step: int) -> bool:
        """Freeze and unfreeze for a step; True if anything changed."""
        frozen = frozenset(part for part, schedule in self._parts.items() if schedule.is_frozen(step))
        if frozen == self._last:
            return False
        self._last = frozen
        for name, parameter in self._module.named_parameters():
            held = part_in_run(name, self._pretrained, self._n_blocks) in frozen
            parameter.requires_grad_(self._before[name] and not held)
        self._module.frozen = tuple(self._frozen_submodules())
        self._module.train(self._module.training)
        return True

    def end(self) -> None:
        """Give the module back as it was."""
        for name, parameter in self._module.named_parameters():
            parameter.requires_grad_(self._before.get(name, parameter.requires_grad))
        self._module.frozen = ()

    def _frozen_submodules(self) -> Iterable[nn.Module]:
        """The outermost submodules without a trainable parameter; their dropout stays off."""

        def walk(module: nn.Module) -> Iterable[nn.Module]:
            parameters = list(module.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                yield module
                return
            for child in module.children():
                yield from walk(child)

        return walk(self._module)
