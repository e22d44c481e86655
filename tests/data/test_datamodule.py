"""Minibatches as a training run sees them."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import torch

from scvi_tahoe import FractionSplit
from scvi_tahoe._constants import TENSORS
from scvi_tahoe.data import (
    CellSetDataModule,
    CellSetDataset,
    EmbeddingTable,
    LoaderConfig,
    ScreenKeys,
    make_store,
    read_screen,
)
from scvi_tahoe.data._minibatches import PrefetchSampler

KEYS = ScreenKeys(perturbation_key="perturbation", control="control", context_key="context", batch_key="batch")
CPU = torch.device("cpu")


def module_of(adata, *, kind="auto", split=None):
    screen = read_screen(adata, KEYS)
    index = screen.index
    table = EmbeddingTable.from_labels(screen.perturbation.names)
    dataset = CellSetDataset(
        cells=make_store(screen.expression, CPU, kind=kind),
        table=table.matrix,
        genes=make_store(screen.expression, CPU),
        embedding=make_store(adata.obsm["X_embedding"], CPU),
        batch_of_cell=screen.batch.codes,
    )
    rows = np.array([table.row(n) for n in screen.perturbation.names])
    config = LoaderConfig(set_size=8, batch_size=3, steps_per_epoch=4)
    return CellSetDataModule(dataset, (split or FractionSplit(validation=0.25)).assign(index), rows, config)


def minibatches(datamodule, part="train"):
    loader = datamodule.train_dataloader() if part == "train" else datamodule.val_dataloader()
    return [datamodule.transfer_batch_to_device(batch, CPU, 0) for batch in loader]


@pytest.mark.parametrize("kind", ["device", "host", "disk"])
@pytest.mark.parametrize("part", ["train", "validation"])
def test_backed_and_in_memory_data_give_identical_minibatches(kind, part, screen, tmp_path):
    expected = minibatches(module_of(screen), part)
    if kind == "disk":
        screen.write_h5ad(tmp_path / "screen.h5ad")
        screen = ad.read_h5ad(tmp_path / "screen.h5ad", backed="r")
    for got, wanted in zip(minibatches(module_of(screen, kind=kind), part), expected, strict=True):
        assert set(got) == set(wanted)
        assert all(torch.equal(got[k], wanted[k]) for k in wanted)


def test_the_parts_of_a_minibatch_belong_to_the_same_cells(screen):
    expression, embedding = screen.X.toarray(), screen.obsm["X_embedding"]
    batch = screen.obs["batch"].cat.codes.to_numpy()
    row_of = {row.tobytes(): i for i, row in enumerate(expression)}
    assert len(row_of) == screen.n_obs
    for tensors in minibatches(module_of(screen)):
        assert tensors[TENSORS.CONTROL].shape == tensors[TENSORS.OBSERVED].shape == (3, 8, 60)
        rows = np.array([[row_of[c.tobytes()] for c in cells] for cells in tensors[TENSORS.OBSERVED].numpy()])
        np.testing.assert_array_equal(tensors[TENSORS.OBSERVED_GENES], expression[rows])
        np.testing.assert_array_equal(tensors[TENSORS.OBSERVED_EMBEDDING], embedding[rows])
        np.testing.assert_array_equal(tensors[TENSORS.BATCH], batch[rows])
        labels = screen.obs["perturbation"].cat.codes.to_numpy()[rows]
        assert (labels == labels[:, :1]).all()
        np.testing.assert_array_equal(tensors[TENSORS.PERTURBATION].argmax(1), labels[:, 0])


def test_epochs_draw_anew_and_validation_does_not(screen):
    datamodule = module_of(screen)
    loader = datamodule.train_dataloader()
    passes = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        passes.append([datamodule.transfer_batch_to_device(b, CPU, 0)[TENSORS.OBSERVED] for b in loader])
    assert not all(torch.equal(a, b) for a, b in zip(*passes, strict=True))
    first, second = (minibatches(datamodule, "validation") for _ in range(2))
    assert all(torch.equal(a[TENSORS.CONTROL], b[TENSORS.CONTROL]) for a, b in zip(first, second, strict=True))


def test_loaders_draw_nothing_from_the_global_generator(screen):
    """Otherwise dropout would depend on how often a loader was started, and a resumed run would differ."""
    datamodule = module_of(screen)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    minibatches(datamodule)
    minibatches(datamodule, "validation")
    assert torch.equal(torch.rand(1), expected)


def test_nothing_held_out_gives_no_validation_loader(screen):
    datamodule = module_of(screen, split=FractionSplit(validation=0.0))
    assert datamodule.val_dataloader() == []
    assert datamodule.n_val == 0


@pytest.mark.parametrize("name", ["set_size", "batch_size", "steps_per_epoch", "validation_sets"])
@pytest.mark.parametrize("value", [0, 1.5])
def test_sizes_must_be_whole_and_positive(name, value):
    sizes = {"set_size": 8, "batch_size": 2, "steps_per_epoch": 2}
    with pytest.raises(ValueError, match=f"{name}={value} must be a whole number of 1 or more"):
        LoaderConfig(**{**sizes, name: value})


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
