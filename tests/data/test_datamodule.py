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
