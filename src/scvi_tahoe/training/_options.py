"""The options of ``train`` and of its optimisation, their defaults, and the checks that need nothing but these."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
from scvi.train import Trainer

from scvi_tahoe._compat import require
from scvi_tahoe._names import nearest_names
from scvi_tahoe.files import read_torch
from scvi_tahoe.training._checkpoints import LAST, checkpoint_in
from scvi_tahoe.training._recipe import PlanConfig
from scvi_tahoe.training._reports import VALIDATION_SCORES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning.pytorch.loggers import Logger

    from scvi_tahoe.data import Split, StoreKind
    from scvi_tahoe.training._recipe import Recipe

_VALIDATION = "validation_"  # what names of metrics of the validation begin with

#: what train() decides itself, and where the user says it instead
_OURS = {
    **dict.fromkeys(("max_epochs", "n_epochs", "num_epochs", "epochs", "n_steps", "steps"), "max_steps"),
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
    compile: bool | Literal["auto", "record"] = "auto"
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
        for name in [name for name, (ours, _) in _ECHO.items() if options.get(name, ours) == ours]:
            options.pop(name, None)
        for name, instead in {**_OURS, **{name: instead for name, (_, instead) in _ECHO.items()}}.items():
            if name in options:
                raise ValueError(f"train() does not take {name}; say it with {instead}.")
        known = {*inspect.signature(Trainer).parameters, *inspect.signature(pl.Trainer).parameters} - {"kwargs"}
        if unknown := sorted(set(options) - known):
            takes = "its own arguments, plan_kwargs, and options of Lightning's Trainer"
            near = nearest_names(unknown[0], [*(f.name for f in fields(self)), *known], n=1)
            raise ValueError(f"train() does not know {unknown}{near}; it takes {takes}.")
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
        for name in ("validate_every", "patience", "batch_size"):  # of plan_training(), too
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value!r} must be 1 or more.")
        if self.compile not in (True, False, "auto", "record"):
            raise ValueError(f"compile={self.compile!r} must be True, False, 'auto' or 'record'.")
        if (steps := self.save_steps) is None:
            return
        if self.save_dir is None:
            raise ValueError(f"save_steps={steps} writes checkpoints; give a save_dir.")
        # only between two validations is a run at a point that it can be continued from as if nothing had happened
        if steps < 1 or steps % validate_every:
            raise ValueError(f"save_steps={steps} must be a multiple of validate_every, which is {validate_every}.")

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
        if name not in ("tensorboard", "wandb"):
            allowed = "'csv', 'tensorboard', 'wandb', None or a logger"
            raise ValueError(f"logger={name!r} is unknown; allowed are {allowed}.")
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
            checkpoint = read_torch(path, verify=True)
            earlier = {**PlanConfig.from_kwargs(checkpoint["plan_config"]).to_kwargs(), **checkpoint["setting"]}
            step = int(checkpoint["global_step"])
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(
                f"resume_from={str(path)!r} is not a checkpoint of an interrupted run ({error}); weights alone are "
                "loaded with TahoeST.load or TahoeST.from_pretrained."
            ) from None
        now = {**plan.to_kwargs(), **setting}
        if changed := {k: (earlier.get(k), v) for k, v in now.items() if earlier.get(k) != v}:
            listed = "; ".join(f"{k} was {a!r}, now {b!r}" for k, (a, b) in changed.items())
            raise ValueError(
                f"a resumed run continues with the options it started with, and these differ: {listed}. To train with "
                "other options, start a new run from the weights, TahoeST.load(...).train(...)."
            )
        return step
