"""How a model is trained: plan, recipes, freezing, checkpoints, history."""

from __future__ import annotations

from scvi_tahoe._devices import explained_out_of_memory
from scvi_tahoe.training._acceleration import compiling_pays
from scvi_tahoe.training._adapters import begin_adapters, end_adapters, read_adapters, write_adapters
from scvi_tahoe.training._checkpoints import KeepBest
from scvi_tahoe.training._data import TrainingData, decoder_weight_of, training_data
from scvi_tahoe.training._learning_rate import UNUSED_OPTIONS, LearningRateTest, run_learning_rate_test
from scvi_tahoe.training._options import TrainOptions
from scvi_tahoe.training._plan import AveragedWeights, TahoeTrainingPlan
from scvi_tahoe.training._recipe import (
    RECIPES,
    SCHEDULES,
    Freezing,
    PartSchedule,
    PlanConfig,
    Recipe,
    Schedule,
    learning_rate_share,
    part_in_run,
    part_of,
    resolve_recipe,
)
from scvi_tahoe.training._reports import MemoryPlan, MetricsHistory, plan_memory
from scvi_tahoe.training._run import TrainingRun
from scvi_tahoe.training._sharded_optimizer import ShardedAdamW, ShardedOptimizerStrategy

__all__ = [
    "AveragedWeights",
    "LearningRateTest",
    "MemoryPlan",
    "PlanConfig",
    "TahoeTrainingPlan",
    "TrainOptions",
    "TrainingRun",
    "learning_rate_share",
    "resolve_recipe",
]
