"""Runs are files: configurations read, explained and carried out; logs diagnosed; ladders of runs in one report."""

from __future__ import annotations

from scvi_tahoe.study._arc_check import ConfigCheck, check_config
from scvi_tahoe.study._cell_files import read_cells
from scvi_tahoe.study._comparison import RunComparison, compare_runs
from scvi_tahoe.study._finding import Finding
from scvi_tahoe.study._finetune import RunResult, dry_run_text, finetune, result_text
from scvi_tahoe.study._inspection import Inspection, inspect_path
from scvi_tahoe.study._log_diagnosis import LogDiagnosis, diagnose
from scvi_tahoe.study._log_figure import log_figure, logs_figure
from scvi_tahoe.study._new_run import ScreenLook, look_at_screen, write_new_run
from scvi_tahoe.study._run_config import (
    LOGGERS,
    DataConfig,
    ModelConfig,
    ScoreConfig,
    StartConfig,
    TahoeRun,
    TrainConfig,
)
from scvi_tahoe.study._run_folder import is_run
from scvi_tahoe.study._scores import StudyResult
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
