"""What is known of a condition before the network: the prior that its change is added to."""

from __future__ import annotations

from scvi_tahoe.response._condition_means import (
    CollapseAlarm,
    means_by_code,
    move_to_mean,
    observed_cosines,
)
from scvi_tahoe.response._correction_share import validation_share
from scvi_tahoe.response._prior import PRIORS, CellPrior, Origin, Prior
from scvi_tahoe.response._prior_report import prior_table
from scvi_tahoe.response._residual_input import (
    ResidualCells,
    choose_prior,
    learn_prior,
    prior_and_targets,
    with_prior,
)
