"""The model of a run: from scratch, from published weights or from an earlier run; and its training, or its rest."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback

from scvi_tahoe import TahoeST
from scvi_tahoe.files import read_json
from scvi_tahoe.model import pretrained_of
from scvi_tahoe.nn import SIZES, non_default
from scvi_tahoe.pretrained import holds_run, read_pretrained, run_checkpoint
from scvi_tahoe.study._files import write_json
from scvi_tahoe.study._run_files import BEST, LAST, MODEL, is_run, read_checkpoint

if TYPE_CHECKING:
    from anndata import AnnData
    from lightning.pytorch.loggers import Logger

    from scvi_tahoe.pretrained import PretrainedModel
    from scvi_tahoe.study._data import RunData
    from scvi_tahoe.study._run_config import StartConfig, TahoeRun
    from scvi_tahoe.training import TrainingRun

TRAINING = "training.json"
_GIGABYTE = 1024**3


def build_model(run: TahoeRun, data: RunData) -> TahoeST:
    """Return the model of a run with its starting weights: a call of ``TahoeST`` or of ``TahoeST.from_pretrained``."""
    TahoeST.setup_anndata(data.train, **data.config.keys)
    return model_on(run, data.train)


def model_on(run: TahoeRun, adata: AnnData) -> TahoeST:
    """Return the model of a run on registered data."""
    options = {"seed": run.seed, **_model_options(run, adata.n_vars)}
    if run.start.source is None:
        return TahoeST(adata, **options)
    size, start = options.pop("size", {}), run.start.arguments(TahoeST.from_pretrained)
    of_run = is_run(Path(run.start.source))
    if start["check_scale"] is None:
        start["check_scale"] = not of_run
    if of_run:
        start |= {"source": _weights_of_run(run.start), "checkpoint": None}
    model = TahoeST.from_pretrained(adata=adata, **start, **options)
    _verify_size(size, model)
    return model


def _verify_size(size: str | dict[str, Any], model: TahoeST) -> None:
    """Refuse a size that differs from that of the weights."""
    wanted, found = dict(SIZES[size]) if isinstance(size, str) else size, model.module.config.to_kwargs()
    if wrong := [f"{name} {value!r}, not {found[name]!r}" for name, value in wanted.items() if found[name] != value]:
        raise ValueError(f"model.size is not that of the weights: {', '.join(wrong)}. Leave it out: weights bring it.")


def _model_options(run: TahoeRun, n_genes: int) -> dict[str, Any]:
    """Return what the run says about the model; the rest is left to the package's defaults."""
    options = run.model.arguments(TahoeST.__init__)
    if (decoder := options["network"].get("gene_decoder")) is not None:
        options["network"] = options["network"] | {"gene_decoder": {"n_genes": n_genes, **decoder}}
    options["objective"] = non_default(options["objective"])
    return {name: value for name, value in options.items() if value not in (None, {})}


def _weights_of_run(start: StartConfig) -> PretrainedModel:
    """Return the weights of an earlier run; objective and prior are those of the new run."""
    folder = Path(str(start.source))
    # a run that validated nothing has no best checkpoint
    path = run_checkpoint(folder, start.checkpoint or (BEST if (folder / BEST).is_file() else LAST))
    if holds_run(folder):
        weights = read_pretrained(folder, path.name)
    else:  # version 0.1 kept the model as scvi-tools saves it
        model = TahoeST.load(folder / MODEL, adata=False)
        state = read_checkpoint(path)["state_dict"]
        model.module.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
        weights = pretrained_of(model)
        origin = replace(weights.provenance, checkpoint=f"{folder.name}/{path.name}")
        weights = replace(weights, provenance=origin)
    kept = {"prior": "auto", "representation": weights.extra["representation"]}
    return replace(weights, extra=kept, prior=None)


def train_model(run: TahoeRun, model: TahoeST, data: RunData, folder: Path, *, progress: bool) -> None:
    """Train, or go on training; the model has the weights of the best validation afterwards.

    Updates ``best.ckpt``, ``last.ckpt``, ``metrics.csv`` and ``training.json`` in the folder.
    """
    start, record, last = time.perf_counter(), folder / TRAINING, folder / LAST
    if not last.exists():  # a run that was killed between its first two checkpoints begins again
        (folder / BEST).unlink(missing_ok=True)
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
        if "wandb" in run.train.loggers:  # a run left open would also get what the next one of this process logs
            import_module("wandb").finish()
        seconds = before + time.perf_counter() - start
        kept = {name: found.get(name) for name in ("best_step", "best_value", "verdict")}
        write_json(record, {"seconds": seconds, **kept})


def _arguments(run: TahoeRun) -> dict[str, Any]:
    """Return the arguments of ``train`` that a run file gives."""
    other = {"accelerator": run.train.accelerator, "accumulate_grad_batches": run.train.accumulate}
    return run.train.arguments(TahoeST.train) | {"seed": run.seed, "plan_kwargs": run.train.plan} | other


def _loggers(run: TahoeRun, folder: Path) -> list[Logger] | str:
    """Return the loggers in addition to the CSV; those that are offline write into the folder."""
    from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger

    name, offline = run.name, run.train.offline
    # the server that MLFLOW_TRACKING_URI names is asked only if the run may use a network
    place: dict[str, Any] = {"tracking_uri": f"sqlite:///{folder / 'mlflow.db'}"} if offline else {}
    wandb: dict[str, Any] = {"project": "scvi-tahoe", "save_dir": folder, "offline": offline}
    makers = {
        "wandb": lambda: WandbLogger(name=name, config=run.to_dict(), **wandb),
        "tensorboard": lambda: TensorBoardLogger(folder, name="tensorboard", version=""),
        "mlflow": lambda: MLFlowLogger(experiment_name="scvi-tahoe", run_name=name, **place),
    }
    return [makers[name]() for name in run.train.loggers] or "csv"


class PeakMemory(Callback):
    """Log the most memory that training has taken so far, in gigabytes: of the GPU, or of the process."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log it with the validation, where the system tells."""
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated()
        else:
            try:
                import resource
            except ImportError:
                return
            # kilobytes on Linux, bytes on macOS
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        pl_module.log("peak_memory_gb", peak / _GIGABYTE, on_step=False, on_epoch=True)


def training_options(run: TahoeRun, model: TahoeST) -> TrainingRun:
    """Return what the training of a run amounts to, with the package's defaults for what it leaves out."""
    with TemporaryDirectory() as folder:  # checkpoints of save_steps need one, and planning writes nothing
        return model.plan_training(**_arguments(run), save_dir=folder)
