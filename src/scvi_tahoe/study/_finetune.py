"""A run, from its configuration to a folder with model, prediction, scores and figures."""

from __future__ import annotations

import json
import logging
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvi_tahoe import TahoeST
from scvi_tahoe._arguments import checked
from scvi_tahoe._compat import require
from scvi_tahoe._threads import given_threads
from scvi_tahoe.data import ScreenKeys, with_condition_labels
from scvi_tahoe.evaluate import EvaluationReference, EvaluationResult, EvaluationWarning, evaluate, overall_title
from scvi_tahoe.files import atomic_write, atomic_write_text, read_h5ad, read_json
from scvi_tahoe.nn import NetworkConfig, default_of, ineffective_in_network
from scvi_tahoe.prediction import arguments_for_observed
from scvi_tahoe.pretrained import read_pretrained
from scvi_tahoe.study._data import load_data
from scvi_tahoe.study._files import read_mapping, save_figure, write_json
from scvi_tahoe.study._log_figure import log_figure
from scvi_tahoe.study._model import TRAINING, build_model, train_model, training_options
from scvi_tahoe.study._run_config import PLAN_ELSEWHERE, TahoeRun
from scvi_tahoe.study._run_files import (
    CONFIG,
    FIGURES,
    METRICS,
    MODEL,
    PREDICTION,
    PROVENANCE,
    REPORT,
    RESULT,
    SCORES,
    is_run,
)
from scvi_tahoe.study._run_folder import claimed_folder, fingerprint, provenance, run_card  # fmt: skip
from scvi_tahoe.study._training_log import read_training_log
from scvi_tahoe.training import TahoeTrainingPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scvi_tahoe.study._data import RunData

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run left in its folder.

    Attributes
    ----------
    best_step, best_value
        Step and value of the best validation; the model has the weights of that step.
    scores
        Scores of the prediction; None if nothing was scored.
    seconds
        Wall time of training and of everything, summed over interruptions.
    verdict
        A sentence about what the network adds to the response model; None if it was not judged.
    """

    folder: Path
    best_step: int | None
    best_value: float | None
    scores: EvaluationResult | None
    seconds: dict[str, float]
    verdict: str | None = None

    @property
    def vcc(self) -> Mapping[str, Any] | None:
        """Overall score of the challenge, if one was computed."""
        return None if self.scores is None else self.scores.vcc


@checked()
def finetune(
    run: TahoeRun | str | Path,
    folder: str | Path | None = None,
    *,
    progress: bool = True,
    truth_cache: Path | None = None,
    report: Callable[[str], None] = _LOG.info,
) -> RunResult:
    """Train a model as a file says, predict held-out cells, score them, and leave a folder.

    A run that was stopped continues there when the function is called again; a finished one is read.

    Parameters
    ----------
    run
        The run, or its file. The ``config.yaml`` of a run's folder rebuilds that run: the same numbers on the CPU.
    folder
        Where to write. If None, ``runs/<name>``; for the ``config.yaml`` of a finished run, its folder with
        ``-rebuilt`` behind the name, and for that of a stopped one its folder, in which it continues.
    progress
        Whether to show progress bars.
    truth_cache
        Folder for what the scoring of runs on the same data shares.
    report
        Called with a line of text at each step.

    Raises
    ------
    ValueError
        If the configuration does not fit the data or the weights, or the folder holds something else.
    FileNotFoundError
        If a file is missing.
    """
    known = None if isinstance(run, TahoeRun) else _folder_of(Path(run))
    run = run if isinstance(run, TahoeRun) else TahoeRun.from_yaml(run)
    folder = Path(folder or known or Path("runs") / run.name)
    # as the run says, as it began, or as its network needs
    begun = read_mapping(folder / CONFIG).get("train", {}) if (folder / CONFIG).is_file() else {}
    run = replace(run, train=run.train.replaced(threads=run.train.threads or begun.get("threads")))
    # all that can be wrong with data, weights and options comes up here, before anything is written
    prepared = _prepare(run)
    for name in run.train.loggers:  # an error names the extra to install
        require(name, name)
    with claimed_folder(folder, prepared[0]):
        if (folder / RESULT).exists():
            report(f"{folder} holds this run, finished; this is what it left.")
            return read_result(folder)
        with given_threads(int(prepared[0].train.threads or 1)):  # scoring changes those of all libraries
            _Job(*prepared, folder, progress, truth_cache, report).carry_out()
        return read_result(folder)


def _folder_of(config: Path) -> Path | None:
    """Return where the ``config.yaml`` in the folder of a run is carried out; None for any other file."""
    place = config.parent.resolve()
    if config.name != CONFIG:
        return None
    if is_run(place):
        return place.with_name(f"{place.name}-rebuilt")
    return config.parent if (place / PROVENANCE).is_file() else None


def _prepare(run: TahoeRun) -> tuple[TahoeRun, RunData, dict[str, Any], TahoeST]:
    """Return the run with everything spelled out, its cells, what they hash to, and its model; nothing is written."""
    data, model = load_data(run), None
    if (split := data.split) is None:
        model = build_model(run, data)
        split = training_options(run, model).split
        data = replace(data, split=split)
    found = fingerprint(data, split, seed=run.seed)
    here, known = found["sha256"], run.data.sha256 or found["sha256"]
    if here != known:
        raise ValueError(f"the data are not those of the run: their content hashes to {here[:12]}, data.sha256 says "
                         f"{known[:12]}. Bring back the data, or leave data.sha256 out to run on these.")  # fmt: skip
    model = model or build_model(run, data)
    return resolved(run, data, model, here), data, found, model


def resolved(run: TahoeRun, data: RunData, model: TahoeST, sha256: str) -> TahoeRun:
    """Return the run with everything spelled out that it left to defaults, to the data or to the weights."""
    plan = training_options(run, model)
    with plan.threads(model.module) as threads:
        pass
    train = run.train.replaced(
        threads=run.train.threads or threads, max_steps=plan.plan.max_steps, lr=plan.plan.lr,
        batch_size=plan.batch_size, validate_every=plan.setting["validate_every"],
        plan={k: v for k, v in plan.plan.to_kwargs().items() if k not in PLAN_ELSEWHERE},
    )  # fmt: skip
    split = data.split.to_dict() if data.held_out is None or run.split is None else run.split  # type: ignore[union-attr]
    # labels of a named screen are not written: they come with its name
    cells = (run.data if run.data.dataset is not None else data.config).replaced(sha256=sha256)
    spelled = run.model.replaced(
        representation=model.representation, set_size=model.set_size, prior=model.prior,
        network=_network_options(model), objective=model.module.objective.config.to_dict(),
        batch_encoder=model.module.config.n_batches > 0,
    )  # fmt: skip
    return replace(run, data=cells, split=split, model=spelled, train=train)


def _network_options(model: TahoeST) -> dict[str, Any]:
    """Return the network's options without widths that the data decide and options that have no effect on it."""
    config = model.module.config
    widths = ("n_input", "n_output", "n_perturbation", "n_batches")
    options = {name: value for name, value in config.to_kwargs().items() if name not in widths}
    for name in ineffective_in_network(config, model.representation):
        if options[name] != default_of(NetworkConfig, name):  # of the weights, which bring it again
            del options[name]
    if options.get("gene_decoder") is not None:
        options["gene_decoder"] = {k: v for k, v in options["gene_decoder"].items() if k != "n_genes"}
    return options


def read_result(folder: Path) -> RunResult:
    """Return what a finished run left."""
    if not (folder / RESULT).is_file():
        raise FileNotFoundError(f"{folder} holds no finished run (no {RESULT}).")
    record = read_json(folder / RESULT)
    scores = EvaluationResult.load(folder / SCORES) if (folder / SCORES).is_dir() else None
    known = {name: record[name] for name in ("best_step", "best_value", "seconds")}
    return RunResult(folder=folder, scores=scores, verdict=record.get("verdict") or None, **known)


@dataclass(frozen=True)
class _Job:
    """The steps of a run; each leaves a file, and those whose file is there are not done again."""

    run: TahoeRun
    data: RunData
    fingerprint: dict[str, Any]
    model: TahoeST
    folder: Path
    progress: bool
    truth_cache: Path | None
    report: Callable[[str], None]

    def carry_out(self) -> None:
        """Do the steps whose files are missing."""
        start = time.perf_counter()
        if not (self.folder / PROVENANCE).exists():
            write_json(self.folder / PROVENANCE, provenance(self.run, self.fingerprint))
        steps = {MODEL: self._train}
        if self.data.held_out is not None and self.run.score.preset is not None:
            steps |= {PREDICTION: self._predict, SCORES: self._score}
        for name, step in {**steps, FIGURES: self._draw}.items():
            if not (self.folder / name).exists():
                step()
        scores = EvaluationResult.load(self.folder / SCORES) if (self.folder / SCORES).is_dir() else None
        weights = read_pretrained(self.folder / MODEL, accept_license=True)
        card = run_card(self.run, weights, read_json(self.folder / PROVENANCE), scores)
        atomic_write_text(self.folder / "README.md", card)
        training, total = read_json(self.folder / TRAINING), time.perf_counter() - start
        seconds = training.pop("seconds")
        spent = {"training": seconds, "total": max(total, seconds)}
        result = training | {"monitor": self.run.train.monitor, "seconds": spent, "config": CONFIG}
        write_json(self.folder / RESULT, result)

    def _train(self) -> None:
        report = self.model.loading_report_
        text = "from scratch: nothing was loaded." if report is None else report.text()
        atomic_write_text(self.folder / REPORT, f"{text}\n")
        self.report(f"{self.run.name}: {self.run.train.max_steps} steps, {text.splitlines()[0]}")
        train_model(self.run, self.model, self.data, self.folder, progress=self.progress)
        self.model.export(self.folder / MODEL)

    def _predict(self) -> None:
        held_out, counts = self.data.held_out, self.run.score.counts_layer
        TahoeST.setup_anndata(self.data.train, **self.data.config.keys)
        model = TahoeST.from_pretrained(self.folder / MODEL, self.data.train, check_scale=False, accept_license=True)
        predicted = model.predict(
            held_out, **arguments_for_observed(held_out, model.keys), counts_layer=counts,
            output="expression" if counts is None else "counts", seed=self.run.seed, progress=self.progress,
        )  # fmt: skip
        with atomic_write(self.folder / PREDICTION) as partial:
            predicted.write_h5ad(partial)

    def _score(self) -> None:
        score, keys = self.run.score, ScreenKeys(**self.data.config.keys)
        reference = EvaluationReference.from_adata(
            with_condition_labels(self.data.held_out, keys), perturbation_key=keys.perturbation_key,
            control=keys.control, context_key=keys.context_key, layer=score.counts_layer or keys.layer,
            baseline_from=with_condition_labels(self.data.train, keys), cache_dir=self.truth_cache,
        )  # fmt: skip
        prediction = with_condition_labels(read_h5ad(self.folder / PREDICTION), keys)
        options = score.arguments(evaluate) | {"allow_train": self.data.shares_conditions, "seed": self.run.seed}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EvaluationWarning)  # reported below and kept in the checks
            result = evaluate(prediction, reference, **options)
        for line in result.findings:
            self.report(f"{self.run.name}, {line}")
        result.save(self.folder / SCORES)

    def _draw(self) -> None:
        figures = {"training": log_figure(read_training_log(self.folder / METRICS))}
        if (self.folder / SCORES).is_dir():
            result = EvaluationResult.load(self.folder / SCORES)
            figures |= {kind: result.plot(kind) for kind in ("bars", "deltas", "cells")}
        with atomic_write(self.folder / FIGURES, folder=True) as partial:
            partial.mkdir()
            for name, figure in figures.items():
                save_figure(figure, partial / f"{name}.png")


def dry_run_text(run: TahoeRun | str | Path) -> str:
    """Read the data and the weights of a run, and say what would be done; nothing is written."""
    run, _, found, model = _prepare(run if isinstance(run, TahoeRun) else TahoeRun.from_yaml(run))
    train, side, cells = run.train, found["train"], found["split"]["cells"]
    plan = TahoeTrainingPlan(model.module, training_options(run, model).plan, model.pretrained_parameters_)
    held_out = found.get("held_out")
    contexts = "one context" if len(found["contexts"]) == 1 else f"{len(found['contexts'])} contexts"
    scored = "nothing is scored" if held_out is None else f"{held_out['n_cells']:,} cells to predict from"
    loaded = "from scratch" if model.loading_report_ is None else model.loading_report_.text()
    memory = model.memory_plan(batch_size=train.batch_size, store=train.store, precision=train.precision)
    lines = [
        run.name,
        f"data      {side['n_cells']:,} cells of {side['n_genes']:,} genes, {found['n_perturbations']} perturbations, "
        f"{contexts}; {cells['train']:,} perturbed cells train, {cells['validation']:,} "
        f"validate; {scored} (sha256 {found['sha256'][:12]})",
        f"weights   {loaded}",
        f"training  {train.max_steps:,} steps of {train.batch_size * train.accumulate} sets of {model.set_size} cells, "
        f"rate {train.lr:g}, validated every {train.validate_every:,} steps",
        *("          " + line for line in plan.describe().splitlines()),
        *(["          the projection to the output never trains"] if train.freeze_projection else []),
        f"memory    {memory}",
        f"scoring   {run.score.preset or 'none'}",
        "Nothing was written.",
    ]
    return "\n".join(lines)


def result_text(result: RunResult, *, as_json: bool = False) -> str:
    """Return what a run left, for a terminal or for a script."""
    summary, vcc = None if result.scores is None else result.scores.summary, result.vcc
    if as_json:
        values = {name: getattr(result, name) for name in ("best_step", "best_value", "seconds", "verdict")}
        scores = None if summary is None else {str(k): v for k, v in summary["value"].items() if v == v}
        values = {"folder": str(result.folder), **values, "scores": scores, "vcc": None if vcc is None else dict(vcc)}
        return json.dumps(values, indent=1, default=float)
    lines = []
    if summary is not None:
        shown = summary[["value", "baseline", "ceiling", "scaled"]].rename(columns={"scaled": "share"}).round(4)
        lines.append(shown.rename(result.scores.metric_label).rename_axis(None).to_string(na_rep=""))  # type: ignore[union-attr]
    if vcc is not None:
        lines.append(f"{overall_title(vcc)} {vcc['overall']:.2f}")
    if result.scores is not None:
        lines.append(str(result.scores.verdict))
    if result.verdict is not None:
        lines.append(f"Network: {result.verdict}")
    best = "" if result.best_step is None else f"best validation {result.best_value:.4g} at step {result.best_step}; "
    return "\n".join([*lines, f"{result.folder}: {best}{result.seconds['total']:.0f} s"])
