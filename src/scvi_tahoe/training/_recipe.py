"""How a run is optimised: which parts of the network train, from which step on, and how fast."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch

from scvi_tahoe._arguments import checked, checked_fields
from scvi_tahoe.nn import Ineffective, reject_ineffective

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping

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
    """When and how fast one part of the network trains."""

    #: Step from which its pretrained tensors train; 0 from the start, None never. Tensors that were not loaded from a
    #: pretrained model always train from the start: a random tensor must never stay frozen.
    unfreeze_at: int | None = 0
    #: Fraction of the learning rate.
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


def never_trained(
    names: Iterable[str], parts: Mapping[str, PartSchedule], pretrained: Container[str], n_blocks: int
) -> set[str]:
    """Return the parameters that a run leaves as they are."""
    never = {part for part, schedule in parts.items() if schedule.unfreeze_at is None}
    return {name for name in names if part_in_run(name, pretrained, n_blocks) in never}


def depth_of(name: str, n_blocks: int) -> int:
    """Return the number of blocks above a parameter of the backbone; 0 outside the backbone."""
    return n_blocks - 1 - int(name[len(_BLOCKS) :].split(".")[0]) if name.startswith(_BLOCKS) else 0


@checked()
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
    if recipe == "lora" and freeze_backbone not in (None, True):
        raise ValueError(
            f"recipe='lora' keeps all pretrained weights frozen, which freeze_backbone={freeze_backbone!r} contradicts."
        )
    on, off = PartSchedule(), PartSchedule(unfreeze_at=None)
    if recipe == "lora":
        return {HEADS: off, "upper": off, "lower": off}
    if freeze_backbone is True or (freeze_backbone is None and recipe == "heads"):
        return {HEADS: on, "upper": off, "lower": off}
    if freeze_backbone is False or (freeze_backbone is None and recipe == "full"):
        return {HEADS: on, "upper": on, "lower": on}
    if freeze_backbone is None:
        upper = PartSchedule(unfreeze_at=int(0.2 * max_steps), rate=0.5)
        return {HEADS: on, "upper": upper, "lower": PartSchedule(unfreeze_at=int(0.4 * max_steps), rate=0.25)}
    if not 0 <= freeze_backbone < max_steps:
        raise ValueError(
            f"freeze_backbone={freeze_backbone} is the step at which to unfreeze and must lie in the run of "
            f"{max_steps} steps; True keeps the backbone frozen, False never freezes it."
        )
    backbone = PartSchedule(unfreeze_at=freeze_backbone, rate=0.5)
    return {HEADS: on, "upper": backbone, "lower": backbone}


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
    if len(rows) == 2 and rows[1][0] == NEW:  # from scratch: nothing to tell apart
        return f"{rows[1][1]} parameters, trained from scratch."
    return "\n".join(f"{a:<9}{b:>14}{c:>14}{d:>14}  {e}" for a, b, c, d, e in rows)


@checked()
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
        self._module.frozen = tuple(_without_gradients(self._module))
        self._module.train(self._module.training)
        return True

    def end(self) -> None:
        """Restore which parameters need gradients."""
        for name, parameter in self._module.named_parameters():
            parameter.requires_grad_(self._before.get(name, parameter.requires_grad))
        self._module.frozen = ()


def _without_gradients(module: nn.Module) -> Iterator[nn.Module]:
    """Find the outermost submodules without a trainable parameter; their dropout stays off."""
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        yield module
    else:
        for child in module.children():
            yield from _without_gradients(child)


@checked_fields
@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """How a run is optimised. Every option is used or refused.

    Attributes
    ----------
    max_steps
        Optimizer steps.
    lr
        Peak learning rate of the heads; other parts take a fraction of it (see ``recipe``).
    recipe, freeze_backbone
        Which parts train when, see :func:`~scvi_tahoe.training.resolve_recipe`.
    schedule, warmup, min_lr_ratio
        Shape of the rate, length of the warm-up as a fraction of the run, fraction of the peak at the end.
    weight_decay
        Decoupled decay of AdamW (Loshchilov & Hutter 2019); none on norms, biases, tokens and embeddings of batches.
    betas, eps
        Parameters of AdamW.
    gradient_clip
        Largest norm of the gradient. If None, it is not clipped.
    layer_decay
        Learning rate of each block of the backbone as a fraction of that of the block above it.
    dropout
        Probability of every dropout layer during this run, also of a pretrained network's (weights of attention keep
        theirs). If None, they stay as they are.
    ema
        Decay of a moving average of the weights, e.g. 0.999, see :class:`~scvi_tahoe.training.AveragedWeights`: the
        average is validated, kept as the best and left in the model. If None, no average is kept.
    lora_rank, lora_alpha
        Rank of the adapters of ``recipe='lora'`` (if None, 8), and ``alpha``, where ``alpha / rank`` scales what they
        add (if None, twice the rank). Refused with other recipes.
    log_every
        Optimizer steps between logged rates and gradient norms.
    seed
        Random seed for dropout.
    """

    max_steps: int
    lr: float = 1e-3
    recipe: Recipe = "freeze_then_unfreeze"
    freeze_backbone: bool | int | None = None
    schedule: Schedule = "cosine"
    warmup: float = 0.05
    min_lr_ratio: float = 0.02
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    gradient_clip: float | None = 1.0
    layer_decay: float = 1.0
    dropout: float | None = None
    ema: float | None = None
    lora_rank: int | None = None
    lora_alpha: float | None = None
    log_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        self._verify_numbers()
        for name, known in (("recipe", RECIPES), ("schedule", SCHEDULES)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r} is unknown; allowed are {', '.join(map(repr, known))}.")
        if self.schedule == "constant" and self.min_lr_ratio != PlanConfig.min_lr_ratio:
            raise ValueError(f"min_lr_ratio={self.min_lr_ratio!r} has no effect with schedule='constant'.")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed!r} must be 0 or more.")
        given = [n for n in ("lora_rank", "lora_alpha") if getattr(self, n) is not None]
        if given and self.recipe != "lora":
            raise ValueError(f"{given[0]} needs recipe='lora'; this is recipe={self.recipe!r}.")
        resolve_recipe(self.recipe, freeze_backbone=self.freeze_backbone, max_steps=self.max_steps)

    def _verify_numbers(self) -> None:
        for name in ("max_steps", "log_every", *(("lora_rank",) if self.lora_rank is not None else ())):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of 1 or more.")
        in_range = {
            "lr": (self.lr > 0, "positive"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "eps": (self.eps > 0, "positive"),
            "betas": (len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "two numbers from 0 to below 1"),
            "gradient_clip": (self.gradient_clip is None or self.gradient_clip > 0, "positive, or None"),
            "warmup": (0 <= self.warmup <= 1, "a fraction from 0 to 1"),
            "min_lr_ratio": (0 <= self.min_lr_ratio <= 1, "a fraction from 0 to 1"),
            "layer_decay": (0 < self.layer_decay <= 1, "above 0 and at most 1"),
            "dropout": (self.dropout is None or 0 <= self.dropout < 1, "from 0 to below 1, or None"),
            "ema": (self.ema is None or 0 < self.ema < 1, "between 0 and 1, or None"),
            "lora_alpha": (self.lora_alpha is None or self.lora_alpha > 0, "positive, or None"),
        }
        for name, (holds, allowed) in in_range.items():
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)!r} must be {allowed}.")

    def reject_ineffective(self, module: TahoeSTModule, pretrained: Container[str] = ()) -> None:
        """Raise a ``ValueError`` if an option is given and has no effect on a module.

        Nothing is frozen of a module without pretrained backbone: a random one has to train.
        """
        found, wanted = (
            {},
            {"freeze_backbone": self.freeze_backbone not in (None, False), "recipe": self.recipe == "heads"},
        )
        loaded = any(name in pretrained and name.startswith(_BACKBONE) for name, _ in module.named_parameters())
        for name in [name for name, is_given in wanted.items() if is_given and not loaded]:
            found[name] = Ineffective(
                "no tensor of the backbone holds pretrained values, and random ones have to train", "pretrained weights"
            )
        if not any(self._decayed_blocks_train(module, pretrained)):
            found["layer_decay"] = Ineffective(
                "of the backbone's blocks none below the last trains with "
                f"recipe={self.recipe!r} and freeze_backbone={self.freeze_backbone!r}",
                "a recipe that trains them",
            )
        if not any(isinstance(m, torch.nn.Dropout) for m in module.modules()):
            found["dropout"] = Ineffective("this network has no layer of dropout", "a network that has one")
        given = {n: getattr(self, n) for n in found if getattr(self, n) != getattr(PlanConfig, n)}
        reject_ineffective("training option", given, found)

    def _decayed_blocks_train(self, module: TahoeSTModule, pretrained: Container[str]) -> Iterator[bool]:
        parts = resolve_recipe(self.recipe, freeze_backbone=self.freeze_backbone, max_steps=self.max_steps)
        n_blocks = module.config.n_layers
        for name in (name for name, _ in module.named_parameters() if depth_of(name, n_blocks)):
            schedule = parts.get(part_in_run(name, pretrained, n_blocks), PartSchedule())
            # adapters beside pretrained weights train, and may not be there yet
            yield self.recipe == "lora" or schedule.unfreeze_at is not None

    def to_kwargs(self) -> dict[str, Any]:
        """Keyword arguments that build this configuration again."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_kwargs(cls, kwargs: dict[str, Any]) -> PlanConfig:
        """Build from keyword arguments, refusing unknown ones by name.

        Raises
        ------
        ValueError
            If one is unknown.
        """
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(kwargs) - set(known)):
            raise ValueError(f"training options {unknown} are unknown; there are {known}.")
        return cls(**kwargs)
