"""The training step of a run: begun or taken up again, also where only its end is missing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from scvi_tahoe.study._loggers import PeakMemory, make_loggers
from scvi_tahoe.study._run_folder import LAST, read_checkpoint, read_json, write_json

if TYPE_CHECKING:
    from pathlib import Path

    from scvi_tahoe import TahoeST
    from scvi_tahoe.study._data import RunData
    from scvi_tahoe.study._run_config import TahoeRun
    from scvi_tahoe.training import TrainingRun

__all__ = ["read_training", "train_model", "training_options"]

_RECORD = "training.json"


def train_model(run: TahoeRun, model: TahoeST, data: RunData, folder: Path, *, progress: bool) -> None:
    """Train, or go on training; the model has the weights of the best validation afterwards.

    Updates ``best.ckpt``, ``last.ckpt``, ``metrics.csv`` and ``training.json`` in the folder.
    """
    start = time.perf_counter()
    last = folder / LAST
    before = read_json(folder / _RECORD)["seconds"] if (folder / _RECORD).exists() else 0.0
    done = int(read_checkpoint(last)["global_step"]) if last.exists() else 0
    try:
        _fit(run, model, data, folder, last if done else None, progress=progress)
    finally:
        seconds = before + time.perf_counter() - start
        write_json(folder / _RECORD, {"seconds": seconds, "best_step": None, "best_value": None})
    config: dict[str, Any] = model.training_config_ or {}
    record = {"seconds": seconds, "best_step": config.get("best_step"), "best_value": config.get("best_value")}
    write_json(folder / _RECORD, record)


def training_options(run: TahoeRun, model: TahoeST) -> TrainingRun:
    """What the training of a run amounts to, with the package's defaults for what it leaves out.

    Raises
    ------
    ValueError
        If an option is out of range or does not fit the machine.
    """
    train = run.train
    return model.plan_training(
        train.max_steps, recipe=train.recipe, freeze_backbone=train.freeze_backbone, lr=train.lr,
        batch_size=train.batch_size, validate_every=train.validate_every, monitor=train.monitor,
        patience=train.patience, precision=train.precision, seed=run.seed, plan_kwargs=train.plan,
        accelerator=train.accelerator, accumulate_grad_batches=train.accumulate,
    )  # fmt: skip


def read_training(folder: Path) -> dict[str, Any]:
    """Seconds, best step and best value of a trained run."""
    return read_json(folder / _RECORD)


def _fit(
    run: TahoeRun, model: TahoeST, data: RunData, folder: Path, resume_from: Path | None, *, progress: bool
) -> None:
    train = run.train
    if train.freeze_projection:
        model.module.network.head.project.requires_grad_(requires_grad=False)
    model.train(
        train.max_steps, recipe=train.recipe, freeze_backbone=train.freeze_backbone, lr=train.lr,
        batch_size=train.batch_size, split=data.split, validate_every=train.validate_every, monitor=train.monitor,
        patience=train.patience, save_dir=folder, resume_from=resume_from, logger=make_loggers(run, folder),
        store=train.store, precision=train.precision, seed=run.seed, progress=progress, plan_kwargs=train.plan,
        accelerator=train.accelerator, accumulate_grad_batches=train.accumulate, callbacks=[PeakMemory()],
    )  # fmt: skip
