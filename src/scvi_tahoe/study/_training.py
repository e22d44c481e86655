"""The training of a run: begun or taken up again, also where only its end is missing."""

from __future__ import annotations

import time
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback

from scvi_tahoe import TahoeST
from scvi_tahoe._compat import require
from scvi_tahoe.study._files import read_json, write_json
from scvi_tahoe.study._run_folder import LAST

if TYPE_CHECKING:
    from pathlib import Path

    from lightning.pytorch.loggers import Logger

    from scvi_tahoe.study._data import RunData
    from scvi_tahoe.study._run_config import TahoeRun
    from scvi_tahoe.training import TrainingRun

_RECORD = "training.json"
_GIGABYTE = 1024**3


def train_model(run: TahoeRun, model: TahoeST, data: RunData, folder: Path, *, progress: bool) -> None:
    """Train, or go on training; the model has the weights of the best validation afterwards.

    Updates ``best.ckpt``, ``last.ckpt``, ``metrics.csv`` and ``training.json`` in the folder.
    """
    start, record = time.perf_counter(), folder / _RECORD
    last = folder / LAST
    before = read_json(record)["seconds"] if record.exists() else 0.0
    found: dict[str, Any] = {}
    try:
        if run.train.freeze_projection:
            model.module.network.head.project.requires_grad_(requires_grad=False)
        model.train(
            **_arguments(run), split=data.split, save_dir=folder, resume_from=last if last.exists() else None,
            logger=_loggers(run, folder), progress=progress, callbacks=[PeakMemory()],
        )  # fmt: skip
        found = model.training_config_ or {}
    finally:
        seconds = before + time.perf_counter() - start
        best = {name: found.get(name) for name in ("best_step", "best_value")}
        write_json(record, {"seconds": seconds, **best})


def _arguments(run: TahoeRun) -> dict[str, Any]:
    """Return the arguments of ``train`` that a run file gives."""
    train = run.train
    return train.arguments(TahoeST.train) | {
        "seed": run.seed, "plan_kwargs": train.plan, "accelerator": train.accelerator,
        "accumulate_grad_batches": train.accumulate,
    }  # fmt: skip


def read_training(folder: Path) -> dict[str, Any]:
    """Return seconds, best step and best value of a trained run."""
    return read_json(folder / _RECORD)


def verify_loggers(run: TahoeRun) -> None:
    """Raise ImportError, which names the extra to install, if the package of a logger is missing."""
    for name in run.train.loggers:
        require(name, name)


def _loggers(run: TahoeRun, folder: Path) -> list[Logger] | str:
    """Return the loggers beside the CSV; those that are offline write into the folder."""
    from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger

    offline = run.train.offline
    # the server that MLFLOW_TRACKING_URI names is asked only if the run may use a network
    place: dict[str, Any] = {"tracking_uri": f"sqlite:///{folder / 'mlflow.db'}"} if offline else {}
    makers = {
        "wandb": lambda: WandbLogger(
            name=run.name, project="scvi-tahoe", save_dir=folder, offline=offline, config=run.to_dict()
        ),
        "tensorboard": lambda: TensorBoardLogger(folder, name="tensorboard", version=""),
        "mlflow": lambda: MLFlowLogger(experiment_name="scvi-tahoe", run_name=run.name, **place),
    }
    return [makers[name]() for name in run.train.loggers] or "csv"


class PeakMemory(Callback):
    """Log the most memory that training has taken so far, in gigabytes: of the GPU, or of the process."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log it beside the validation."""
        peak = _peak_memory()
        if peak is not None:
            pl_module.log("peak_memory_gb", peak, on_step=False, on_epoch=True)


def _peak_memory() -> float | None:
    """Return the most memory taken so far, in gigabytes, or None where the system does not tell."""
    import sys

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / _GIGABYTE
    try:
        import resource
    except ImportError:
        return None
    # kilobytes on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / _GIGABYTE


def training_options(run: TahoeRun, model: TahoeST) -> TrainingRun:
    """Return what the training of a run amounts to, with the package's defaults for what it leaves out.

    Raises
    ------
    ValueError
        If an option is out of range, has no effect, or does not fit the machine.
    """
    with TemporaryDirectory() as folder:  # checkpoints of save_steps need one, and planning writes nothing
        return model.plan_training(**_arguments(run), save_dir=folder)
