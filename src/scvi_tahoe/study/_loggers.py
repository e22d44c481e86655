"""Weights & Biases, TensorBoard and MLflow beside the CSV, by name, and without a network if so wished."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback

from scvi_tahoe._compat import require

if TYPE_CHECKING:
    from pathlib import Path

    from lightning.pytorch.loggers import Logger

    from scvi_tahoe.study._run_config import TahoeRun

__all__ = ["PeakMemory", "make_loggers", "verify_loggers"]

_GIGABYTE = 1024**3


def make_loggers(run: TahoeRun, folder: Path) -> list[Logger] | str:
    """Return what :meth:`~scvi_tahoe.TahoeST.train` takes as ``logger``.

    Parameters
    ----------
    run
        The run; ``train.loggers`` names them.
    folder
        Where those that are offline write.
    """
    makers = {"wandb": _wandb, "tensorboard": _tensorboard, "mlflow": _mlflow}
    return [makers[name](run, folder) for name in run.train.loggers] or "csv"


def verify_loggers(run: TahoeRun) -> None:
    """Raise if the package of a logger is missing.

    Raises
    ------
    ImportError
        The message names the extra that brings it.
    """
    for name in run.train.loggers:
        require(name, name)


def _wandb(run: TahoeRun, folder: Path) -> Logger:
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(
        name=run.name, project="scvi-tahoe", save_dir=folder, offline=run.train.offline, config=run.to_dict()
    )


def _tensorboard(run: TahoeRun, folder: Path) -> Logger:
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(folder, name="tensorboard", version="")


def _mlflow(run: TahoeRun, folder: Path) -> Logger:
    from lightning.pytorch.loggers import MLFlowLogger

    # the server that MLFLOW_TRACKING_URI names is asked only if the run may use a network
    place: dict[str, Any] = {"tracking_uri": f"sqlite:///{folder / 'mlflow.db'}"} if run.train.offline else {}
    return MLFlowLogger(experiment_name="scvi-tahoe", run_name=run.name, **place)


class PeakMemory(Callback):
    """Logs the most memory that training has taken so far, in gigabytes: of the GPU, or of the process."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log it beside the validation."""
        peak = peak_memory()
        if peak is not None:
            pl_module.log("peak_memory_gb", peak, on_step=False, on_epoch=True)


def peak_memory() -> float | None:
    """Most memory taken so far, in gigabytes, or None where the system does not tell."""
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
