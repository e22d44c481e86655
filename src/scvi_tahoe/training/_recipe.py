"""Which parts of the network train, from which step on and how fast: recipes, schedules, and what frozen means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from torch import nn

    from scvi_tahoe._module import TahoeSTModule

Recipe = Literal["freeze_then_unfreeze", "full", "heads", "lora"]
RECIPES: tuple[Recipe, ...] = ("freeze_then_unfreeze", "full", "heads", "lora")

Schedule = Literal["cosine", "constant", "one_cycle"]
SCHEDULES: tuple[Schedule, ...] = ("cosine", "constant", "one_cycle")

HEADS = "heads"
#: label of parameters without pretrained values
NEW = "new"
#: label of the adapters of recipe='lora'
ADAPTERS = "adapters"
_BLOCKS = "network.backbone.blocks."
_BACKBONE = "network.backbone."


@dataclass(frozen=True, kw_only=True)
class PartSchedule:
    """When and how fast one part of the network trains.

    Attributes
    ----------
    unfreeze_at
        Step from which its pretrained tensors train; 0 from the start, None never. Tensors that were not loaded from
        a pretrained model always train from the start: a random tensor must never stay frozen.
    rate
        Fraction of the learning rate.
    """

    unfreeze_at: int | None = 0
    rate: float = 1.0

    def is_frozen(self, step: int) -> bool:
        """Return whether the part's pretrained tensors are frozen at a step."""
        return self.unfreeze_at is None or step < self.unfreeze_at


def part_of(name: str, n_blocks: int) -> str:
    """Return the part of the network that a parameter belongs to: ``heads``, ``upper`` or ``lower`` blocks."""
    if not name.startswith(_BACKBONE):
        return HEADS
    if not name.startswith(_BLOCKS):
        return "upper"  # the final norm belongs to the blocks it follows
    block = int(name[len(_BLOCKS) :].split(".")[0])
    return "upper" if block >= n_blocks - max(1, -(-n_blocks // 3)) else "lower"


def part_in_run(name: str, pretrained: Container[str], n_blocks: int) -> str:
    """Return the part of a parameter in a run, where adapters and new tensors are parts of their own."""
    if ".lora_" in name:
        return ADAPTERS
    return part_of(name, n_blocks) if name in pretrained else NEW


def depth_of(name: str, n_blocks: int) -> int:
    """Return the number of blocks above a parameter of the backbone; 0 outside the backbone."""
    return n_blocks - 1 - int(name[len(_BLOCKS) :].split(".")[0]) if name.startswith(_BLOCKS) else 0


def resolve_recipe(recipe: Recipe, *, freeze_backbone: bool | int | None, max_steps: int) -> dict[str, PartSchedule]:
    """Return the schedule of every part.

    Parameters
    ----------
    recipe
        One of:

        * ``'freeze_then_unfreeze'`` - heads from the start; the upper third of the blocks after 20 % of the steps at
          half the rate; the lower blocks after 40 % at a quarter
        * ``'full'`` - everything from the start
        * ``'heads'`` - everything but the backbone
        * ``'lora'`` - none of the pretrained weights, but adapters of low rank for each pretrained linear layer
          (Hu et al. 2022, *LoRA*); needs the extra ``lora``
    freeze_backbone
        Overrides the recipe: True never trains the backbone, False always does, a step unfreezes all of it there.
    max_steps
        Optimizer steps of the run.

    Raises
    ------
    ValueError
        If the recipe is unknown, the step lies outside the run, or ``'lora'`` is to train the backbone.
    """
    if recipe not in RECIPES:
        raise ValueError(f"recipe={recipe!r} is unknown; allowed are {', '.join(map(repr, RECIPES))}.")
    if recipe == "lora":
        if freeze_backbone not in (None, True):
            raise ValueError(
                f"recipe='lora' keeps all pretrained weights frozen, which freeze_backbone={freeze_backbone!r} "
                "contradicts."
            )
        frozen = PartSchedule(unfreeze_at=None)
        return {HEADS: frozen, "upper": frozen, "lower": frozen}
    parts = {HEADS: PartSchedule()}
    if freeze_backbone is True or (freeze_backbone is None and recipe == "heads"):
        frozen = PartSchedule(unfreeze_at=None)
        return {**parts, "upper": frozen, "lower": frozen}
    if freeze_backbone is False or (freeze_backbone is None and recipe == "full"):
        return {**parts, "upper": PartSchedule(), "lower": PartSchedule()}
    if freeze_backbone is None:
        return {
            **parts,
            "upper": PartSchedule(unfreeze_at=int(0.2 * max_steps), rate=0.5),
            "lower": PartSchedule(unfreeze_at=int(0.4 * max_steps), rate=0.25),
        }
    if not 0 <= freeze_backbone < max_steps:
        raise ValueError(
            f"freeze_backbone={freeze_backbone} is the step at which to unfreeze and must lie in the run of "
            f"{max_steps} steps; True keeps the backbone frozen, False never freezes it."
        )
    backbone = PartSchedule(unfreeze_at=freeze_backbone, rate=0.5)
    return {**parts, "upper": backbone, "lower": backbone}


def count_parts(
    sizes: Mapping[str, int], parts: Mapping[str, PartSchedule], pretrained: Iterable[str], n_blocks: int
) -> str:
    """Return a table of parameters: how many of each part are frozen or train at the start, and when they train."""
    pretrained = frozenset(pretrained)
    schedules = {NEW: PartSchedule(), ADAPTERS: PartSchedule(), **parts}
    n_parameters = dict.fromkeys(schedules, 0)
    for name, size in sizes.items():
        n_parameters[part_in_run(name, pretrained, n_blocks)] += size
    rows = [("part", "parameters", "frozen", "trainable", "trains")]
    for part, schedule in schedules.items():
        n, frozen = n_parameters[part], schedule.is_frozen(0)
        never = schedule.unfreeze_at is None
        when = "never" if never else f"from step {schedule.unfreeze_at} at {schedule.rate:g} x lr"
        if n:
            rows.append((part, f"{n:,}", f"{n * frozen:,}", f"{n * (not frozen):,}", when))
    return "\n".join(f"{a:<9}{b:>14}{c:>14}{d:>14}  {e}" for a, b, c, d, e in rows)


def learning_rate_share(step: int, *, schedule: Schedule, start: int, end: int, warmup: float, floor: float) -> float:
    """Return the learning rate at a step as a fraction of the peak.

    Parameters
    ----------
    step
        Optimizer step, from 0.
    schedule
        One of:

        * ``'cosine'`` - linear warm-up, then half a cosine down to ``floor`` (Loshchilov & Hutter 2017, SGDR)
        * ``'one_cycle'`` - cosine up over the warm-up, cosine down to ``floor`` (Smith & Topin 2019)
        * ``'constant'`` - linear warm-up, then the peak
    start, end
        First step of this part of the network, and last step of the run.
    warmup
        Length of the warm-up, as a fraction of ``end - start``.
    floor
        Fraction of the peak at the end.

    Returns
    -------
    A number from 0 to 1; 0 before ``start``, never 0 from there on.
    """
    if step < start:
        return 0.0
    length = max(1, end - start)
    n_warmup = max(1, round(warmup * length))
    position = step - start
    if position < n_warmup:
        rise = (position + 1) / n_warmup
        return 0.5 * (1 - math.cos(math.pi * rise)) if schedule == "one_cycle" else rise
    if schedule == "constant":
        return 1.0
    fall = min(1.0, (position - n_warmup) / max(1, length - n_warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * fall))


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
        """Remember which parameters need gradients, and freeze what is frozen at this step."""
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
        """Restore which parameters need gradients."""
        for name, parameter in self._module.named_parameters():
            parameter.requires_grad_(self._before.get(name, parameter.requires_grad))
        self._module.frozen = ()

    def _frozen_submodules(self) -> Iterable[nn.Module]:
        """Find the outermost submodules without a trainable parameter; their dropout stays off."""

        def walk(module: nn.Module) -> Iterable[nn.Module]:
            parameters = list(module.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                yield module
                return
            for child in module.children():
                yield from walk(child)

        return walk(self._module)
