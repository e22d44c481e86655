"""One training run: its options resolved before anything costly, put into Lightning's terms, and finished cleanly."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import pandas as pd
from tqdm.auto import tqdm

from scvi_tahoe._compat import quiet_lightning
from scvi_tahoe._devices import explained_out_of_memory, n_devices_asked, resolve_precision, training_device
from scvi_tahoe._memory import verify_memory
from scvi_tahoe._messages import warn
from scvi_tahoe._threads import fitting_threads, product_rate
from scvi_tahoe.data import (
    CellSetDataModule,
    DeviceStore,
    LoaderConfig,
    Split,
    combines_measured_components,
    default_split,
)
from scvi_tahoe.files import locked, verify_space
from scvi_tahoe.nn import have_triton, step_operations
from scvi_tahoe.response import judging_conditions, predictable_labels
from scvi_tahoe.training._acceleration import compiling_pays
from scvi_tahoe.training._adapters import resolve_adapters
from scvi_tahoe.training._checkpoints import BEST, LAST, KeepBest, checkpoint_in
from scvi_tahoe.training._gain import PATIENCE, HeldOutGain
from scvi_tahoe.training._plan import TahoeTrainingPlan
from scvi_tahoe.training._recipe import never_trained, resolve_recipe
from scvi_tahoe.training._reports import (
    VALIDATION_SCORES,
    MemoryPlan,
    MetricsHistory,
    StepProgress,
    ValidationScores,
    computed_scores,
    plan_memory,
)
from scvi_tahoe.training._sharded_optimizer import SHARDED, ShardedOptimizerStrategy
from scvi_tahoe.training._sharded_weights import FULLY_SHARDED, ShardedWeightsStrategy, verify_sharding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy as np
    import torch
    from lightning.pytorch import Callback
    from scvi.train import Trainer

    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.data import AssignedSplit, CellSetDataset, Condition, ConditionIndex, DataSpec
    from scvi_tahoe.response import Prior
    from scvi_tahoe.training._adapters import Adapters
    from scvi_tahoe.training._options import TrainOptions
    from scvi_tahoe.training._recipe import PlanConfig


logger = logging.getLogger(__name__)

_MAX_STEPS, _BATCH_SIZE, _N_VALIDATIONS = 1_000, 8, 20
_LR_SCRATCH, _LR_PRETRAINED, _LR_ON_PRIOR = 1e-3, 2e-4, 1e-4


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What a call of :meth:`scvi_tahoe.TahoeST.train` amounts to."""

    #: As they were given.
    options: TrainOptions
    #: How the run is optimised.
    plan: PlanConfig
    #: Split into training, validation and test cells.
    split: Split
    #: Optimizer steps between validations.
    validate_every: int
    #: Sets a minibatch, cells a set, minibatches an optimizer step.
    batch_size: int
    set_size: int
    accumulate: int
    #: Where checkpoints go. If None, nothing is written.
    folder: Path | None
    #: Optimizer step of the checkpoint that the run continues. If None, it starts anew.
    resume_step: int | None
    #: What decides the course of the run in addition to the plan, in plain values: a resumed run must have the same.
    setting: dict[str, Any]
    #: Options of Lightning's trainer.
    trainer_options: dict[str, Any]
    #: Where the network runs.
    device: torch.device

    @classmethod
    def resolve(
        cls,
        options: TrainOptions,
        *,
        spec: DataSpec,
        index: ConditionIndex,
        module: TahoeSTModule,
        prior: Prior,
        pretrained: Sequence[str],
        adapters: Adapters | None,
    ) -> TrainingRun:
        """Check every option and fill in the defaults; nothing is written.

        Raises
        ------
        ValueError
            If an option is unknown, out of range or without effect.
        FileNotFoundError
            If the checkpoint to resume from does not exist.
        """
        split = options.split
        if split is None:
            known = predictable_labels(index, spec.keys, spec.table) if prior == "response" else ()
            split = default_split(index, with_prior=prior != "none", predictable=known, seed=options.seed)
        if not isinstance(split, Split):
            raise TypeError(
                f"split={split!r} must be one of the splits of scvi_tahoe, e.g. FractionSplit(validation=0.1)."
            )
        trainer_options = options.trainer_options()
        options.verify_monitor(computed_scores(module, spec.representation), embeds=spec.representation == "embedding")
        steps = _MAX_STEPS if options.max_steps is None else options.max_steps
        strong = prior != "none" and (
            index.perturbations_recur or combines_measured_components(index, spec.keys.parser)
        )
        # with a strong prior a fast network would learn noise
        default_lr = _LR_ON_PRIOR if strong else _LR_PRETRAINED if pretrained else _LR_SCRATCH
        plan = options.plan(max_steps=steps, default_lr=default_lr)
        validate_every = options.validate_every or max(1, -(-steps // _N_VALIDATIONS))
        options.verify_numbers(validate_every=validate_every)
        options.verify_logger()
        device = training_device(trainer_options)
        precision = resolve_precision(options.precision, device)
        strategy = trainer_options.get("strategy")
        if strategy in (SHARDED, FULLY_SHARDED) and precision.startswith("16"):
            raise ValueError(
                f"precision={precision!r} checks gradients as a whole, which strategy={strategy!r} has in no process; "
                "give precision='bf16-mixed', or strategy='ddp'."
            )
        if strategy == FULLY_SHARDED:
            verify_sharding(ema=plan.ema, recipe=plan.recipe, compiles=options.compile)
        accumulate = int(trainer_options.get("accumulate_grad_batches", 1))
        batch_size = options.batch_size or _BATCH_SIZE
        setting = {
            "set_size": spec.set_size, "representation": spec.representation, "prior": prior,
            "objective": module.objective.config.to_dict(), "split": split.to_dict(),
            "n_cells": len(index.is_control), "n_pretrained": len(pretrained), "batch_size": batch_size,
            "validate_every": validate_every, "accumulate_grad_batches": accumulate, "precision": precision,
            "monitor": options.monitor,
        }  # fmt: skip
        resume_step = options.resumed_step(plan, setting)
        folder = options.folder()
        plan.reject_ineffective(module, pretrained)
        resolve_adapters(module, plan, adapters=adapters, pretrained=pretrained)
        return cls(
            options=options, plan=plan, split=split, validate_every=validate_every, batch_size=batch_size,
            set_size=spec.set_size, accumulate=accumulate, folder=folder, resume_step=resume_step, setting=setting,
            trainer_options={**trainer_options, "precision": precision}, device=device,
        )  # fmt: skip

    @property
    def n_epochs(self) -> int:
        """Number of validations."""
        return -(-self.plan.max_steps // self.validate_every)

    @property
    def score(self) -> str | None:
        """The score that decides what is best, unless a loss does."""
        return self.options.monitor if self.options.monitor in VALIDATION_SCORES else None

    @property
    def full_precision(self) -> bool:
        """Whether everything is computed in float32."""
        return str(self.trainer_options["precision"]).startswith(("32", "64"))

    def datamodule(self, dataset: CellSetDataset, split: AssignedSplit, row_of_label: np.ndarray) -> CellSetDataModule:
        """Make the loaders of this run; a ValueError if nothing validates and the run needs it."""
        if not len(split.validation):
            for name, value in (("patience", self.options.patience), ("monitor", self.score)):
                if value is not None:
                    raise ValueError(f"{name}={value} needs validation cells, and {split.split} leaves none.")
            warn(
                f"no cell validates with {split.split}: the model will keep the last weights, not the best. "
                "Name some in validation=..., or leave split out."
            )
        config = LoaderConfig(
            set_size=self.set_size, batch_size=self.batch_size, steps_per_epoch=self.validate_every * self.accumulate,
            seed=self.plan.seed,
        )  # fmt: skip
        return CellSetDataModule(dataset, split, row_of_label, config)

    @property
    def fuses(self) -> bool:
        """Whether GPUs hold all weights and compute in bfloat16, where operations are fused without compiling."""
        whole = self.strategy in ("auto", SHARDED) and self.device.type == "cuda"
        return whole and self.trainer_options["precision"] == "bf16-mixed" and have_triton()

    @property
    def records_steps(self) -> bool:
        """Whether steps are recorded once and replayed as CUDA graphs; a ValueError if that is asked for in vain."""
        can = self.fuses and self.accumulate == 1 and self.plan.ema is None
        if self.options.compile == "record" and not can:
            raise ValueError(
                "compile='record' needs a GPU, precision='bf16-mixed', on several GPUs strategy='ddp_sharded', and "
                "neither ema nor accumulate_grad_batches; compile='auto' works everywhere."
            )
        return can and self.options.compile in ("auto", "record")

    def compiles(self, module: TahoeSTModule) -> bool:
        """Return whether the network is compiled."""
        if self.options.compile != "auto":
            return self.options.compile is True
        if self.fuses or self.shards_weights:
            return False  # which compiling does not improve on, or cannot follow
        return compiling_pays(
            self.device,
            n_parameters=sum(p.numel() for p in module.parameters()),
            cells_per_step=self.batch_size * self.set_size,
            n_steps=self.plan.max_steps * self.accumulate,
        )

    def threads(self, module: TahoeSTModule) -> AbstractContextManager[int]:
        """Let torch use the threads that suit this run."""
        return fitting_threads(
            self.device, n_cells=self.batch_size * self.set_size, hidden=module.config.hidden,
            operations=step_operations(module.network, n_sets=self.batch_size, set_size=self.set_size),
        )  # fmt: skip

    def held_out_gain(
        self, dataset: CellSetDataset, split: AssignedSplit, pretrained: Sequence[str]
    ) -> HeldOutGain | None:
        """Return what follows the network's gain on held-out conditions, where a response model and such are."""
        if dataset.start is None or not len(judging_conditions(split)):
            return None
        plan = self.plan
        parts = resolve_recipe(plan.recipe, freeze_backbone=plan.freeze_backbone, max_steps=plan.max_steps)
        begin = max(part.unfreeze_at or 0 for part in parts.values()) if pretrained else 0
        patience = PATIENCE if self.options.patience is None else None
        return HeldOutGain(dataset.start.means_CG, patience=patience, begin=begin)

    def trainer_kwargs(
        self, conditions: Sequence[Condition], genes: np.ndarray, gain: HeldOutGain | None = None
    ) -> dict[str, Any]:
        """Return the arguments of scvi-tools' trainer."""
        options = self.options
        mode: Literal["min", "max"] = "min" if self.score is None else "max"
        best = KeepBest(monitor=options.monitor, mode=mode, folder=self.folder, save_steps=options.save_steps)
        bar = StepProgress(
            max_steps=self.plan.max_steps, batch_size=self.batch_size, accumulate=self.accumulate,
            set_size=self.set_size, show=options.progress,
            product_rate=product_rate(self.device, str(self.trainer_options["precision"])),
        )  # fmt: skip
        # throughput is logged before the best is written, so that best.ckpt's step has a complete line
        callbacks: list[Callback] = [bar, best] if gain is None else [gain, bar, best]
        if self.score is not None:
            callbacks.insert(0, ValidationScores(conditions, genes))
        if options.patience is not None:
            stopping = {"monitor": options.monitor, "mode": mode, "patience": options.patience}
            callbacks.append(pl.callbacks.EarlyStopping(**stopping, check_on_train_epoch_end=True))
        path = None if self.folder is None or options.logger is None else self.folder / "metrics.csv"
        # gradients are not copied but live where they are exchanged, in pieces of about one block of the published
        # network (torch's default: 25 MB)
        ddp = partial(pl.strategies.DDPStrategy, gradient_as_bucket_view=True, bucket_cap_mb=100)
        sharded = {SHARDED: ShardedOptimizerStrategy, FULLY_SHARDED: ShardedWeightsStrategy}
        strategies: dict[Any, Callable[[], Any]] = {"ddp": ddp, **sharded}
        return {
            "max_epochs": self.n_epochs,
            "benchmark": False,
            # each process takes its own minibatches from the sampler
            "use_distributed_sampler": False,
            **self.trainer_options,
            **({"strategy": strategies[self.strategy]()} if self.strategy in strategies else {}),
            "max_steps": self.plan.max_steps,
            "callbacks": [*callbacks, *self.trainer_options.get("callbacks", [])],
            "logger": [MetricsHistory(path, resume_step=self.resume_step), *options.loggers()],
            "log_every_n_steps": max(1, self.plan.log_every),
            "check_val_every_n_epoch": 1,
            "num_sanity_val_steps": -1,  # validates what training starts from
            "enable_progress_bar": False,
            "simple_progress_bar": False,
            "ckpt_path": options.resume_from,
        }

    @property
    def strategy(self) -> Any:
        """How several processes train together; the fastest that the precision allows, unless the user says."""
        options = self.trainer_options
        given = options.get("strategy", "auto")
        if self.n_processes <= 1:
            return "auto" if given in (SHARDED, FULLY_SHARDED) else given  # there is nobody to share with
        if given != "auto":
            return given
        return "ddp" if str(options["precision"]).startswith("16") else SHARDED

    @property
    def n_processes(self) -> int:
        """Processes that train together."""
        options = self.trainer_options
        return int(options.get("num_nodes", 1)) * n_devices_asked(options.get("devices", "auto"))

    @property
    def shards_weights(self) -> bool:
        """Whether each process keeps its shard of the weights only."""
        return bool(self.strategy == FULLY_SHARDED)

    def memory(self, module: TahoeSTModule, pretrained: Sequence[str], dataset: CellSetDataset) -> MemoryPlan:
        """Estimate what this run takes of the device's memory."""
        plan = self.plan
        sizes = {n: p.numel() for n, p in module.named_parameters()}
        parts = resolve_recipe(plan.recipe, freeze_backbone=plan.freeze_backbone, max_steps=plan.max_steps)
        frozen = sum(sizes[name] for name in never_trained(sizes, parts, set(pretrained), module.config.n_layers))
        return plan_memory(
            module.config,
            n_parameters=sum(sizes.values()),
            averaged=plan.ema is not None,
            shared=self.strategy == SHARDED,
            shards=self.n_processes if self.shards_weights else 1,
            optimizer_shards=self.n_processes if self.strategy == SHARDED else 1,
            n_trainable=sum(sizes.values()) - frozen,
            cells_per_step=self.batch_size * self.set_size,
            in_16_bits=not self.full_precision,
            expression=sum(store.nbytes for store in dataset.stores if isinstance(store, DeviceStore)),
            device=self.device,
        )

    def announce(self, module: TahoeSTModule, pretrained: list[str], datamodule: CellSetDataModule) -> None:
        """Log what is about to happen, before anything costly."""
        dataset, audit = datamodule.dataset, datamodule.split.audit()
        memory = self.memory(module, pretrained, dataset)
        plan = TahoeTrainingPlan(module, self.plan, pretrained)
        if self.options.progress:
            tqdm.write(plan.describe(), file=sys.stderr)
            if self.device.type == "cpu" and self.trainer_options.get("accelerator", "auto") == "auto":
                _say_that_there_is_no_gpu()
        sets = f"{self.batch_size} sets of {self.set_size} cells per step"
        logger.info(f"{self.plan.max_steps} steps, {self.n_epochs} validations; cells of each part:\n{audit}")
        logger.info(f"expression: {dataset.cells.description}")
        if self.setting["representation"] == "embedding":
            logger.warning(_mismatch(module))
        compiled = "compiled" if self.compiles(module) else "recorded" if self.records_steps else "not compiled"
        strategy = f", strategy {self.strategy}" if self.strategy in ("ddp", SHARDED, FULLY_SHARDED) else ""
        precision = self.trainer_options["precision"]
        logger.info(f"{self.device}{strategy}, precision {precision}, {compiled}, {sets}; memory {memory}")
        if self.device.type == "cpu":
            remedy = f"Lower batch_size, or set_size (now {self.set_size})."
            verify_memory("sets in a minibatch", self.batch_size, memory.activations / self.batch_size, remedy)
        if not memory.fits:
            logger.warning(
                f"the device may run out of memory: {memory}; lower batch_size (now {self.batch_size}), or keep "
                "expression in main memory with store='host'."
            )

    def explained(self) -> AbstractContextManager[None]:
        """Name the argument to lower if memory runs out."""
        return explained_out_of_memory(batch_size=self.batch_size, set_size=self.set_size, doing="training")

    @contextmanager
    def fitting(self, module: TahoeSTModule) -> Iterator[None]:
        """Take the folder; if the user interrupts, say how to continue. Checkpoints are complete at every moment."""
        owned: AbstractContextManager[None] = nullcontext()
        if self.folder is not None:
            verify_space(self.folder / LAST, 2 * sum(p.nbytes for p in module.parameters()), "two checkpoints")
            owned = locked(self.folder) if _is_first_process() else owned
        handler = signal.getsignal(signal.SIGINT)
        try:
            with owned, quiet_lightning(), self.explained():
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
        """Return the history of all trainings, and options and outcome of this one as plain values."""
        history = next(log for log in trainer.loggers if isinstance(log, MetricsHistory))
        best = next(c for c in trainer.callbacks if isinstance(c, KeepBest))
        config = {
            "plan": self.plan.to_kwargs(),
            "batch_size": self.batch_size,
            "set_size": self.set_size,
            "accumulate_grad_batches": self.accumulate,
            "monitor": self.options.monitor,
            "best_step": best.best_step,
            "best_value": best.best_value,
            "split": self.setting["split"],
        }
        if (decoder := history.history.get("validation_decoder")) is not None:
            until = decoder.sort_index().loc[: decoder.index.max() if best.best_step is None else best.best_step]
            config["decoder_error"] = None if until.empty else float(until.to_numpy()[-1, 0])
        if best.best_step is not None:
            where = "" if self.folder is None else f", {self.folder / BEST}"
            n_validations = -(-trainer.global_step // self.validate_every)
            logger.info(
                f"kept the best of {n_validations} validations: {self.options.monitor} {best.best_value:.4g} at step "
                f"{best.best_step}{where}"
            )
        bar = next(c for c in trainer.callbacks if isinstance(c, StepProgress))
        if (throughput := bar.summary()) is not None:
            logger.info(throughput)
        if best.best_step == 0:
            # of a prior a network from scratch changes nothing, a trained one does
            alone = self.setting["prior"] != "none" and not self.setting.get("n_pretrained")
            start = "the prior's" if alone else "those of the weights that training started from"
            logger.warning(f"no step of training improved {self.options.monitor}: predictions are {start}.")
        return _joined(previous, history.history), config


def _mismatch(module: TahoeSTModule) -> str:
    """Say what the loss of a model of cell embeddings trains, and what of it will be scored."""
    if module.config.gene_decoder is None:
        return "the loss trains cell embeddings, and this network has no gene decoder: no genes can be scored."
    weight = f"weight {module.objective.decoder_weight:g}"
    beside = f"a gene decoder beside them ({weight})" if module.objective.decoder_weight else f"no decoder ({weight})"
    return (
        f"scores are of genes, and the loss trains cell embeddings and {beside}: watch validation_decoder, or train in "
        "the space that is scored with representation='expression' or 'expression+embedding'."
    )


def _is_first_process() -> bool:
    """Return whether this process is the one of its run that writes."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


@cache
def _say_that_there_is_no_gpu() -> None:
    """Warn once in a process."""
    tqdm.write("No GPU was found: training and prediction run on the CPU, which works and is slower.", file=sys.stderr)


def _joined(previous: Mapping[str, pd.DataFrame], new: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Join the history of several trainings, counting steps on from the end of the one before."""
    if not previous:
        return dict(new)
    offset = 1 + max(int(frame.index.max()) for frame in previous.values())
    shifted = {k: frame.set_axis(frame.index + offset).rename_axis("step") for k, frame in new.items()}
    return {
        k: pd.concat([f for f in (previous.get(k), shifted.get(k)) if f is not None])
        for k in dict.fromkeys([*previous, *shifted])
    }
