"""Split, sampler and dataset put together into loaders."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields, replace
from itertools import chain, cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Sampler

from scvi_tahoe.data._sampler import CellSetRequest, FixedSampler, RandomSampler, SetPlan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scvi_tahoe.data._dataset import CellSetDataset
    from scvi_tahoe.data._splits import AssignedSplit


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How minibatches are made.

    Attributes
    ----------
    set_size
        N, cells of a set.
    batch_size
        S, sets of a training minibatch.
    steps_per_epoch
        Training minibatches between two validations, on each device.
    validation_sets
        At most this many sets of a condition in validation.
    seed
        Random seed for drawing cells and their controls.
    """

    set_size: int
    batch_size: int
    steps_per_epoch: int
    validation_sets: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name != "seed" and (not isinstance(value, int | np.integer) or value < 1):
                raise ValueError(f"{f.name}={value!r} must be a whole number of 1 or more.")


class PrefetchSampler(Sampler[CellSetRequest]):
    """Yields this process's share of another sampler's minibatches, and lets the dataset prefetch ``n_ahead`` of them.

    Every process draws the same minibatches and takes every ``n_ranks``-th: together they train on what one would.
    """

    def __init__(
        self,
        sampler: Sampler[CellSetRequest],
        dataset: CellSetDataset,
        *,
        rank: int = 0,
        n_ranks: int = 1,
        n_ahead: int = 1,
    ) -> None:
        self._sampler: Any = sampler
        self._dataset = dataset
        self._rank = rank
        self._n_ranks = n_ranks
        self._n_ahead = n_ahead

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this, also after resuming."""
        if hasattr(self._sampler, "set_epoch"):
            self._sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self._sampler) // self._n_ranks)

    def __iter__(self) -> Iterator[CellSetRequest]:
        # where the processes do not come out even, the first minibatches come twice: all must take as many steps
        requests: Iterator[CellSetRequest] = iter(self._sampler)
        if len(self._sampler) % self._n_ranks:
            requests = chain(requests, cycle(self._sampler))
        mine = islice(requests, self._rank, len(self) * self._n_ranks, self._n_ranks)
        # the first one is fetched at once
        waiting = deque(islice(mine, 1))
        while waiting:
            for following in islice(mine, self._n_ahead + 1 - len(waiting)):
                self._dataset.prefetch(following)
                waiting.append(following)
            yield waiting.popleft()


class CellSetDataModule(LightningDataModule):
    """Loaders of cell sets for training and validation.

    ``row_of_label`` is the row of the embedding table for each perturbation code of the screen.
    """

    def __init__(
        self,
        dataset: CellSetDataset,
        split: AssignedSplit,
        row_of_label: np.ndarray,
        config: LoaderConfig,
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.split = split
        self.config = config
        # scvi-tools copies these to the model, and its MLflow logger reads them
        self.train_idx, self.val_idx, self.test_idx = split.train, split.validation, split.test
        self.n_train, self.n_val = len(split.train), len(split.validation)
        self.train_size = self.n_train / max(1, self.n_train + self.n_val + len(split.test))
        self.data_loader_kwargs: dict[str, Any] = {}
        self._plan = SetPlan(
            index=split.index,
            pools=split.index.control_pools(),
            row_of_label=row_of_label,
            rows=split.train,
            set_size=config.set_size,
            sets_per_step=config.batch_size,
            residual_input_rows=dataset.residual_input_rows,
        )

    def train_dataloader(self) -> DataLoader:
        """Load random sets, drawn anew at every epoch."""
        n_steps = self.config.steps_per_epoch * self._n_ranks
        return self._loader(RandomSampler(self._plan, n_steps=n_steps, seed=self.config.seed))

    def val_dataloader(self) -> DataLoader | list:
        """Load the same sets at every validation; no loader if the split holds nothing out."""
        if self.n_val == 0:
            return []
        plan = replace(self._plan, rows=self.split.validation)
        return self._loader(FixedSampler(plan, max_sets=self.config.validation_sets, seed=self.config.seed))

    @property
    def _n_ranks(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    def _loader(self, sampler: Sampler[CellSetRequest]) -> DataLoader:
        """Load this process's share of the minibatches."""
        rank = 0 if self.trainer is None else self.trainer.global_rank
        sampler = PrefetchSampler(
            sampler, self.dataset, rank=rank, n_ranks=self._n_ranks, n_ahead=self.dataset.prefetch_factor
        )
        # every pass over a loader draws a number for worker processes; from a generator of its own, or dropout after an
        # interruption would not be what it is without one
        own = torch.Generator()
        return DataLoader(self.dataset, sampler=sampler, batch_size=None, generator=own)  # type: ignore[arg-type]

    def transfer_batch_to_device(self, batch: dict[str, Any], device: torch.device, dataloader_idx: int) -> Any:
        """Finish the minibatch on the device that the network runs on."""
        # float16 and bfloat16 add up to float32, as float32 and bfloat16 do; with no other precision is that so
        compact = self.trainer is not None and self.trainer.precision == "bf16-mixed"
        return self.dataset.to_tensors(batch, device, compact=compact)
