"""Checkpoints of a run, and the weights of the best validation, which the model has at the end."""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO

from scvi_tahoe.files import atomic_write, read_torch, remove_partial

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.pytorch import Trainer
    from torch import Tensor

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
        step. If None, nothing is written, and of the best weights those that train are kept in memory.
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
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = StreamedCheckpointIO()
        if self.folder is not None and trainer.is_global_zero:
            remove_partial(self.folder)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Keep the weights that training starts from, the first that may be the best."""
        value = trainer.callback_metrics.get(self.monitor)
        if value is not None and trainer.global_step == 0 and self.best_step is None:
            self.best_value, self.best_step = float(value), 0
            self._keep(trainer, pl_module)

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
        for log in trainer.loggers:
            log.save()
        # the best first: whenever the run is killed, best.ckpt is at least as far as last.ckpt knows
        if improved:
            self._keep(trainer, pl_module)
        if self.folder is None:
            return
        if improved:
            self._write_again(trainer, BEST, LAST)
        else:
            self._write(trainer, LAST)
        if self.save_steps and trainer.global_step % self.save_steps == 0:
            self._write(trainer, f"step={trainer.global_step:06d}.ckpt")

    def _keep(self, trainer: Trainer, pl_module: Any) -> None:
        """Keep the weights as they are: in the file, whose bytes stay even if it is replaced, or in memory."""
        if self.folder is not None:
            self._write(trainer, BEST)
        if self.folder is not None and trainer.world_size == 1:
            self._best_weights = read_torch(self.folder / BEST)["state_dict"]
        else:
            self._best_weights = _in_main_memory(pl_module.changing_state(), self._best_weights or {})

    def _write(self, trainer: Trainer, name: str) -> None:
        path = self.folder / name  # type: ignore[operator]
        if not trainer.is_global_zero:  # takes part, and writes nothing
            trainer.save_checkpoint(path)
            return
        with atomic_write(path) as partial:
            trainer.save_checkpoint(partial)

    def _write_again(self, trainer: Trainer, name: str, other: str) -> None:
        """Give a checkpoint another name, too, without its bytes a second time where the file system can."""
        if trainer.is_global_zero:
            path = self.folder / name  # type: ignore[operator]
            with atomic_write(path.with_name(other)) as partial:
                try:
                    partial.hardlink_to(path)
                except OSError:
                    shutil.copyfile(path, partial)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Give the best weights back to the module."""
        if self._best_weights is None:
            logger.warning(
                f"{self.monitor} was never computed, as no cells validate: the model keeps its last weights."
            )
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # weights may still be on their way
        pl_module.load_state_dict({**pl_module.state_dict(), **self._best_weights})
        self._best_weights = None  # the trainer outlives the training

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
                f"resuming needs {BEST} beside the checkpoint: the best weights so far (step {self.best_step}); "
                "resume into the folder of the run with save_dir."
            )
        best = read_torch(path, verify=True)
        step, value = best["global_step"], best["callbacks"][self.state_key]["best_value"]
        # the best is written first, so that it may be a later and better one than the checkpoint knows of
        fits = value == self.best_value if step == self.best_step else step > self.best_step and self._is_better(value)
        if not fits:
            raise ValueError(
                f"{str(path)!r} is from step {step} and the best so far was at step {self.best_step} ({self.monitor} "
                f"{value:.6g} and {self.best_value:.6g}): it belongs to another run; resume into its folder (save_dir)."
            )
        self._best_weights = best["state_dict"]


class StreamedCheckpointIO(TorchCheckpointIO):
    """Lightning's way to write and read checkpoints on a disk, without a copy of the file in memory."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; whoever calls it writes whole or not at all."""
        with Path(path).open("wb") as stream:
            torch.save(checkpoint, stream)


def _in_main_memory(weights: Mapping[str, Tensor], earlier: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy weights into the memory of an earlier copy; a GPU goes on computing meanwhile."""
    kept = {}
    for name, value in weights.items():
        place = earlier.get(name)
        if place is None or place.is_pinned() != value.is_cuda:
            place = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        kept[name] = place.copy_(value.detach(), non_blocking=True)
    return kept
