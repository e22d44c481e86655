"""A study carried out: round after round, each from its folder if it is already there, and a report at the end."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvi_tahoe._arguments import checked
from scvi_tahoe.evaluate import overall_title
from scvi_tahoe.files import LOCK, atomic_write, atomic_write_text, locked
from scvi_tahoe.study._data import load_data
from scvi_tahoe.study._files import save_figure, write_mapping
from scvi_tahoe.study._finetune import finetune, read_result
from scvi_tahoe.study._log_figure import logs_figure
from scvi_tahoe.study._report_html import report_html
from scvi_tahoe.study._run_files import METRICS, RESULT
from scvi_tahoe.study._scores import StudyResult, score_figure, score_table
from scvi_tahoe.study._study_config import StudyConfig, judge, merged
from scvi_tahoe.study._training_log import read_training_log

if TYPE_CHECKING:
    from collections.abc import Callable

_LOG = logging.getLogger(__name__)
STUDY = "study.yaml"


@checked()
def run_study(
    *studies: StudyConfig | str | Path,
    folder: str | Path | None = None,
    progress: bool = True,
    report: Callable[[str], None] = _LOG.info,
) -> StudyResult:
    """Carry out a ladder of rounds, and write its table, figures and report.

    A study that was stopped continues there when the function is called again; finished rounds are read.

    Parameters
    ----------
    studies
        The study, its file, or the name of a shipped one; of several the rounds are put together, those of one name
        once.
    folder
        Where to write. If None, ``studies/<name>``.
    progress
        Whether to show progress bars.
    report
        Called with a line of text at each step.

    Returns
    -------
    The folder holds one folder per round, ``scores.csv``, ``curves.png``, ``scores.png`` and ``report.html``.

    Raises
    ------
    ValueError
        If a study is invalid, or the folder holds another one.
    FileNotFoundError
        If there is no such study.
    """
    config = merged(studies)
    folder = (Path("studies") / config.name if folder is None else Path(folder)).resolve()
    _verify_cells(config, folder)
    _claim_folder(folder, config)
    with locked(folder):
        return _carry_out(config, folder, progress=progress, report=report)


def _carry_out(config: StudyConfig, folder: Path, *, progress: bool, report: Callable[[str], None]) -> StudyResult:
    for one in config.rounds:
        if (folder / one.name / RESULT).exists():
            report(f"{one.name}: finished before.")
            continue
        report(f"{one.name}: {one.title}")
        result = finetune(
            config.run(one, folder), folder / one.name, progress=progress, truth_cache=folder / ".truth", report=report
        )
        vcc, line = result.vcc, f"{one.name}: {result.seconds['total']:.0f} s"
        if result.best_value is not None:
            line += f", best validation {result.best_value:.4g} at step {result.best_step}"
        report(line + ("" if vcc is None else f", {overall_title(vcc)} {vcc['overall']:.1f}"))
    return _conclude(folder, config)


@checked()
def read_study(folder: str | Path) -> StudyResult:
    """Read a study, all of whose rounds must be finished, and write its table, figures and report anew."""
    folder = Path(folder).resolve()
    if not (folder / STUDY).is_file():
        raise FileNotFoundError(f"{folder} holds no study (no {STUDY}).")
    return _conclude(folder, StudyConfig.from_yaml(folder / STUDY))


def _verify_cells(config: StudyConfig, folder: Path) -> None:
    """Read the cells of all rounds to run, so that errors of the last are reported before the first one starts."""
    runs = [config.run(one, folder) for one in config.rounds if not (folder / one.name / RESULT).exists()]
    for i, run in enumerate(runs):
        if (run.data, run.split) not in [(before.data, before.split) for before in runs[:i]]:
            try:
                load_data(run)
            except (KeyError, ValueError, FileNotFoundError) as error:
                raise type(error)(f"round {run.name!r}: {error.args[0]}") from None


def _claim_folder(folder: Path, config: StudyConfig) -> None:
    known = folder / STUDY
    if known.exists() and _spelled_out(StudyConfig.from_yaml(known)) != _spelled_out(config):
        raise ValueError(f"{folder} holds a study that differs from this one ({STUDY}); give another folder.")
    if known.exists():
        return
    if folder.exists() and (not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir())):
        raise ValueError(f"{folder} holds something that is not a study; give a new or empty folder.")
    write_mapping(known, config.to_dict())


def _spelled_out(config: StudyConfig) -> Any:
    """Return what a study is, with the defaults of options that the release that wrote it did not have."""
    rounds = [(one.title, one.role, one.published, config.run(one, Path())) for one in config.rounds]
    return config.name, config.title, config.text, config.lesson, rounds


def _conclude(folder: Path, config: StudyConfig) -> StudyResult:
    """Write the table, the figures and the report of a study whose rounds are finished."""
    runs = {one.name: read_result(folder / one.name) for one in config.rounds}
    table = score_table(config, runs)
    overall = {str(k): float(v) for k, v in table["overall"].dropna().items()} if "overall" in table else {}
    logs = {name: read_training_log(folder / name / METRICS) for name in runs}
    with atomic_write(folder / "scores.csv") as partial:
        table.to_csv(partial)
    save_figure(logs_figure(list(logs.values())), folder / "curves.png")
    if (figure := score_figure(runs)) is not None:
        save_figure(figure, folder / "scores.png")
    result = StudyResult(folder=folder, config=config, runs=runs, table=table, lesson=judge(config.lesson, overall))
    atomic_write_text(folder / "report.html", report_html(result, logs))
    return result


def rounds_text(*studies: StudyConfig | str | Path) -> str:
    """Return the rounds of a study, one a line."""
    config = merged(studies)
    lines = [f"{config.title or config.name}: {len(config.rounds)} rounds"]
    for one in config.rounds:
        run = config.run(one, Path())
        sizes = (run.train.max_steps, run.train.batch_size, run.model.set_size)
        steps, sets, cells = ("the usual" if n is None else f"{n:,}" for n in sizes)
        kind = run.model.representation or ("as its start" if run.start.source else "expression")
        lines.append(
            f"{one.name:<14} {steps:>9} steps, {sets} sets of {cells} cells, {kind}, {one.origin}: {one.title}"
        )
    return "\n".join([*lines, "Nothing was written."])
