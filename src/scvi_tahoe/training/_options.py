"""The options of ``train`` and of its optimisation, their defaults, and the checks that need nothing but these."""

from __future__ import annotations

import inspect
import pickle
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import torch
from scvi.train import Trainer

from scvi_tahoe._compat import require
from scvi_tahoe._names import nearest_names
from scvi_tahoe.nn import Ineffective, reject_ineffective
from scvi_tahoe.training._best import LAST, checkpoint_in
from scvi_tahoe.training._recipe import (
    RECIPES,
    SCHEDULES,
    PartSchedule,
    Recipe,
    Schedule,
    depth_of,
    part_in_run,
    resolve_recipe,
)
from scvi_tahoe.training._validation_scores import VALIDATION_SCORES

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    from lightning.pytorch.loggers import Logger

    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.data import Split, StoreKind

_VALIDATION = "validation_"  # what names of metrics of the validation begin with
_NAMED_LOGGERS = ("tensorboard", "wandb")

#: what train() decides itself, and where the user says it instead
_OURS = {
    "max_epochs": "max_steps",
    "gradient_clip_val": "plan_kwargs={'gradient_clip': ...}",
    "gradient_clip_algorithm": "plan_kwargs={'gradient_clip': ...}",
    "val_check_interval": "validate_every",
    "early_stopping": "patience",
    "early_stopping_patience": "patience",
    "early_stopping_monitor": "monitor",
    "enable_checkpointing": "save_dir",
    "ckpt_path": "resume_from",
    "train_size": "split=FractionSplit(validation=...)",
    "validation_size": "split=FractionSplit(validation=...)",
    "limit_val_batches": "split",
    "reload_dataloaders_every_n_epochs": "nothing: sets are drawn anew at every epoch",
}
#: what scvi-tools' autotune always gives, which is what train() does anyway, and where the user says otherwise
_ECHO = {"check_val_every_n_epoch": (1, "validate_every"), "enable_progress_bar": (False, "progress")}


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
        if self.recipe not in RECIPES:
            raise ValueError(f"recipe={self.recipe!r} is unknown; allowed are {', '.join(map(repr, RECIPES))}.")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r} is unknown; allowed are {', '.join(map(repr, SCHEDULES))}.")
        if self.schedule == "constant" and self.min_lr_ratio != PlanConfig.min_lr_ratio:
            raise ValueError(f"min_lr_ratio={self.min_lr_ratio!r} has no effect with schedule='constant'.")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed!r} must be 0 or more.")
        given = [n for n in ("lora_rank", "lora_alpha") if getattr(self, n) is not None]
        if given and self.recipe != "lora":
            raise ValueError(f"{given[0]} needs recipe='lora'; this is recipe={self.recipe!r}.")
        resolve_recipe(self.recipe, freeze_backbone=self.freeze_backbone, max_steps=self.max_steps)

    def _verify_numbers(self) -> None:
        for name in ("max_steps", "log_every", "lora_rank"):
            value = getattr(self, name)
            if name == "lora_rank" and value is None:
                continue
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
        """Raise a ``ValueError`` if ``layer_decay`` or ``dropout`` is given and has no effect on a module.

        Parameters
        ----------
        module
            What is to be trained, with or without the adapters of ``recipe='lora'``.
        pretrained
            Names of its parameters that hold pretrained values.
        """
        found = {}
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


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The options of :meth:`scvi_tahoe.TahoeST.train`, which says what they mean, and their defaults."""

    max_steps: int | None = None
    recipe: Recipe = "freeze_then_unfreeze"
    freeze_backbone: bool | int | None = None
    lr: float | None = None
    batch_size: int | None = None
    split: Split | None = None
    validate_every: int | None = None
    monitor: str = "validation_loss"
    patience: int | None = None
    save_steps: int | None = None
    save_dir: str | Path | None = None
    resume_from: str | Path | None = None
    logger: str | Logger | Sequence[Logger] | None = "csv"
    store: StoreKind = "auto"
    precision: str | int = "auto"
    compile: bool | Literal["auto"] = "auto"
    shrink_correction: bool = True
    seed: int = 0
    progress: bool = True
    plan_kwargs: Mapping[str, Any] | None = None
    trainer_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> TrainOptions:
        """Take keyword arguments of ``train``; those of no other name are Lightning's."""
        ours = {f.name for f in fields(cls)} - {"trainer_kwargs"}
        trainer_kwargs = {k: v for k, v in kwargs.items() if k not in ours}
        return cls(**{k: v for k, v in kwargs.items() if k in ours}, trainer_kwargs=trainer_kwargs)

    @classmethod
    def of_call(cls, arguments: Mapping[str, Any]) -> TrainOptions:
        """Take the arguments of a call of ``train``, its ``locals()``."""
        return cls(**{f.name: arguments[f.name] for f in fields(cls)})

    def trainer_options(self) -> dict[str, Any]:
        """Options of Lightning's trainer, checked, without those that train() decides itself."""
        options = dict(self.trainer_kwargs)
        for name, (ours, instead) in _ECHO.items():
            if name in options and options.pop(name) != ours:
                raise ValueError(f"train() does not take {name}; say it with {instead}.")
        for name, instead in _OURS.items():
            if name in options:
                raise ValueError(f"train() does not take {name}; say it with {instead}.")
        known = {*inspect.signature(Trainer).parameters, *inspect.signature(pl.Trainer).parameters} - {"kwargs"}
        if unknown := sorted(set(options) - known):
            raise ValueError(
                f"train() does not know {unknown}; it takes its own arguments, plan_kwargs, and options of Lightning's "
                "Trainer."
            )
        return options

    def plan(self, *, max_steps: int, default_lr: float) -> PlanConfig:
        """How the run is optimised, with ``default_lr`` where no rate is chosen."""
        given = dict(self.plan_kwargs or {})
        if "max_steps" in given:
            raise ValueError("plan_kwargs does not take max_steps; say it with train(max_steps=...).")
        options = {"recipe": self.recipe, "freeze_backbone": self.freeze_backbone, "lr": self.lr, "seed": self.seed}
        options = {"max_steps": max_steps, **options, **given}
        if options["lr"] is None:
            options["lr"] = default_lr
        return PlanConfig.from_kwargs(options)

    def verify_monitor(self, computed: Sequence[str], *, embeds: bool) -> None:
        """Refuse to monitor what this run does not compute."""
        monitor = self.monitor
        if not monitor.startswith(_VALIDATION):
            raise ValueError(
                f"monitor={monitor!r} must be a validation metric: 'validation_loss', one of its terms, or a score, "
                f"{', '.join(map(repr, VALIDATION_SCORES))}."
            )
        if monitor in VALIDATION_SCORES and embeds:
            raise ValueError(
                f"monitor={monitor!r} compares changes of expression, and representation='embedding' has control cells "
                "as embeddings only; monitor 'validation_loss'."
            )
        # callbacks of the user's may compute more
        if monitor not in computed and not self.trainer_kwargs.get("callbacks"):
            short = [name.removeprefix(_VALIDATION) for name in computed]  # what all begin with makes none alike
            near = nearest_names(monitor.removeprefix(_VALIDATION), short, n=1)
            near = re.sub(r"'(\w+)'", rf"'{_VALIDATION}\1'", near)
            raise ValueError(f"monitor={monitor!r} is not computed in this run{near}; there are {list(computed)}.")

    def verify_numbers(self, *, validate_every: int) -> None:
        """Refuse numbers out of range; ``validate_every`` is that of the run."""
        for name in ("validate_every", "patience", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value!r} must be 1 or more.")
        if self.compile not in (True, False, "auto"):
            raise ValueError(f"compile={self.compile!r} must be True, False or 'auto'.")
        if self.save_steps is None:
            return
        if self.save_dir is None:
            raise ValueError(f"save_steps={self.save_steps} writes checkpoints; give a save_dir.")
        # only between two validations is a run at a point that it can be continued from as if nothing had happened
        if self.save_steps < 1 or self.save_steps % validate_every:
            raise ValueError(
                f"save_steps={self.save_steps} must be a multiple of validate_every, which is {validate_every} in this "
                "run."
            )

    def folder(self) -> Path | None:
        """Folder of checkpoints, which need not exist yet."""
        if self.save_dir is None:
            return None
        folder = Path(self.save_dir)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"save_dir={str(folder)!r} is a file; a folder is needed.")
        found = checkpoint_in(folder)
        if found is not None and self.resume_from is None:
            raise ValueError(
                f"save_dir={str(folder)!r} holds the checkpoint {found.name} of an earlier run: continue it with "
                f"resume_from={str(found)!r}, or give another folder."
            )
        return folder

    def verify_logger(self) -> None:
        """Refuse a logger that is unknown, not installed, or has no folder to write to."""
        name = self.logger
        if name == "csv" or not isinstance(name, str):
            return
        if name not in _NAMED_LOGGERS:
            raise ValueError(
                f"logger={name!r} is unknown; allowed are 'csv', 'tensorboard', 'wandb', None or a logger."
            )
        if self.save_dir is None:
            raise ValueError(f"logger={name!r} writes files; give a save_dir.")
        require(name, name)

    def loggers(self) -> list[Logger]:
        """Loggers in addition to the history of the model."""
        if self.logger is None or self.logger == "csv":
            return []
        if self.logger == "wandb":
            return [pl.loggers.WandbLogger(save_dir=str(self.save_dir), project="scvi-tahoe")]
        if self.logger == "tensorboard":
            return [pl.loggers.TensorBoardLogger(str(self.save_dir), name="tensorboard")]
        return [*(self.logger if isinstance(self.logger, list | tuple) else [self.logger])]  # type: ignore[list-item]

    def resumed_step(self, plan: PlanConfig, setting: Mapping[str, Any]) -> int | None:
        """Step of the checkpoint to resume from, after checking that the run is the same."""
        if self.resume_from is None:
            return None
        path = Path(self.resume_from)
        if not path.is_file():
            raise FileNotFoundError(f"resume_from={str(path)!r} does not exist; a run writes {LAST} into its save_dir.")
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            earlier = {**PlanConfig.from_kwargs(checkpoint["plan_config"]).to_kwargs(), **checkpoint["setting"]}
            step = int(checkpoint["global_step"])
        except (KeyError, ValueError, TypeError, RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"resume_from={str(path)!r} is not a checkpoint of an interrupted run ({error}); weights alone are "
                "loaded with TahoeST.load or TahoeST.from_pretrained."
            ) from None
        now = {**plan.to_kwargs(), **setting}
        if changed := {k: (earlier.get(k), v) for k, v in now.items() if earlier.get(k) != v}:
            listed = "; ".join(f"{k} was {a!r}, now {b!r}" for k, (a, b) in changed.items())
            raise ValueError(
                f"a resumed run goes on with the options it started with, and these differ: {listed}. To train with "
                "other options start anew from the weights, TahoeST.load(...).train(...)."
            )
        return step
