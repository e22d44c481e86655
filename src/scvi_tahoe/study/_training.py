"""The training step of a run: begun, taken up again, or, where only its end is missing, read from its checkpoints."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scvi_tahoe.study._loggers import PeakMemory, make_loggers
from scvi_tahoe.study._run_folder import BEST, LAST, read_checkpoint, read_json, write_json
from scvi_tahoe.training import TrainingRun, computed_scores

if TYPE_CHECKING:
    from pathlib import Path

    from scvi_tahoe import TahoeST
    from scvi_tahoe.study._data import RunData
    from scvi_tahoe.study._run_config import TahoeRun

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
        if done and done >= int(run.train.max_steps or done):
            _restore(run, model, data, folder)
        else:
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
    if train.monitor not in (known := computed_scores(model.module, model.representation)):
        raise ValueError(f"train.monitor is {train.monitor!r}; this run computes {', '.join(known)}.")
    return TrainingRun.prepare(
        default_lr=model._default_lr(model._training_screen()), max_steps=train.max_steps,
        batch_size=train.batch_size, validate_every=train.validate_every, monitor=train.monitor,
        plan_options={
            "lr": train.lr, "recipe": train.recipe, "freeze_backbone": train.freeze_backbone, "seed": run.seed,
            **train.plan,
        },
        patience=train.patience, save_dir=None, resume_from=None, setting={},
        trainer_options={
            "accelerator": train.accelerator, "precision": train.precision,
            "accumulate_grad_batches": train.accumulate,
        },
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


def _restore(run: TahoeRun, model: TahoeST, data: RunData, folder: Path) -> None:
    """Take the result of a training that ended just before its model was saved.

    A single step learns what belongs to a trained model beside weights (the prior, the split), which depends on data
    and seed alone; then come the weights of the best checkpoint.
    """
    import pandas as pd

    step = replace(run, train=replace(run.train, max_steps=1, validate_every=1, freeze_backbone=True, loggers=()))
    _fit_in_memory(step, model, data)
    best = read_checkpoint(folder / BEST)
    model.module.load_state_dict(
        {name.removeprefix("module."): tensor.clone() for name, tensor in best["state_dict"].items()}
    )
    kept: dict[str, Any] = next((s for s in best["callbacks"].values() if "best_step" in s), {})
    model.training_config_ = {
        **(model.training_config_ or {}),
        "plan": training_options(run, model).plan.to_kwargs(),
        "best_step": kept.get("best_step"),
        "best_value": kept.get("best_value"),
    }
    model.training_config_["correction_share"] = model._shrink_restored(data.split)
    log = pd.read_csv(folder / "metrics.csv", index_col="step")
    model.history_ = {name: log[[name]].dropna() for name in log.columns}


def _fit_in_memory(run: TahoeRun, model: TahoeST, data: RunData) -> None:
    # the backbone is frozen, and layer_decay without any rate to decay is refused
    plan = {name: value for name, value in run.train.plan.items() if name != "layer_decay"}
    model.train(
        run.train.max_steps, recipe=run.train.recipe, freeze_backbone=True, split=data.split, seed=run.seed,
        progress=False, logger=None, batch_size=1, accelerator=run.train.accelerator, precision=run.train.precision,
        plan_kwargs=plan, shrink_correction=False,
    )  # fmt: skip
