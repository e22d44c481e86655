"""Predictions on several devices: the same cells, in order; and which devices are taken."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import torch

from scvi_tahoe._devices import prediction_devices
from scvi_tahoe.data import _store, make_store
from scvi_tahoe.model import _predict
from scvi_tahoe.prediction import _predictor

CPU = torch.device("cpu")


def predict(model, *args, **options):
    return model.predict(*args, progress=False, **options)


@pytest.fixture
def on_cpus(monkeypatch):
    """Predict on so many devices, all of which are the CPU, on any machine; on one until told otherwise."""

    def choose(n):
        monkeypatch.setattr(_predict, "prediction_devices", lambda devices, own: (CPU,) * n)

    choose(1)
    return choose


@pytest.mark.parametrize("n_devices", [2, 3, 99])
@pytest.mark.parametrize("store", ["device", "host"])
@pytest.mark.parametrize("prior", ["none", "cells", "response"])
def test_several_devices_predict_the_same_cells_in_the_same_order(models, prior, store, n_devices, on_cpus):
    expected = predict(models[prior], n_cells=30, batch_size=2, store=store)
    on_cpus(n_devices)
    got = predict(models[prior], n_cells=30, batch_size=2, store=store)
    np.testing.assert_array_equal(got.X, expected.X)
    assert got.obs.equals(expected.obs)


@pytest.mark.parametrize("prior", ["none", "cells", "response"])
def test_several_devices_write_the_same_file(models, prior, on_cpus, monkeypatch, tmp_path):
    expected = predict(models[prior], n_cells=30, batch_size=2)
    monkeypatch.setattr(_predictor, "CHUNK_BYTES", 1)
    on_cpus(2)
    written = predict(models[prior], n_cells=30, batch_size=2, path=tmp_path / "predicted.zarr").to_memory()
    np.testing.assert_array_equal(written.X.toarray() if hasattr(written.X, "toarray") else written.X, expected.X)


def test_several_devices_read_from_disk(models, on_cpus, screen, tmp_path):
    screen.write_h5ad(tmp_path / "screen.h5ad")
    expected = predict(models["none"], n_cells=9, batch_size=2)
    on_cpus(2)
    backed = ad.read_h5ad(tmp_path / "screen.h5ad", backed="r")
    for store in ("auto", "disk"):
        got = predict(models["none"], backed, n_cells=9, batch_size=2, store=store)
        np.testing.assert_array_equal(got.X, expected.X)


def test_an_error_on_one_device_ends_the_prediction(models, on_cpus, monkeypatch):
    model = models["none"]
    expected = predict(model, n_cells=9).X
    on_cpus(2)
    forward, calls = type(model.module).forward, []

    def failing(self, *args, **options):
        calls.append(1)
        if len(calls) > 2:
            raise ArithmeticError("one device broke")
        return forward(self, *args, **options)

    monkeypatch.setattr(type(model.module), "forward", failing)
    with pytest.raises(ArithmeticError, match="one device broke"):
        predict(model, n_cells=40, batch_size=1)
    monkeypatch.setattr(type(model.module), "forward", forward)
    np.testing.assert_array_equal(predict(model, n_cells=9).X, expected)


# ---------------------------------------------------------------- which devices


@pytest.fixture
def three_cards(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)


def cards(*numbers):
    return tuple(torch.device("cuda", i) for i in numbers)


@pytest.mark.usefixtures("three_cards")
@pytest.mark.parametrize(
    ("devices", "own", "expected"),
    [
        (None, CPU, (CPU,)),
        (1, CPU, (CPU,)),
        ("auto", CPU, (CPU,)),
        (None, cards(1)[0], cards(1)),
        (1, cards(1)[0], cards(1)),
        ("auto", cards(1)[0], cards(1, 0, 2)),
        (2, cards(1)[0], cards(1, 0)),
        (2, CPU, cards(0, 1)),
        ([2, 0], cards(1)[0], cards(2, 0)),
        ([0], CPU, cards(0)),
    ],
)
def test_devices_are_those_asked_for_beginning_with_the_models_own(devices, own, expected):
    assert prediction_devices(devices, own) == expected


@pytest.mark.usefixtures("three_cards")
@pytest.mark.parametrize("devices", [0, 4, -1, True, 2.0, "all", "2", [], [3], [0, 0], [-1], ["0"]])
def test_devices_that_are_not_there_are_refused(devices):
    with pytest.raises(ValueError, match=r"must be 'auto', a number of CUDA devices or a list .* has 3 CUDA devices"):
        prediction_devices(devices, CPU)


def test_on_a_machine_without_gpus_one_device_predicts(models):
    if torch.cuda.device_count():
        pytest.skip("this machine has GPUs")
    expected = predict(models["none"], n_cells=3)
    np.testing.assert_array_equal(predict(models["none"], n_cells=3, devices="auto").X, expected.X)
    with pytest.raises(ValueError, match=r"devices=2 must be .*0 CUDA devices. None predicts on the model's own"):
        predict(models["none"], devices=2)


@pytest.mark.usefixtures("three_cards")
def test_each_process_of_a_run_on_several_devices_predicts_on_its_own(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    (own,) = cards(1)
    assert prediction_devices(None, own) == prediction_devices("auto", own) == (own,)
    with pytest.raises(ValueError, match="one of 2 processes that were started together: each predicts on its own"):
        prediction_devices(2, own)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("store", ["device", "host"])
def test_two_gpus_predict_what_one_predicts(models, store):
    model = models["none"]
    model.to_device("cuda:0")
    try:
        expected, got = (predict(model, n_cells=300, batch_size=2, store=store, devices=n) for n in (1, 2))
        np.testing.assert_array_equal(got.X, expected.X)
    finally:
        model.to_device("cpu")


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("kind", ["device", "host"])
def test_a_store_of_some_rows_gives_them_under_their_own_numbers(kind, screen):
    rows = np.array([3, 11, 5, 3])
    store = make_store(screen.X, CPU, kind=kind, rows=rows)
    asked = np.array([[5, 3], [11, 5]])
    store.prefetch(asked)
    for copy in (store, store.replica()):
        np.testing.assert_array_equal(copy.dense(copy.fetch(asked), CPU).numpy(), screen.X.toarray()[asked])
    assert "3 cells that are read" in store.description
    with pytest.raises(IndexError, match="row 4 is not among the rows"):
        store.fetch(np.array([4]))


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_rows_of_a_file_are_read_once_where_they_are_few(form, screen, tmp_path, monkeypatch):
    screen.X = screen.X.toarray() if form == "dense" else screen.X
    screen.write_h5ad(tmp_path / "screen.h5ad")
    matrix, rows = ad.read_h5ad(tmp_path / "screen.h5ad", backed="r").X, np.array([11, 3])
    expected = ad.read_h5ad(tmp_path / "screen.h5ad").X[rows]
    store = make_store(matrix, CPU, rows=rows)
    assert "from disk" not in store.description
    np.testing.assert_array_equal(
        store.dense(store.fetch(rows), CPU).numpy(), expected if form == "dense" else expected.toarray()
    )
    monkeypatch.setattr(_store, "_READ_ONCE", 100)
    assert "from disk" in make_store(matrix, CPU, rows=rows).description
