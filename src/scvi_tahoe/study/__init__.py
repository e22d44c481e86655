"""Runs are files: configurations read, explained and carried out; logs diagnosed; ladders of runs in one report."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scvi_tahoe.study._arc_check import ConfigCheck, check_config
    from scvi_tahoe.study._cell_files import read_cells
    from scvi_tahoe.study._comparison import RunComparison, compare_runs
    from scvi_tahoe.study._finding import Finding
    from scvi_tahoe.study._finetune import RunResult, dry_run_text, finetune, result_text
    from scvi_tahoe.study._inspection import Inspection, inspect_path
    from scvi_tahoe.study._log_diagnosis import LogDiagnosis, diagnose
    from scvi_tahoe.study._log_figure import log_figure, logs_figure
    from scvi_tahoe.study._new_run import write_new_run
    from scvi_tahoe.study._run_config import (
        LOGGERS,
        DataConfig,
        ModelConfig,
        ScoreConfig,
        StartConfig,
        TahoeRun,
        TrainConfig,
    )
    from scvi_tahoe.study._run_files import is_run
    from scvi_tahoe.study._scores import StudyResult
    from scvi_tahoe.study._screen_look import ScreenLook, look_at_screen
    from scvi_tahoe.study._study import read_study, rounds_text, run_study
    from scvi_tahoe.study._study_config import SHIPPED, Lesson, RoundConfig, StudyConfig
    from scvi_tahoe.study._training_log import TrainingLog, read_training_log, read_training_logs

__all__ = [
    "LOGGERS",
    "SHIPPED",
    "ConfigCheck",
    "DataConfig",
    "Finding",
    "Inspection",
    "Lesson",
    "LogDiagnosis",
    "ModelConfig",
    "RoundConfig",
    "RunComparison",
    "RunResult",
    "ScoreConfig",
    "StartConfig",
    "StudyConfig",
    "StudyResult",
    "TahoeRun",
    "TrainConfig",
    "TrainingLog",
    "check_config",
    "compare_runs",
    "diagnose",
    "finetune",
    "inspect_path",
    "read_training_log",
    "run_study",
]

# Names are imported when they are first used: a look at a file of cells needs neither a network nor a training loop.
_FILES = {
    "_arc_check": ("ConfigCheck", "check_config"),
    "_cell_files": ("read_cells",),
    "_comparison": ("RunComparison", "compare_runs"),
    "_finding": ("Finding",),
    "_finetune": ("RunResult", "dry_run_text", "finetune", "result_text"),
    "_inspection": ("Inspection", "inspect_path"),
    "_log_diagnosis": ("LogDiagnosis", "diagnose"),
    "_log_figure": ("log_figure", "logs_figure"),
    "_new_run": ("write_new_run",),
    "_run_config": ("LOGGERS", "DataConfig", "ModelConfig", "ScoreConfig", "StartConfig", "TahoeRun", "TrainConfig"),
    "_run_files": ("is_run",),
    "_scores": ("StudyResult",),
    "_screen_look": ("ScreenLook", "look_at_screen"),
    "_study": ("read_study", "rounds_text", "run_study"),
    "_study_config": ("SHIPPED", "Lesson", "RoundConfig", "StudyConfig"),
    "_training_log": ("TrainingLog", "read_training_log", "read_training_logs"),
}
_FILE_OF = {name: file for file, names in _FILES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_FILE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *_FILE_OF})
