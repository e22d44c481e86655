"""How a model is trained: plan, recipes, freezing, checkpoints, history."""

from __future__ import annotations

from scvi_tahoe.train._acceleration import compiling_pays
from scvi_tahoe.train._average import AveragedWeights
from scvi_tahoe.train._best import BEST, LAST, KeepBest, checkpoint_in
from scvi_tahoe.train._freezing import Freezing
from scvi_tahoe.train._history import MetricsHistory
from scvi_tahoe.train._memory import MemoryPlan, explained_out_of_memory, plan_memory
from scvi_tahoe.train._plan import PlanConfig, TahoeTrainingPlan
from scvi_tahoe.train._precision import autocast_dtype, resolve_precision
from scvi_tahoe.train._progress import StepProgress
from scvi_tahoe.train._recipe import RECIPES, PartSchedule, Recipe, part_in_run, part_of, resolve_recipe
from scvi_tahoe.train._schedule import SCHEDULES, Schedule, learning_rate_share
from scvi_tahoe.train._sharded_optimizer import SHARDED, ShardedAdamW, ShardedOptimizerStrategy

__all__ = [
    "BEST",
    "LAST",
    "RECIPES",
    "SCHEDULES",
    "SHARDED",
    "AveragedWeights",
    "Freezing",
    "KeepBest",
    "MemoryPlan",
    "MetricsHistory",
    "PartSchedule",
    "PlanConfig",
    "Recipe",
    "Schedule",
    "ShardedAdamW",
    "ShardedOptimizerStrategy",
    "StepProgress",
    "TahoeTrainingPlan",
    "autocast_dtype",
    "checkpoint_in",
    "compiling_pays",
    "explained_out_of_memory",
    "learning_rate_share",
    "part_in_run",
    "part_of",
    "plan_memory",
    "resolve_precision",
    "resolve_recipe",
]
