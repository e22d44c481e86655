"""What is known of a condition before the network: the prior that its change is added to."""

from __future__ import annotations

from scvi_tahoe.response._collapse import CollapseAlarm, observed_likeness
from scvi_tahoe.response._concat_screens import concat_screens
from scvi_tahoe.response._correction import (
    FEWEST_CONDITIONS,
    NOTHING,
    Gain,
    judging_conditions,
    means_by_code,
    shrinkage_factor,
)
from scvi_tahoe.response._effects_table import effects_table
from scvi_tahoe.response._members import Origin
from scvi_tahoe.response._prior import PRIORS, CellPrior, Prior
from scvi_tahoe.response._residual import (
    choose_prior,
    effects_of,
    learn_prior,
    makes_cells,
    planned,
    predictable_labels,
    prior_and_targets,
    prior_table,
    report_of,
    residual_cells,
    wanted_means,
    with_prior,
)
from scvi_tahoe.response._response_model import CRITERIA, Criterion, reject_unknown_criterion
from scvi_tahoe.response._response_table_model import ResponseModel
from scvi_tahoe.response._start import ResponseStart

wrong_response = ResponseStart.wrong
