"""What a run reports: its metrics, in memory and in one plain CSV file, and a progress bar."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from tqdm.auto import tqdm

from scvi_tahoe.files import atomic_write

if TYPE_CHECKING:
    from argparse import Namespace

    from lightning.pytorch import LightningModule, Trainer


class MetricsHistory(Logger):
    """Records every logged metric by optimizer step.

    Stands first among the loggers of a run, because scvi-tools fills ``model.history`` from the first one only.

    Parameters
    ----------
    path
        CSV file, one row per step with logged values, one column per metric. If None, everything stays in memory.
    resume_step
        Keep the rows of an earlier part of the same run up to this step. If None, start anew.
    """

    def __init__(self, path: str | Path | None = None, *, resume_step: int | None = None) -> None:
        super().__init__()
        self.path = None if path is None else Path(path)
        self._rows: dict[int, dict[str, float]] = {}
        if resume_step is not None and self.path is not None and self.path.exists():
            self._read(resume_step)

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "metrics"

    @property
    def version(self) -> int:
        """Of no meaning here."""
        return 0

    @property
    def history(self) -> dict[str, pd.DataFrame]:
        """One DataFrame a metric, indexed by optimizer step, as scvi-tools keeps them."""
        names = dict.fromkeys(n for row in self._rows.values() for n in row)
        frames = {}
        for name in names:
            values = {step: row[name] for step, row in self._rows.items() if name in row}
            frames[name] = pd.DataFrame({name: list(values.values())}, index=pd.Index(values, name="step"))
        return frames

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Record metrics of a step."""
        values = {k: float(v) for k, v in metrics.items()}
        self._rows.setdefault(int(step or 0), {}).update(values)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration is saved with the model."""

    @rank_zero_only
    def save(self) -> None:
        """Write the file anew; it is complete at every moment. With several processes the first one writes."""
        if self.path is None or not self._rows:
            return
        names = list(dict.fromkeys(n for row in self._rows.values() for n in row))
        with atomic_write(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["step", *names])
            writer.writeheader()
            writer.writerows({"step": step, **row} for step, row in sorted(self._rows.items()))

    def finalize(self, status: str) -> None:
        """Write once more at the end."""
        self.save()

    def _read(self, last_step: int) -> None:
        with self.path.open(newline="") as file:  # type: ignore[union-attr]
            for row in csv.DictReader(file):
                step = int(row.pop("step"))
                if step < last_step:
                    self._rows[step] = {k: float(v) for k, v in row.items() if v}


class StepProgress(Callback):
    """Shows steps per second, sets per second, time left and the last losses; logs the throughput.

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
