"""Metrics of a run: in memory for ``model.history``, and in one plain CSV file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from scvi_tahoe.files import atomic_write

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["MetricsHistory"]


class MetricsHistory(Logger):
    """Records every logged metric by optimizer step.

    Stands first among the loggers of a run, because scvi-tools fills ``model.history`` from the first one only.

    Parameters
    ----------
    path
        CSV file, one row a step with anything logged, one column a metric; None keeps everything in memory.
    resume_step
        Keep the rows of an earlier part of the same run up to this step; None starts anew.
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
