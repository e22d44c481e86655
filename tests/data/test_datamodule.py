"""Minibatches as a training run sees them."""

from __future__ import annotations

from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest
import torch

from scvi_tahoe import FractionSplit
from scvi_tahoe._constants import TENSORS
from scvi_tahoe.data import CellSetDataModule, CellSetDataset, EmbeddingTable, LoaderConfig, make_store, read_screen
from scvi_tahoe.data._minibatches import PrefetchSampler

CPU = torch.device("cpu")
DEAF = SimpleNamespace(prefetch=lambda request: None)


@pytest.fixture
def module_of(keys):
    def module_of(adata, *, kind="auto", validation=0.25):
        screen = read_screen(adata, keys)
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
        return CellSetDataModule(dataset, FractionSplit(validation=validation).assign(screen.index), rows, config)

    return module_of


def minibatches(datamodule, part="train"):
    loader = datamodule.train_dataloader() if part == "train" else datamodule.val_dataloader()
    return [datamodule.transfer_batch_to_device(batch, CPU, 0) for batch in loader]


@pytest.mark.parametrize("kind", ["device", "host", "disk"])
@pytest.mark.parametrize("part", ["train", "validation"])
def test_backed_and_in_memory_data_give_identical_minibatches(kind, part, screen, module_of, tmp_path):
    expected = minibatches(module_of(screen), part)
    if kind == "disk":
        screen.write_h5ad(tmp_path / "screen.h5ad")
        screen = ad.read_h5ad(tmp_path / "screen.h5ad", backed="r")
    for got, wanted in zip(minibatches(module_of(screen, kind=kind), part), expected, strict=True):
        assert set(got) == set(wanted)
        assert all(torch.equal(got[k], wanted[k]) for k in wanted)


def test_the_parts_of_a_minibatch_belong_to_the_same_cells(screen, module_of):
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


def test_epochs_draw_anew_and_validation_does_not(screen, module_of):
    datamodule = module_of(screen)
    loader = datamodule.train_dataloader()
    passes = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        passes.append([datamodule.transfer_batch_to_device(b, CPU, 0)[TENSORS.OBSERVED] for b in loader])
    assert not all(torch.equal(a, b) for a, b in zip(*passes, strict=True))
    first, second = (minibatches(datamodule, "validation") for _ in range(2))
    assert all(torch.equal(a[TENSORS.CONTROL], b[TENSORS.CONTROL]) for a, b in zip(first, second, strict=True))


def test_loaders_draw_nothing_from_the_global_generator(screen, module_of):
    """Otherwise dropout would depend on how often a loader was started, and a resumed run would differ."""
    datamodule, before = module_of(screen), torch.get_rng_state()
    minibatches(datamodule)
    minibatches(datamodule, "validation")
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_held_out_gives_no_validation_loader(screen, module_of):
    datamodule = module_of(screen, validation=0.0)
    assert datamodule.val_dataloader() == []
    assert datamodule.n_val == 0


@pytest.mark.parametrize("name", ["set_size", "batch_size", "steps_per_epoch", "validation_sets"])
@pytest.mark.parametrize("value", [0, 1.5])
def test_sizes_must_be_whole_and_positive(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} must be a whole number of 1 or more"):
        LoaderConfig(**{"set_size": 8, "batch_size": 2, "steps_per_epoch": 2, name: value})


@pytest.mark.parametrize(
    ("n", "shares"),
    [
        pytest.param(5, [[0, 1, 2, 3, 4]], id="one process"),
        pytest.param(6, [[0, 2, 4], [1, 3, 5]], id="two processes"),
        pytest.param(6, [[0, 3], [1, 4], [2, 5]], id="three processes"),
        pytest.param(5, [[0, 2, 4], [1, 3, 0]], id="a minibatch too few"),
        pytest.param(1, [[0], [0], [0]], id="fewer minibatches than processes"),
    ],
)
def test_processes_share_the_minibatches_and_take_as_many_steps(n, shares):
    samplers = [PrefetchSampler(range(n), DEAF, rank=i, n_ranks=len(shares)) for i in range(len(shares))]
    assert [list(sampler) for sampler in samplers] == shares
    assert {len(sampler) for sampler in samplers} == {len(shares[0])}


@pytest.mark.parametrize(("n", "n_ahead"), [(3, 1), (5, 3)])
def test_the_dataset_hears_of_minibatches_before_they_come(n, n_ahead):
    heard = []
    minibatches = iter(PrefetchSampler(range(n), SimpleNamespace(prefetch=heard.append), n_ahead=n_ahead))
    for i in range(n):
        assert next(minibatches) == i
        assert heard == list(range(1, min(n, i + n_ahead + 1)))


BATCH_TOKEN = {"batch_token": True, "n_batch_classes": 2}


def test_a_network_with_a_batch_token_learns_to_tell_batches_apart(make_model, train):
    assert "train_batch" in train(make_model(network=BATCH_TOKEN), max_steps=2).history


def test_a_network_with_a_batch_token_needs_batches(make_model, train):
    model = make_model(network=BATCH_TOKEN, setup={"batch_key": None})
    with pytest.raises(ValueError, match="none are registered; register them with batch_key"):
        train(model)
