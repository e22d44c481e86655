"""How large a learning rate may be: the range test of Smith 2017, *Cyclical learning rates* (arXiv:1506.01186)."""

from __future__ import annotations

from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.tuner import Tuner

from scvi_tahoe._compat import quiet_lightning
from scvi_tahoe.training._plan import TahoeTrainingPlan

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from torch import Tensor

    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.data import CellSetDataModule
    from scvi_tahoe.training._run import TrainingRun

#: options of a training plan that say nothing of a test in which the rate grows
UNUSED_OPTIONS = ("lr", "schedule", "warmup", "min_lr_ratio", "ema", "log_every")

#: steps that a smoothed loss is the mean of
_SMOOTHED_OVER = 10


@dataclass(frozen=True, kw_only=True, repr=False)
class LearningRateTest:
    """Training loss while the learning rate grows from step to step."""

    #: Learning rate of each step, ``[steps]``.
    rates: NDArray[np.float64]
    #: Training loss at each step, ``[steps]``; fewer steps than asked for if it exploded.
    losses: NDArray[np.float64]
    #: Mean loss of the last ten steps, ``[steps]``; NaN where there are fewer.
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
            outcome = f"suggestion {self.suggestion:.1e}"
        except ValueError as error:
            outcome = f"no suggestion: {error}"
        bounds = f" from {self.rates[0]:.1e} to {self.rates[-1]:.1e}" if len(self.rates) else ""
        return f"LearningRateTest: {len(self.rates)} steps{bounds}; {outcome}"

    def plot(self) -> Figure:
        """Loss against learning rate, the suggestion marked, where there is one.

        Returns
        -------
        A matplotlib figure that is not registered with pyplot.
        """
        from scvi_tahoe.pl import learning_rate_test

        try:
            suggestion = self.suggestion
        except ValueError:
            suggestion = None
        return learning_rate_test(self.rates, self.losses, self.smoothed, suggestion)


class _RangeTestPlan(TahoeTrainingPlan):
    """A training whose rate Lightning's tuner lets grow, from a loop that runs before ``on_fit_start``."""

    def on_train_start(self) -> None:
        self.losses: list[Tensor] = []
        self.on_fit_start()
        super().on_train_start()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.detach())
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # the tuner gives all parameters one rate
        for group, ours in zip(optimizer.param_groups, self.parameter_groups(), strict=True):
            group["lr"] *= ours["rate"]


def run_learning_rate_test(
    module: TahoeSTModule,
    pretrained: list[str],
    run: TrainingRun,
    datamodule: CellSetDataModule,
    *,
    lowest: float,
    highest: float,
) -> LearningRateTest:
    """Train a module, which is changed, with a rate that grows geometrically from ``lowest`` to ``highest``."""
    plan = _RangeTestPlan(module, run.plan, pretrained)
    is_cuda = run.device.type == "cuda"
    options: dict[str, Any] = {
        "accelerator": "gpu" if is_cuda else run.device.type, "devices": [run.device.index or 0] if is_cuda else 1,
        "precision": run.trainer_options["precision"], "max_epochs": 1, "check_val_every_n_epoch": 2, "logger": False,
        "num_sanity_val_steps": 0, "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "use_distributed_sampler": False,
    }  # fmt: skip
    with (
        TemporaryDirectory() as folder,
        torch.random.fork_rng(devices=[run.device] if is_cuda else []),
        quiet_lightning(),
        run.explained(),
    ):
        trainer = pl.Trainer(**options, default_root_dir=folder)
        finder = Tuner(trainer).lr_find(
            plan, datamodule=datamodule, min_lr=lowest, max_lr=highest, num_training=run.plan.max_steps,
            update_attr=False,
        )  # fmt: skip
    if finder is None:
        raise RuntimeError("Lightning's tuner returned no learning-rate test.")
    rates, losses = np.array(finder.results["lr"]), torch.stack(plan.losses).double().cpu().numpy()
    smoothed = np.full(len(losses), np.nan)
    if len(losses) >= _SMOOTHED_OVER:
        smoothed[_SMOOTHED_OVER - 1 :] = np.lib.stride_tricks.sliding_window_view(losses, _SMOOTHED_OVER).mean(1)
    # the last losses may be infinite, which no slope or axis can show
    kept = np.isfinite(losses)
    return LearningRateTest(rates=rates[kept], losses=losses[kept], smoothed=smoothed[kept])
