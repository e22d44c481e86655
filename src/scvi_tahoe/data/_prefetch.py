"""A sampler that tells the dataset ahead of time what it will be asked for, and deals minibatches out to processes."""

from __future__ import annotations

from collections import deque
from itertools import chain, cycle, islice
from typing import TYPE_CHECKING, Any

from torch.utils.data import Sampler

from scvi_tahoe.data._sampler import CellSetRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scvi_tahoe.data._dataset import CellSetDataset


class PrefetchSampler(Sampler[CellSetRequest]):
    """Yields this process's share of another sampler's minibatches.

    Every process draws the same minibatches and takes every so many of them: together they train on what one would.

    Parameters
    ----------
    sampler
        Of the minibatches of all processes.
    dataset
        Hears of each minibatch before it is asked for, so that reading overlaps with computing.
    rank, n_ranks
        Which process of how many this is.
    n_ahead
        How many minibatches before.
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
        # nobody hears of the first one: it is asked for at once
        waiting = deque(islice(mine, 1))
        while waiting:
            for following in islice(mine, self._n_ahead + 1 - len(waiting)):
                self._dataset.prefetch(following)
                waiting.append(following)
            yield waiting.popleft()
