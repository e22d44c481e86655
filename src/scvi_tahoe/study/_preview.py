"""What a run or a study would do, told before anything is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from scvi_tahoe.study._data import load_data
from scvi_tahoe.study._finetune import resolved
from scvi_tahoe.study._fingerprint import fingerprint, verify_same_data
from scvi_tahoe.study._run_config import TahoeRun
from scvi_tahoe.study._start import build_model
from scvi_tahoe.study._study_config import StudyConfig, merged
from scvi_tahoe.study._training import training_options

if TYPE_CHECKING:
    from scvi_tahoe.study._finetune import RunResult

__all__ = ["dry_run_text", "result_text", "rounds_text"]


def dry_run_text(config: str | Path) -> str:
    """Read the data and the weights of a run, and say what would be done; nothing is written.

    Raises
    ------
    ValueError, FileNotFoundError
        As :func:`~scvi_tahoe.study.finetune` would.
    """
    from scvi_tahoe.training import TahoeTrainingPlan

    run = TahoeRun.from_yaml(config)
    data = load_data(run)
    found = fingerprint(data, seed=run.seed)
    verify_same_data(run.data.sha256, found["sha256"])
    model = build_model(run, data)
    complete = resolved(run, data, model, found["sha256"])
    train = complete.train
    options = training_options(complete, model)
    plan = TahoeTrainingPlan(model.module, options.plan, model.pretrained_parameters_)
    side, cells = found["train"], found["split"]["cells"]
    held = "nothing is scored" if data.held_out is None else f"{found['held_out']['n_cells']:,} cells to predict from"
    loaded = "from scratch" if model.loading_report_ is None else model.loading_report_.text()
    lines = [
        f"{run.name}",
        f"data      {side['n_cells']:,} cells of {side['n_genes']:,} genes, {found['n_perturbations']} perturbations, "
        f"{len(found['contexts'])} contexts; {cells['train']:,} perturbed cells train, {cells['validation']:,} "
        "validate; "
        f"{held} (sha256 {found['sha256'][:12]})",
        f"weights   {loaded}",
        f"training  {options.plan.max_steps:,} steps of {options.batch_size * train.accumulate} sets of "
        f"{model.set_size} cells, rate {options.plan.lr:g}, validated every {train.validate_every:,} steps",
        *("          " + line for line in plan.describe().splitlines()),
        *(["          the projection to the output never trains"] if train.freeze_projection else []),
        f"memory    {model.memory_plan(batch_size=train.batch_size, store=train.store, precision=train.precision)}",
        f"scoring   {complete.score.preset or 'none'}",
        "Nothing was written.",
    ]
    return "\n".join(lines)


def rounds_text(*studies: StudyConfig | str | Path) -> str:
    """Return the rounds of a study, one a line."""
    config = merged([s if isinstance(s, StudyConfig) else StudyConfig.from_yaml(s) for s in studies])
    lines = [f"{config.title or config.name}: {len(config.rounds)} rounds"]
    for one in config.rounds:
        train, model = config.run(one, Path()).train, config.run(one, Path()).model
        start = f"from {one.source}, {one.start.get('checkpoint', 'best')}" if one.source else "from scratch"
        lines.append(
            f"{one.name:<14} {_told(train.max_steps):>9} steps, {_told(train.batch_size)} sets of "
            f"{_told(model.set_size)} cells, "
            f"{model.representation}, {start}: {one.title}"
        )
    return "\n".join([*lines, "Nothing was written."])


def _told(number: int | None) -> str:
    return "the usual" if number is None else f"{number:,}"


def result_text(result: RunResult, *, as_json: bool = False) -> str:
    """Return what a run left, for a terminal or for a script."""
    summary = None if result.scores is None else result.scores.summary
    vcc = None if result.scores is None else result.scores.vcc
    if as_json:
        values = {
            "folder": str(result.folder),
            "best_step": result.best_step,
            "best_value": result.best_value,
            "seconds": result.seconds,
            "scores": None if summary is None else {str(k): v for k, v in summary["value"].items() if v == v},
            "vcc": None if vcc is None else dict(vcc),
        }
        return json.dumps(values, indent=1, default=float)
    lines = (
        [] if summary is None else [summary[["value", "baseline", "ceiling", "scaled"]].round(4).to_string(na_rep="")]
    )
    if vcc is not None:
        lines.append(f"VCC {vcc['year']} overall {vcc['overall']:.2f}")
    best = "" if result.best_value is None else f"best validation {result.best_value:.4g} at step {result.best_step}; "
    return "\n".join([*lines, f"{result.folder}: {best}{result.seconds['total']:.0f} s"])
