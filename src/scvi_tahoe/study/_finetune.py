"""A run, from its configuration to a folder with model, prediction, scores and figures."""

from __future__ import annotations

import logging
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvi_tahoe.files import atomic_write, atomic_write_text
from scvi_tahoe.nn import NetworkConfig
from scvi_tahoe.nn._ineffective_options import default_of, unused_in_network
from scvi_tahoe.study._data import load_data, screen_keys
from scvi_tahoe.study._fingerprint import fingerprint, verify_same_data
from scvi_tahoe.study._loggers import verify_loggers
from scvi_tahoe.study._provenance import provenance
from scvi_tahoe.study._run_config import PLAN_ELSEWHERE, TahoeRun
from scvi_tahoe.study._run_folder import (
    CONFIG,
    FIGURES,
    METRICS,
    MODEL,
    PREDICTION,
    PROVENANCE,
    REPORT,
    RESULT,
    SCORES,
    claim,
    read_json,
    write_json,
)  # fmt: skip
from scvi_tahoe.study._start import build_model
from scvi_tahoe.study._training import read_training, train_model, training_options
from scvi_tahoe.study._yaml import read_mapping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scvi_tahoe import TahoeST
    from scvi_tahoe.evaluate import EvaluationResult
    from scvi_tahoe.study._data import RunData

__all__ = ["RunResult", "finetune", "resolved"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run left.

    Attributes
    ----------
    folder
        Its folder.
    best_step, best_value
        Step and value of the best validation; the model has the weights of that step.
    scores
        Scores of the prediction; None if nothing was scored.
    seconds
        Wall time of training and of everything, summed over interruptions.
    """

    folder: Path
    best_step: int | None
    best_value: float | None
    scores: EvaluationResult | None
    seconds: dict[str, float]


def finetune(
    run: TahoeRun | str | Path,
    folder: str | Path | None = None,
    *,
    progress: bool = True,
    truth_cache: Path | None = None,
    report: Callable[[str], None] = _LOG.info,
) -> RunResult:
    """Train a model as a file says, predict held-out cells, score them, and leave a folder.

    A run that was stopped is taken up where it was when the function is called again; a finished one is read.

    Parameters
    ----------
    run
        The run, or its file. The ``config.yaml`` of a run's folder rebuilds that run: the same numbers on the CPU.
    folder
        Where to write; None takes ``runs/<name>``.
    progress
        Whether to show progress bars.
    truth_cache
        Folder for what runs on the same data share of the scoring.
    report
        Called with a line of text at each step.

    Returns
    -------
    :class:`RunResult`.

    Raises
    ------
    ValueError
        If the configuration does not fit the data or the weights, or the folder holds something else.
    FileNotFoundError
        If a file is missing.
    """
    run = run if isinstance(run, TahoeRun) else TahoeRun.from_yaml(run)
    folder = Path("runs") / run.name if folder is None else Path(folder)
    data = load_data(run)
    found = fingerprint(data, seed=run.seed)
    verify_same_data(run.data.sha256, found["sha256"])
    # all that can be wrong with data, weights and options comes up here, before anything is written
    model = build_model(run, data)
    config = resolved(run, data, model, found["sha256"], threads=_threads(run, folder))
    verify_loggers(config)
    claim(folder, config.to_dict())
    if not (folder / RESULT).exists():
        with _keeping_threads():
            _Job(config, folder, data, model, found, progress, truth_cache, report).carry_out()
    else:
        report(f"{folder} holds this run, finished; this is what it left.")
    return read_result(folder)


def _threads(run: TahoeRun, folder: Path) -> int:
    """Threads of the processor: as the run says, as it began, or as PyTorch would have it."""
    import torch

    begun = read_mapping(folder / CONFIG).get("train", {}) if (folder / CONFIG).is_file() else {}
    return run.train.threads or begun.get("threads") or torch.get_num_threads()


@contextmanager
def _keeping_threads() -> Iterator[None]:
    """Give PyTorch its threads back: the run sets them, and scoring changes those of all libraries."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def resolved(run: TahoeRun, data: RunData, model: TahoeST, sha256: str, *, threads: int | None = None) -> TahoeRun:
    """The run with everything spelled out that it left to defaults, to the data or to the weights.

    Raises
    ------
    ValueError
        If an option of the training is out of range or has no effect on this model.
    """
    plan = training_options(run, model)
    plan.plan.refuse_unused(model.module, model.pretrained_parameters_)
    options = plan.plan.to_kwargs()
    train = replace(
        run.train, max_steps=plan.plan.max_steps, lr=plan.plan.lr, batch_size=plan.batch_size,
        validate_every=plan.setting["validate_every"], threads=threads or run.train.threads,
        plan={k: v for k, v in options.items() if k not in PLAN_ELSEWHERE},
    )  # fmt: skip
    split = run.split if data.held_out is not None and run.split is not None else data.split.to_dict()
    # labels of a named screen are not written: they come with its name
    cells = replace(run.data if run.data.dataset is not None else data.config, sha256=sha256)
    spelled = replace(
        run.model, set_size=model.set_size, prior=model.prior, network=_network_options(model),
        objective=model.module.objective.config.to_dict(),
    )  # fmt: skip
    return replace(run, data=cells, split=split, model=spelled, train=train)


def _network_options(model: TahoeST) -> dict[str, Any]:
    """Everything about the network but the widths that the data decide, and what has no effect on it."""
    config = model.module.config
    options = config.to_kwargs()
    widths = ("n_input", "n_output", "n_perturbation", "n_batches")
    options = {name: value for name, value in options.items() if name not in widths}
    for name in unused_in_network(config, model.representation):
        if options[name] != default_of(NetworkConfig, name):  # of the weights, which bring it again
            del options[name]
    if options.get("gene_decoder") is not None:
        options["gene_decoder"] = {k: v for k, v in options["gene_decoder"].items() if k != "n_genes"}
    return options


def read_result(folder: Path) -> RunResult:
    """What a finished run left.

    Raises
    ------
    FileNotFoundError
        If the folder holds no finished run.
    """
    from scvi_tahoe.evaluate import EvaluationResult

    if not (folder / RESULT).is_file():
        raise FileNotFoundError(f"{folder} holds no finished run (no {RESULT}).")
    record = read_json(folder / RESULT)
    scores = EvaluationResult.load(folder / SCORES) if (folder / SCORES).is_dir() else None
    return RunResult(
        folder=folder, best_step=record["best_step"], best_value=record["best_value"], scores=scores,
        seconds=record["seconds"],
    )  # fmt: skip


@dataclass(frozen=True)
class _Job:
    """What all steps of a run need."""

    run: TahoeRun
    folder: Path
    data: RunData
    model: TahoeST
    fingerprint: dict[str, Any]
    progress: bool
    truth_cache: Path | None
    report: Callable[[str], None]

    def carry_out(self) -> None:
        """Do the steps whose files are missing."""
        import torch

        start = time.perf_counter()
        torch.set_num_threads(int(self.run.train.threads or 1))
        if not (self.folder / PROVENANCE).exists():
            write_json(self.folder / PROVENANCE, provenance(self.run, self.fingerprint))
        if not (self.folder / MODEL).exists():
            self._train()
        if self.data.held_out is not None and self.run.score.preset is not None:
            self._step(PREDICTION, self._predict)
            self._step(SCORES, self._score)
        self._step(FIGURES, self._draw)
        self._conclude(time.perf_counter() - start)

    def _step(self, name: str, step: Callable[[], None]) -> None:
        if not (self.folder / name).exists():
            step()

    def _train(self) -> None:
        model = self.model
        text = "from scratch: nothing was loaded." if model.loading_report_ is None else model.loading_report_.text()
        atomic_write_text(self.folder / REPORT, f"{text}\n")
        self.report(f"{self.run.name}: {self.run.train.max_steps} steps, {text.splitlines()[0]}")
        train_model(self.run, model, self.data, self.folder, progress=self.progress)
        self._write_card(model)
        with atomic_write(self.folder / MODEL) as partial:
            model.save(partial)

    def _write_card(self, model: TahoeST) -> None:
        from scvi_tahoe.study._run_card import run_card

        atomic_write_text(self.folder / "README.md", run_card(self.run, model, self.fingerprint))

    def _model(self) -> TahoeST:
        from scvi_tahoe import TahoeST

        TahoeST.setup_anndata(self.data.train, **screen_keys(self.data.config))
        return TahoeST.load(self.folder / MODEL, adata=self.data.train)

    def _predict(self) -> None:
        from scvi_tahoe.data import ConditionIndex, read_screen
        from scvi_tahoe.prediction._request import conditions_asked

        model = self._model()
        index = ConditionIndex.from_screen(read_screen(self.data.held_out, model.keys))
        predicted = model.predict(
            self.data.held_out,
            **conditions_asked(index, model.keys.reading),
            seed=self.run.seed,
            progress=self.progress,
        )
        with atomic_write(self.folder / PREDICTION) as partial:
            predicted.write_h5ad(partial)

    def _score(self) -> None:
        from anndata import read_h5ad

        from scvi_tahoe.evaluate import EvaluationReference, EvaluationWarning, evaluate

        score, keys = self.run.score, self.data.config
        reference = EvaluationReference.from_adata(
            self.data.held_out, perturbation_key=str(keys.perturbation_key), control=str(keys.control),
            context_key=keys.context_key, layer=keys.layer, baseline_from=self.data.train, cache_dir=self.truth_cache,
        )  # fmt: skip
        with warnings.catch_warnings():
            # reported below and kept in the checks
            warnings.simplefilter("ignore", EvaluationWarning)
            result = evaluate(
                read_h5ad(self.folder / PREDICTION), reference, preset=str(score.preset), baseline=score.baseline,
                representation_check=score.representation_check, allow_train=self.data.shares_conditions,
                seed=self.run.seed,
            )  # fmt: skip
        for name, check in result.checks.iterrows():
            if check["status"] in ("warning", "error"):
                self.report(f"{self.run.name}, check {name}: {check['message']}")
        result.save(self.folder / SCORES)

    def _draw(self) -> None:
        from scvi_tahoe.evaluate import EvaluationResult
        from scvi_tahoe.study._log_figure import log_figure
        from scvi_tahoe.study._training_log import read_training_log

        figures = {"training": log_figure(read_training_log(self.folder / METRICS))}
        if (self.folder / SCORES).is_dir():
            result = EvaluationResult.load(self.folder / SCORES)
            figures |= {kind: result.plot(kind) for kind in ("bars", "deltas", "cells")}
        with atomic_write(self.folder / FIGURES) as partial:
            partial.mkdir()
            for name, figure in figures.items():
                figure.savefig(partial / f"{name}.png", dpi=130, format="png")

    def _conclude(self, seconds: float) -> None:
        training = read_training(self.folder)
        write_json(
            self.folder / RESULT,
            {
                "best_step": training["best_step"],
                "best_value": training["best_value"],
                "monitor": self.run.train.monitor,
                "seconds": {"training": training["seconds"], "total": max(seconds, training["seconds"])},
                "config": CONFIG,
            },
        )
