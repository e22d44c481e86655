"""A progress bar over optimizer steps, with a rate, the time left and the losses."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["StepProgress"]


class StepProgress(Callback):
    """Shows steps a second, sets a second, time left and the last losses; logs the throughput.

    Parameters
    ----------
    max_steps
        Optimizer steps of the run.
    sets_per_step
        Cell sets of one optimizer step on one device.
    show
        Whether a bar is drawn; the throughput is logged in any case.
    """

    def __init__(self, *, max_steps: int, sets_per_step: int, show: bool = True) -> None:
        self._max_steps = max_steps
        self._sets_per_step = sets_per_step
        self._show = show
        self._bar: tqdm | None = None
        self._since = (0, 0.0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the bar."""
        self._since = (trainer.global_step, time.perf_counter())
        self._bar = tqdm(
            total=self._max_steps, initial=trainer.global_step, unit="step", desc="training", dynamic_ncols=True,
            disable=not (self._show and trainer.is_global_zero),
        )  # fmt: skip

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Move on."""
        if self._bar is not None and trainer.global_step > self._bar.n:
            self._bar.update(trainer.global_step - self._bar.n)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the losses and log the rate since the last time."""
        step, now = trainer.global_step, time.perf_counter()
        n_sets = (step - self._since[0]) * self._sets_per_step * trainer.world_size
        rate = n_sets / max(now - self._since[1], 1e-9)
        self._since = (step, now)
        pl_module.log("sets_per_second", rate, on_step=False, on_epoch=True)
        if self._bar is not None:
            names = {"train": "train_loss", "validation": "validation_loss"}
            shown = {
                k: f"{float(trainer.callback_metrics[n]):.4g}"
                for k, n in names.items()
                if n in trainer.callback_metrics
            }
            self._bar.set_postfix(shown | {"sets/s": f"{rate:.0f}"}, refresh=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the message starts on a line of its own."""
        self.on_train_end(trainer, pl_module)
