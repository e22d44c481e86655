"""The whole path on real data: train, predict, score, and leave a folder with the results."""

from scvi_tahoe.demo._job import DEFAULT_STEPS, FILES, DemoResult, run_demo
from scvi_tahoe.demo._report import score_table
from scvi_tahoe.files import atomic_write as written_whole

__all__ = ["DemoResult", "run_demo"]
