"""What the network changes about held-out conditions, at every validation, and an end where it changes nothing more."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback

from scvi_tahoe._constants import TENSORS
from scvi_tahoe.response import Gain

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor

logger = logging.getLogger(__name__)

#: validations without a larger gain after which training ends, unless the user gives a patience
PATIENCE = 5


class HeldOutGain(Callback):
    """Logs ``validation_gain`` and ends a training that does not raise it.

    The gain is the share of the response model's squared error of mean changes that the network's correction takes away
    from conditions that are not trained on, shrunk by the factor that fits the other ones. It comes from at most four
    sets a condition.

    Parameters
    ----------
    start_CG
        Means that conditions start from.
    patience
        Validations in a row without a larger gain after which training ends. If None, it does not.
    begin
        Step from which on they count.
    """

    def __init__(self, start_CG: np.ndarray, *, patience: int | None = PATIENCE, begin: int = 0) -> None:
        self._start_CG, self.patience, self.begin = start_CG, patience, begin
        self._seen: list[tuple[np.ndarray, np.ndarray]] = []
        self._gain = self.best = 0.0
        self.waited = 0

    def on_validation_epoch_start(self, *args: Any) -> None:
        """Forget the last validation."""
        self._seen = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Tensor], *args: Any
    ) -> None:
        """Keep the mean correction and the mean observed cell of each set."""
        predicted, observed = (
            cells.mean(1, dtype=torch.float32) for cells in (outputs["prediction_SNG"], batch[TENSORS.OBSERVED])
        )
        start = batch[TENSORS.RESIDUAL_INPUT].mean(1, dtype=torch.float32)
        means = torch.stack([predicted - start, observed], dim=1)
        self._seen.append((batch[TENSORS.CONDITION].cpu().numpy(), means.double().cpu().numpy()))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the gain, and log it."""
        seen = self._seen
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, seen)
            seen = [item for part in parts for item in part]
        present, position = np.unique(np.concatenate([c for c, _ in seen]), return_inverse=True)
        sums = np.zeros((len(present), *seen[0][1].shape[1:]))
        np.add.at(sums, position, np.concatenate([m for _, m in seen]))
        means_K2G = sums / np.bincount(position)[:, None, None]
        self._gain = Gain.of(means_K2G[:, 0], means_K2G[:, 1] - self._start_CG[present]).share
        pl_module.log("validation_gain", self._gain, on_step=False, on_epoch=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the training where it has been of no use for long enough."""
        if self._gain > self.best:
            self.best, self.waited = self._gain, 0
        elif trainer.global_step > self.begin:
            self.waited += 1
        if self.patience is not None and self.waited >= self.patience and trainer.global_step < trainer.max_steps:
            trainer.should_stop = True
            logger.info(
                f"Training stops after {trainer.global_step} of {trainer.max_steps} steps, because the gain of the "
                f"network on held-out conditions did not grow in {self.waited} validations. To train longer, "
                "set patience."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not go on with a run that had ended."""
        if self.patience is not None and self.waited >= self.patience:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.best, self.waited = state_dict["best"], state_dict["waited"]
