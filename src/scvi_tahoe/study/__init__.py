"""Runs are files: configurations read, explained and carried out; logs diagnosed; ladders of runs put into one report."""

from scvi_tahoe.study._check import ConfigCheck, check_config
from scvi_tahoe.study._finetune import RunResult, finetune
from scvi_tahoe.study._run_config import TahoeRun
from scvi_tahoe.study._study_config import SHIPPED, StudyConfig

__all__ = ["SHIPPED", "ConfigCheck", "RunResult", "StudyConfig", "TahoeRun", "check_config", "finetune"]
