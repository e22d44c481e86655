"""How large a learning rate may be: the range test of Smith 2017, *Cyclical learning rates* (arXiv:1506.01186)."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from scvi_tahoe.training._freezing import Freezing
from scvi_tahoe.training._plan import TahoeTrainingPlan

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.data import CellSetDataModule
    from scvi_tahoe.training._run import TrainingRun

__all__ = ["UNUSED_OPTIONS", "LearningRateTest", "run_learning_rate_test"]

#: options of a training plan that say nothing of a test in which the rate grows
UNUSED_OPTIONS = ("lr", "schedule", "warmup", "min_lr_ratio", "ema", "log_every")

#: as many minibatches are used, in turn: a mean over as many steps is then of the same cells whatever the rate
_N_MINIBATCHES = 10
#: a smoothed loss that many times the best ends the test
_DIVERGED = 4.0


@dataclass(frozen=True, kw_only=True, repr=False)
class LearningRateTest:
    """Training loss while the learning rate grows from step to step.

    Attributes
    ----------
    rates
        Learning rate of each step, ``[steps]``.
    losses
        Training loss at each step, ``[steps]``; fewer steps than asked for if it exploded.
    smoothed
        Mean loss of the last ten steps, ``[steps]``; NaN where there are fewer.
    """

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]
    smoothed: NDArray[np.float64]

    @property
    def suggestion(self) -> float:
        """A tenth of the rate at which the smoothed loss is lowest, beyond which training is about to diverge.

        Raises
        ------
        ValueError
            If the loss did not fall below that of the first steps, or a tenth of the rate at its minimum lies below all
            tested rates.
        """
        means = self.smoothed[np.isfinite(self.smoothed)]
        if len(means) == 0 or means.min() >= means[0]:
            raise ValueError(
                f"the loss did not fall between rates {self.rates[0]:.1e} and {self.rates[-1]:.1e}; try other bounds "
                "or more steps."
            )
        best = float(self.rates[np.nanargmin(self.smoothed)])
        if best / 10 < self.rates[0]:
            raise ValueError(
                f"the loss is lowest at a rate of {best:.1e}, and a tenth of it lies below the {self.rates[0]:.1e} "
                f"that the test began with; try lowest={best / 100:.1e} or less."
            )
        return best / 10

    def __repr__(self) -> str:
        try:
            said = f"suggestion {self.suggestion:.1e}"
        except ValueError as error:
            said = f"no suggestion: {error}"
        bounds = f" from {self.rates[0]:.1e} to {self.rates[-1]:.1e}" if len(self.rates) else ""
        return f"LearningRateTest: {len(self.rates)} steps{bounds}; {said}"

    def plot(self) -> Figure:
        """Loss against learning rate, the suggestion marked, where there is one.

        Returns
        -------
        A matplotlib figure that pyplot knows nothing of.
        """
        from scvi_tahoe.pl import learning_rate_test

        try:
            suggestion = self.suggestion
        except ValueError:
            suggestion = None
        return learning_rate_test(self.rates, self.losses, self.smoothed, suggestion)


def run_learning_rate_test(
    module: TahoeSTModule,
    pretrained: list[str],
    run: TrainingRun,
    datamodule: CellSetDataModule,
    *,
    lowest: float,
    highest: float,
) -> LearningRateTest:
    """Train a copy of a module with a rate that grows geometrically from ``lowest`` to ``highest``."""
    module = copy.deepcopy(module).to(run.device).train()
    plan = TahoeTrainingPlan(module, run.plan, pretrained)
    Freezing(module, plan.parts, plan.pretrained).begin(0)
    if run.plan.dropout is not None:
        for layer in (layer for layer in module.modules() if isinstance(layer, torch.nn.Dropout)):
            layer.p = run.plan.dropout
    groups = plan.parameter_groups()
    optimizer = torch.optim.AdamW(
        [{"params": g["params"], "weight_decay": g["weight_decay"]} for g in groups],
        betas=run.plan.betas, eps=run.plan.eps,
    )  # fmt: skip
    n_steps = run.plan.max_steps
    rates, losses, smoothed = np.geomspace(lowest, highest, n_steps), [], []
    autocast = torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=not run.full_precision)
    devices = [run.device] if run.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), run.explained():
        torch.manual_seed(run.plan.seed)
        minibatches = list(itertools.islice(datamodule.train_dataloader(), _N_MINIBATCHES))
        for step, payload in zip(range(n_steps), itertools.cycle(minibatches), strict=False):
            for group, ours in zip(optimizer.param_groups, groups, strict=True):
                group["lr"] = rates[step] * ours["rate"]
            with autocast:
                loss = module(datamodule.dataset.to_tensors(payload, run.device))[-1].loss
            optimizer.zero_grad()
            loss.backward()
            if run.plan.gradient_clip is not None:
                torch.nn.utils.clip_grad_norm_(module.parameters(), run.plan.gradient_clip)
            optimizer.step()
            losses.append(float(loss.detach()))
            recent = losses[-_N_MINIBATCHES:]
            smoothed.append(float(np.mean(recent)) if len(recent) == _N_MINIBATCHES else math.nan)
            if not math.isfinite(losses[-1]) or smoothed[-1] > _DIVERGED * np.nanmin([math.inf, *smoothed]):
                break
    # the last loss may be infinite, which no slope or axis can show
    kept = [i for i, value in enumerate(losses) if math.isfinite(value)]
    return LearningRateTest(rates=rates[kept], losses=np.array(losses)[kept], smoothed=np.array(smoothed)[kept])
