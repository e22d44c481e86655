"""One training run: options checked before anything costly, put into Lightning's terms, and finished cleanly."""

from __future__ import annotations

import inspect
import logging
import os
import pickle
import re
import signal
import sys
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import pandas as pd
import torch
from scvi import settings
from scvi.train import Trainer
from tqdm.auto import tqdm

from scvi_tahoe._compat import quiet_lightning, require
from scvi_tahoe._devices import explained_out_of_memory, resolve_precision
from scvi_tahoe._names import nearest_names
from scvi_tahoe.data import CellSetDataModule, DeviceStore, LoaderConfig
from scvi_tahoe.training._acceleration import compiling_pays
from scvi_tahoe.training._best import BEST, LAST, KeepBest, checkpoint_in
from scvi_tahoe.training._history import MetricsHistory
from scvi_tahoe.training._memory import plan_memory
from scvi_tahoe.training._plan import PlanConfig, TahoeTrainingPlan
from scvi_tahoe.training._progress import StepProgress
from scvi_tahoe.training._recipe import part_in_run, resolve_recipe
from scvi_tahoe.training._sharded_optimizer import SHARDED, ShardedOptimizerStrategy
from scvi_tahoe.training._validation_scores import VALIDATION_SCORES, ValidationScores

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    import numpy as np
    from lightning.pytorch import Callback
    from lightning.pytorch.loggers import Logger

    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.data import AssignedSplit, CellSetDataset, Condition
    from scvi_tahoe.training._memory import MemoryPlan

__all__ = ["TrainingRun", "default_lr"]

logger = logging.getLogger(__name__)

_MAX_STEPS, _BATCH_SIZE, _N_VALIDATIONS = 1_000, 8, 20
_VALIDATION = "validation_"  # what names of metrics of the validation begin with
_LR_SCRATCH, _LR_PRETRAINED, _LR_ON_PRIOR = 1e-3, 2e-4, 1e-4

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


def _verify_trainer_options(options: Mapping[str, Any]) -> None:
    for name, instead in _OURS.items():
        if name in options:
            raise ValueError(f"train() does not take {name}; say it with {instead}.")
    known = {*inspect.signature(Trainer).parameters, *inspect.signature(pl.Trainer).parameters} - {"kwargs"}
    if unknown := sorted(set(options) - known):
        raise ValueError(
            f"train() does not know {unknown}; it takes its own arguments, plan_kwargs, and options of Lightning's "
            "Trainer."
        )


def _without_echo(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without those that scvi-tools' autotune always gives: what train() does anyway.

    Raises
    ------
    ValueError
        If one of them says otherwise.
    """
    options = dict(options)
    for name, ours, instead in (
        ("check_val_every_n_epoch", 1, "validate_every"),
        ("enable_progress_bar", False, "progress"),
    ):
        if name in options and options.pop(name) != ours:
            raise ValueError(f"train() does not take {name}; say it with {instead}.")
    return options


def _nearest_score(monitor: str, monitored: Sequence[str]) -> str:
    """The name most like it; what all of them begin with makes none alike."""
    near = nearest_names(monitor.removeprefix(_VALIDATION), [name.removeprefix(_VALIDATION) for name in monitored], n=1)
    return re.sub(r"'(\w+)'", rf"'{_VALIDATION}\1'", near)


def default_lr(*, has_strong_prior: bool, has_pretrained: bool) -> float:
    """Learning rate of a training for which none is chosen.

    Parameters
    ----------
    has_strong_prior
        Whether the prior leaves little to learn, so that a fast network would learn its noise.
    has_pretrained
        Whether the network has pretrained weights.
    """
    return _LR_ON_PRIOR if has_strong_prior else _LR_PRETRAINED if has_pretrained else _LR_SCRATCH


def _device(options: Mapping[str, Any]) -> torch.device:
    """Where the network will run."""
    accelerator = options.get("accelerator", "auto")
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        devices = options.get("devices", "auto")
        # of several processes on one machine each has a card of its own: torchrun and Lightning say which, and SLURM,
        # which may show a process that card alone
        local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
        local %= torch.cuda.device_count()
        return torch.device("cuda", devices[local] if isinstance(devices, list | tuple) else local)
    if accelerator in ("gpu", "cuda"):
        raise ValueError(f"accelerator={accelerator!r} was asked for, and this machine has no CUDA device.")
    return torch.device(accelerator if accelerator == "mps" else "cpu")


def _n_devices(devices: Any) -> int:
    """How many devices of a machine are asked for, in Lightning's words; ``'auto'`` is one, as in scvi-tools."""
    if isinstance(devices, list | tuple):
        return len(devices)
    if isinstance(devices, str) and "," in devices:
        return len([part for part in devices.split(",") if part.strip()])
    if devices in (-1, "-1"):
        return max(1, torch.cuda.device_count())
    return int(devices) if str(devices).isdigit() else 1


def _folder(save_dir: str | Path | None, *, resumes: bool) -> Path | None:
    if save_dir is None:
        return None
    folder = Path(save_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"save_dir={str(folder)!r} is a file; a folder is needed.")
    found = checkpoint_in(folder)
    if found is not None and not resumes:
        raise ValueError(
            f"save_dir={str(folder)!r} holds the checkpoint {found.name} of an earlier run: continue it with "
            f"resume_from={str(found)!r}, or give another folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _verify_save_steps(save_steps: int | None, validate_every: int, save_dir: str | Path | None) -> None:
    if save_steps is None:
        return
    if save_dir is None:
        raise ValueError(f"save_steps={save_steps} writes checkpoints; give a save_dir.")
    # only between two validations is a run at a point that it can be continued from as if nothing had happened
    if save_steps < 1 or save_steps % validate_every:
        raise ValueError(
            f"save_steps={save_steps} must be a multiple of validate_every, which is {validate_every} in this run."
        )


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What a call of ``train`` amounts to.

    Attributes
    ----------
    plan
        Optimiser options.
    n_epochs, steps_per_epoch
        Validations, and minibatches between them.
    batch_size
        Sets a minibatch.
    accumulate
        Minibatches an optimizer step.
    monitor, patience
        What is kept best, and when to stop early.
    save_steps
        Steps between checkpoints that are kept beside the best.
    folder, resume_from
        Where checkpoints go, and which one the run goes on from.
    resume_step
        Its optimizer step.
    setting
        What decides the course of the run beside the plan, in plain values: a resumed run must have the same.
    options
        What is left for Lightning's trainer.
    device
        Where the network runs.
    """

    plan: PlanConfig
    n_epochs: int
    steps_per_epoch: int
    batch_size: int
    accumulate: int
    monitor: str
    patience: int | None
    save_steps: int | None
    folder: Path | None
    resume_from: Path | None
    resume_step: int | None
    setting: dict[str, Any]
    options: dict[str, Any]
    device: torch.device
    _callbacks: list[Any] = field(default_factory=list)

    @classmethod
    def prepare(  # noqa: PLR0913
        cls,
        *,
        default_lr: float,
        max_steps: int | None,
        batch_size: int | None,
        validate_every: int | None,
        plan_options: Mapping[str, Any],
        monitor: str,
        monitored: Sequence[str] = (),
        patience: int | None,
        save_steps: int | None = None,
        save_dir: str | Path | None,
        resume_from: str | Path | None,
        trainer_options: Mapping[str, Any],
        setting: Mapping[str, Any],
    ) -> TrainingRun:
        """Check every option and resolve the defaults. Nothing is written but the folder.

        Raises
        ------
        ValueError
            If an option is unknown or out of range.
        FileNotFoundError
            If the checkpoint to resume from does not exist.
        """
        trainer_options = _without_echo(trainer_options)
        _verify_trainer_options(trainer_options)
        if not monitor.startswith(_VALIDATION):
            raise ValueError(
                f"monitor={monitor!r} must be a validation metric: 'validation_loss', one of its terms, or a score, "
                f"{', '.join(map(repr, VALIDATION_SCORES))}."
            )
        if monitor in VALIDATION_SCORES and setting.get("representation") == "embedding":
            raise ValueError(
                f"monitor={monitor!r} compares changes of expression, and representation='embedding' has control cells "
                "as embeddings only; monitor 'validation_loss'."
            )
        # callbacks of the user's may compute more
        if monitored and monitor not in monitored and not trainer_options.get("callbacks"):
            raise ValueError(
                f"monitor={monitor!r} is not computed in this run{_nearest_score(monitor, monitored)}; there are "
                f"{list(monitored)}."
            )
        steps = _MAX_STEPS if max_steps is None else max_steps
        options = {k: v for k, v in plan_options.items() if not (k == "lr" and v is None)}
        options.setdefault("lr", default_lr)
        if "max_steps" in options:
            raise ValueError("plan_kwargs does not take max_steps; say it with train(max_steps=...).")
        plan = PlanConfig.from_kwargs({"max_steps": steps, **options})
        for name, value in (("validate_every", validate_every), ("patience", patience), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value!r} must be 1 or more.")
        device = _device(trainer_options)
        precision = resolve_precision(trainer_options.get("precision", "auto"), device)
        if trainer_options.get("strategy") == SHARDED and precision.startswith("16"):
            raise ValueError(
                f"precision={precision!r} checks gradients as a whole, which strategy={SHARDED!r} has in no process; "
                "give precision='bf16-mixed', or strategy='ddp'."
            )
        between = validate_every or max(1, -(-steps // _N_VALIDATIONS))
        _verify_save_steps(save_steps, between, save_dir)
        accumulate = int(trainer_options.get("accumulate_grad_batches", 1))
        batch_size = batch_size or _BATCH_SIZE
        setting = {
            **setting,
            "batch_size": batch_size,
            "validate_every": between,
            "accumulate_grad_batches": accumulate,
            "precision": precision,
            "monitor": monitor,
        }
        resumed = _resumed(resume_from, plan, setting)
        return cls(
            plan=plan,
            n_epochs=-(-steps // between),
            steps_per_epoch=between * accumulate,
            batch_size=batch_size,
            accumulate=accumulate,
            monitor=monitor,
            patience=patience,
            save_steps=save_steps,
            folder=_folder(save_dir, resumes=resume_from is not None),
            resume_from=None if resume_from is None else Path(resume_from),
            resume_step=resumed,
            setting=setting,
            options={**trainer_options, "precision": precision},
            device=device,
        )

    def datamodule(
        self,
        dataset: CellSetDataset,
        split: AssignedSplit,
        row_of_label: np.ndarray,
        set_size: int,
    ) -> CellSetDataModule:
        """Loaders of this run.

        Raises
        ------
        ValueError
            If the run is to stop early and nothing validates.
        """
        if not len(split.validation):
            for name, value in (("patience", self.patience), ("monitor", self.score)):
                if value is not None:
                    raise ValueError(f"{name}={value} needs validation cells, and {split.split} leaves none.")
            warnings.warn(
                f"no cell validates with {split.split}: the model will keep the last weights, not the best.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )
        config = LoaderConfig(
            set_size=set_size, batch_size=self.batch_size, steps_per_epoch=self.steps_per_epoch, seed=self.plan.seed
        )
        return CellSetDataModule(dataset, split, row_of_label, config)

    @property
    def score(self) -> str | None:
        """The score that decides what is best; None if a loss does."""
        return self.monitor if self.monitor in VALIDATION_SCORES else None

    @property
    def full_precision(self) -> bool:
        """Whether everything is computed in float32."""
        return str(self.options["precision"]).startswith(("32", "64"))

    def compiles(self, module: TahoeSTModule, choice: bool | str) -> bool:
        """Whether the network is compiled.

        Raises
        ------
        ValueError
            If the choice is neither a truth value nor ``'auto'``.
        """
        if choice not in (True, False, "auto"):
            raise ValueError(f"compile={choice!r} must be True, False or 'auto'.")
        if choice != "auto":
            return bool(choice)
        return compiling_pays(
            self.device,
            n_parameters=sum(p.numel() for p in module.parameters()),
            cells_per_step=self.batch_size * self.setting["set_size"],
            n_steps=self.plan.max_steps * self.accumulate,
        )

    def trainer_kwargs(
        self,
        *,
        logger: str | Logger | Sequence[Logger] | None,
        progress: bool,
        conditions: Sequence[Condition],
        genes: np.ndarray,
    ) -> dict[str, Any]:
        """Arguments of scvi-tools' trainer."""
        mode: Literal["min", "max"] = "min" if self.score is None else "max"
        best = KeepBest(monitor=self.monitor, mode=mode, folder=self.folder, save_steps=self.save_steps)
        bar = StepProgress(
            max_steps=self.plan.max_steps, sets_per_step=self.batch_size * self.accumulate, show=progress
        )
        # throughput is logged before the best is written, so that best.ckpt's step has a complete line
        callbacks: list[Callback] = [bar, best]
        if self.score is not None:
            callbacks.insert(0, ValidationScores(conditions, genes))
        if self.patience is not None:
            stopping = {"monitor": self.monitor, "mode": mode, "patience": self.patience}
            callbacks.append(pl.callbacks.EarlyStopping(**stopping, check_on_train_epoch_end=True))
        self._callbacks[:] = callbacks
        return {
            "benchmark": False,
            # each process takes its own minibatches from the sampler
            "use_distributed_sampler": False,
            **self.options,
            **self._strategy(),
            "max_steps": self.plan.max_steps,
            "callbacks": [*callbacks, *self.options.get("callbacks", [])],
            "logger": self._loggers(logger),
            "log_every_n_steps": max(1, self.plan.log_every),
            "check_val_every_n_epoch": 1,
            "num_sanity_val_steps": -1,  # validates what training starts from
            "enable_progress_bar": False,
            "simple_progress_bar": False,
            "ckpt_path": self.resume_from,
        }

    @property
    def strategy(self) -> Any:
        """How several processes train together; the fastest that the precision allows, unless the user says."""
        given = self.options.get("strategy", "auto")
        several = self.options.get("num_nodes", 1) > 1 or _n_devices(self.options.get("devices", "auto")) > 1
        if given == SHARDED and not several:
            return "auto"  # there is nobody to share with
        if given != "auto" or not several:
            return given
        return "ddp" if str(self.options["precision"]).startswith("16") else SHARDED

    def _strategy(self) -> dict[str, Any]:
        """Ours; or Lightning's data-parallel one, with gradients that are not copied but live where they are exchanged.

        In pieces of about one block of the published network (torch's default: 25 MB).
        """
        if self.strategy == "ddp":
            return {"strategy": pl.strategies.DDPStrategy(gradient_as_bucket_view=True, bucket_cap_mb=100)}
        return {"strategy": ShardedOptimizerStrategy()} if self.strategy == SHARDED else {}

    def _loggers(self, chosen: str | Logger | Sequence[Logger] | None) -> list[Logger]:
        path = self.folder / "metrics.csv" if self.folder is not None and chosen is not None else None
        history = MetricsHistory(path, resume_step=self.resume_step)
        if chosen is None or chosen == "csv":
            return [history]
        if isinstance(chosen, str):
            chosen = self._named_logger(chosen)
        return [history, *(chosen if isinstance(chosen, list | tuple) else [chosen])]  # type: ignore[list-item]

    def _named_logger(self, name: str) -> Logger:
        if name not in ("tensorboard", "wandb"):
            raise ValueError(
                f"logger={name!r} is unknown; allowed are 'csv', 'tensorboard', 'wandb', None or a logger."
            )
        folder = self.folder
        if folder is None:
            raise ValueError(f"logger={name!r} writes files; give a save_dir.")
        if name == "wandb":
            require("wandb", "wandb")
            return pl.loggers.WandbLogger(save_dir=folder, project="scvi-tahoe")
        require("tensorboard", "tensorboard")
        return pl.loggers.TensorBoardLogger(folder, name="tensorboard")

    def memory(self, module: TahoeSTModule, pretrained: Sequence[str], dataset: CellSetDataset) -> MemoryPlan:
        """What this run will take of the device's memory."""
        plan, held = self.plan, set(pretrained)
        sizes = {n: p.numel() for n, p in module.named_parameters()}
        parts = resolve_recipe(plan.recipe, freeze_backbone=plan.freeze_backbone, max_steps=plan.max_steps)
        n_blocks = module.config.n_layers
        never = {part for part, schedule in parts.items() if schedule.unfreeze_at is None}
        frozen = sum(n for name, n in sizes.items() if part_in_run(name, held, n_blocks) in never)
        return plan_memory(
            module.config,
            n_parameters=sum(sizes.values()),
            averaged=plan.ema is not None,
            shared=self.strategy == SHARDED,
            n_trainable=sum(sizes.values()) - frozen,
            cells_per_step=self.batch_size * self.setting["set_size"],
            in_16_bits=not self.full_precision,
            expression=sum(store.nbytes for store in dataset.stores if isinstance(store, DeviceStore)),
            device=self.device,
        )

    def announce(
        self,
        module: TahoeSTModule,
        pretrained: list[str],
        datamodule: CellSetDataModule,
        *,
        compiles: bool,
        progress: bool,
    ) -> None:
        """Say what is about to happen, before anything costly."""
        dataset, audit = datamodule.dataset, datamodule.split.audit()
        memory = self.memory(module, pretrained, dataset)
        plan = TahoeTrainingPlan(module, self.plan, pretrained)
        if progress:
            tqdm.write(plan.describe(), file=sys.stderr)
            if self.device.type == "cpu" and self.options.get("accelerator", "auto") == "auto":
                _say_that_there_is_no_gpu()
        sets = f"{self.batch_size} sets of {self.setting['set_size']} cells a step"
        logger.info(f"{self.plan.max_steps} steps, {self.n_epochs} validations; cells of each part:\n{audit}")
        logger.info(f"expression: {dataset.cells.description}")
        compiled = "compiled" if compiles else "not compiled"
        strategy = f", strategy {self.strategy}" if self.strategy in ("ddp", SHARDED) else ""
        logger.info(
            f"{self.device}{strategy}, precision {self.options['precision']}, {compiled}, {sets}; memory {memory}"
        )
        if not memory.fits:
            logger.warning(
                f"the device may run out of memory: {memory}; lower batch_size (now {self.batch_size}), or keep "
                "expression in main memory with store='host'."
            )

    def explained(self) -> AbstractContextManager[None]:
        """Say which argument to lower when memory runs out."""
        return explained_out_of_memory(batch_size=self.batch_size, set_size=self.setting["set_size"], doing="training")

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Say how to go on when the user interrupts; checkpoints are complete at every moment."""
        handler = signal.getsignal(signal.SIGINT)
        try:
            with (
                quiet_lightning(),
                self.explained(),
            ):
                yield
        except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second, and then ignores Ctrl-C
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, handler)
            saved = None if self.folder is None else checkpoint_in(self.folder)
            if saved is None:
                hint = "nothing was saved; with save_dir=... a run can be continued"
            else:
                hint = f"continue with model.train(..., save_dir={str(self.folder)!r}, resume_from={str(saved)!r})"
            raise KeyboardInterrupt(f"training was interrupted: {hint}") from None

    def outcome(
        self, trainer: Trainer, previous: Mapping[str, pd.DataFrame]
    ) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
        """History of all trainings, and options and outcome of this one as plain values."""
        history = next(log for log in trainer.loggers if isinstance(log, MetricsHistory))
        best = next(c for c in self._callbacks if isinstance(c, KeepBest))
        config = {
            "plan": self.plan.to_kwargs(),
            "batch_size": self.batch_size,
            "set_size": self.setting["set_size"],
            "accumulate_grad_batches": self.accumulate,
            "monitor": self.monitor,
            "best_step": best.best_step,
            "best_value": best.best_value,
            "split": self.setting["split"],
        }
        if best.best_step is not None:
            where = "" if self.folder is None else f", {self.folder / BEST}"
            logger.info(f"kept the best of {self.n_epochs} validations: {self.monitor} {best.best_value:.4g} at step "
                        f"{best.best_step}{where}")  # fmt: skip
        if best.best_step == 0:
            # of a prior a network from scratch changes nothing, a trained one does
            alone = self.setting["prior"] != "none" and not self.setting.get("n_pretrained")
            start = "the prior's" if alone else "those of the weights that training started from"
            logger.warning(f"no step of training improved {self.monitor}: predictions are {start}.")
        return _joined(previous, history.history), config


@cache
def _say_that_there_is_no_gpu() -> None:
    """Once in a process."""
    tqdm.write("No GPU was found: training and prediction run on the CPU, which works and is slower.", file=sys.stderr)


def _resumed(resume_from: str | Path | None, plan: PlanConfig, setting: Mapping[str, Any]) -> int | None:
    """Step of the checkpoint to resume from, after checking that the run is the same."""
    if resume_from is None:
        return None
    path = Path(resume_from)
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
            f"a resumed run goes on with the options it started with, and these differ: {listed}. To train with other "
            "options start anew from the weights, TahoeST.load(...).train(...)."
        )
    if step >= plan.max_steps:
        raise ValueError(
            f"{path.name} is at step {step}, the end of the run of {plan.max_steps} steps: nothing is left."
        )
    return step


def _joined(previous: Mapping[str, pd.DataFrame], new: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """History of several trainings, the steps of a later one counted on from the end of the one before."""
    if not previous:
        return dict(new)
    offset = 1 + max(int(frame.index.max()) for frame in previous.values())
    shifted = {k: frame.set_axis(frame.index + offset).rename_axis("step") for k, frame in new.items()}
    return {
        k: pd.concat([f for f in (previous.get(k), shifted.get(k)) if f is not None])
        for k in dict.fromkeys([*previous, *shifted])
    }
