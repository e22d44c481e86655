"""Minibatches dealt out to processes, each a step ahead."""

from __future__ import annotations

import pytest

from scvi_tahoe.data._datamodule import PrefetchSampler


class Numbers:
    """A sampler of numbers, which stand for minibatches."""

    def __init__(self, n):
        self.n, self.epoch = n, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.n

    def __iter__(self):
        return iter(range(100 * self.epoch, 100 * self.epoch + self.n))


class Listener:
    def __init__(self):
        self.heard = []

    def prefetch(self, request):
        self.heard.append(request)


def deal(n, n_ranks):
    return [list(PrefetchSampler(Numbers(n), Listener(), rank=rank, n_ranks=n_ranks)) for rank in range(n_ranks)]


def test_one_process_gets_everything_in_order():
    assert deal(5, 1) == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_processes_share_the_minibatches_without_overlap(n_ranks):
    shares = deal(6, n_ranks)
    assert sorted(sum(shares, [])) == list(range(6))
    assert len({len(share) for share in shares}) == 1


def test_all_processes_take_as_many_steps_where_minibatches_do_not_come_out_even():
    assert deal(5, 2) == [[0, 2, 4], [1, 3, 0]]
    assert deal(1, 3) == [[0], [0], [0]]
    assert len(PrefetchSampler(Numbers(5), Listener(), n_ranks=2)) == 3


def test_the_dataset_hears_of_a_minibatch_one_before_it():
    listener = Listener()
    minibatches = iter(PrefetchSampler(Numbers(3), listener))
    assert next(minibatches) == 0
    assert listener.heard == [1]
    assert [*minibatches] == [1, 2]
    assert listener.heard == [1, 2]


def test_the_dataset_may_hear_of_several_minibatches_before_the_first_of_them():
    listener = Listener()
    minibatches = iter(PrefetchSampler(Numbers(5), listener, n_ahead=3))
    assert next(minibatches) == 0
    assert listener.heard == [1, 2, 3]
    assert next(minibatches) == 1
    assert listener.heard == [1, 2, 3, 4]
    assert [*minibatches] == [2, 3, 4]
    assert listener.heard == [1, 2, 3, 4]


def test_the_epoch_reaches_the_sampler():
    sampler = PrefetchSampler(Numbers(2), Listener())
    sampler.set_epoch(3)
    assert list(sampler) == [300, 301]
