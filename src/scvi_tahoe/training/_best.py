"""Weights that are kept: their moving average, and those of the best validation; never the last by accident."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import Callback
from torch.optim.swa_utils import get_ema_multi_avg_fn

from scvi_tahoe.files import atomic_write, remove_partial

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lightning.pytorch import Trainer
    from torch import Tensor, nn


logger = logging.getLogger(__name__)

BEST, LAST = "best.ckpt", "last.ckpt"


def checkpoint_in(folder: Path) -> Path | None:
    """Return a checkpoint that an earlier run left in a folder, the last one of several, or None."""
    named = [folder / name for name in (LAST, BEST) if (folder / name).exists()]
    return next(iter([*named, *sorted(folder.glob("step=*.ckpt"), reverse=True)]), None)


class KeepBest(Callback):
    """Keeps the weights of the best validation, and gives them back at the end.

    Parameters
    ----------
    monitor
        Name of the metric.
    mode
        Whether less (``'min'``) or more (``'max'``) of it is better.
    folder
        Where ``best.ckpt`` and ``last.ckpt`` are written after validations, complete with optimizer, schedule and
        step. If None, the best is kept in memory and nothing is written.
    save_steps
        Also keep a checkpoint every this many steps (validations lie between them), named ``step=000400.ckpt``; None
        for none.
    """

    def __init__(
        self,
        *,
        monitor: str = "validation_loss",
        mode: Literal["min", "max"] = "min",
        folder: Path | None = None,
        save_steps: int | None = None,
    ) -> None:
        self.monitor = monitor
        self.mode = mode
        self.folder = folder
        self.save_steps = save_steps
        self.best_value = math.inf if mode == "min" else -math.inf
        self.best_step: int | None = None
        self._best_weights: dict[str, Tensor] | None = None

    def _is_better(self, value: float) -> bool:
        return value < self.best_value if self.mode == "min" else value > self.best_value

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Remove half-written checkpoints that a killed run left."""
        if self.folder is not None and trainer.is_global_zero:
            remove_partial(self.folder)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Keep the weights that training starts from, the first that may be the best."""
        value = trainer.callback_metrics.get(self.monitor)
        if value is not None and trainer.global_step == 0 and self.best_step is None:
            self.best_value, self.best_step = float(value), 0
            self._best_weights = _in_main_memory(pl_module.kept_state(), {})
            if self.folder is not None:
                self._write(trainer, BEST)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Let the last step be validated too, where it does not end a validation interval."""
        if trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Compare the validation that just ended, and write checkpoints."""
        value = trainer.callback_metrics.get(self.monitor)
        validated = [name for name in trainer.callback_metrics if name.startswith("validation_")]
        if value is None and validated:
            raise ValueError(f"monitor={self.monitor!r} is not computed in this run; there are {sorted(validated)}.")
        improved = value is not None and self._is_better(float(value))
        if improved:
            self.best_value, self.best_step = float(value), trainer.global_step  # type: ignore[arg-type]
            self._best_weights = _in_main_memory(pl_module.kept_state(), self._best_weights or {})
        for log in trainer.loggers:
            log.save()
        if self.folder is None:
            return
        # the best first: whenever the run is killed, best.ckpt is at least as far as last.ckpt knows
        if improved:
            self._write(trainer, BEST)
        self._write(trainer, LAST)
        if self.save_steps and trainer.global_step % self.save_steps == 0:
            self._write(trainer, f"step={trainer.global_step:06d}.ckpt")

    def _write(self, trainer: Trainer, name: str) -> None:
        path = self.folder / name  # type: ignore[operator]
        if not trainer.is_global_zero:  # takes part, and writes nothing
            trainer.save_checkpoint(path)
            return
        with atomic_write(path) as partial:
            trainer.save_checkpoint(partial)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Give the best weights back to the module."""
        if self._best_weights is None:
            logger.warning(
                f"{self.monitor} was never computed, as no cells validate: the model keeps its last weights."
            )
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # weights may still be on their way
        pl_module.load_state_dict(self._best_weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and step, for a resumed run."""
        return {"best_value": self.best_value, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value, and its weights from ``best.ckpt``."""
        self.best_value, self.best_step = state_dict["best_value"], state_dict["best_step"]
        path = None if self.folder is None else self.folder / BEST
        if self.best_step is None:
            return
        if path is None or not path.exists():
            raise FileNotFoundError(
                f"resuming needs {BEST} beside the checkpoint, which holds the best weights so far (step "
                f"{self.best_step}); resume into the folder of the run with save_dir."
            )
        best = torch.load(path, map_location="cpu", weights_only=True)
        value = best["callbacks"][self.state_key]["best_value"]
        same_step = best["global_step"] == self.best_step
        # the best is written first, so that it may be a later and better one than the checkpoint knows of
        if best["global_step"] < self.best_step or not (
            value == self.best_value if same_step else self._is_better(value)
        ):
            raise ValueError(
                f"{str(path)!r} is from step {best['global_step']} and the best so far was at step {self.best_step} "
                f"({self.monitor} {value:.6g} and {self.best_value:.6g}): it belongs to another run; resume into the "
                "folder of the run with save_dir."
            )
        self._best_weights = best["state_dict"]


class AveragedWeights:
    """Exponential moving average of a module's parameters.

    After step ``t`` each average moves by ``1 - min(decay, (1 + t) / (10 + t))`` towards its weight, faster at first
    so that initial weights do not remain part of it for long. What is frozen equals its average to the bit.

    Parameters
    ----------
    module
        Module whose parameters are averaged.
    decay
        Fraction of itself that an average keeps at a step, once the run is long enough.

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
        """Averages by the names of their parameters."""
        return self._averages


def _in_main_memory(weights: Mapping[str, Tensor], earlier: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy weights into the memory of an earlier copy; a GPU goes on computing meanwhile."""
    kept = {}
    for name, value in weights.items():
        place = earlier.get(name)
        if place is None or place.is_pinned() != value.is_cuda:
            place = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        kept[name] = place.copy_(value.detach(), non_blocking=True)
    return kept
