"""Predictions written in chunks: the same cells as in memory, whole or not at all, and bounded memory."""

from __future__ import annotations

import logging
import tracemalloc

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scvi_tahoe import TahoeEnsemble, TahoeST
from scvi_tahoe.datasets import simulate_screen
from scvi_tahoe.evaluate import PREDICTION_RECORD
from scvi_tahoe.prediction import _predictor
from scvi_tahoe.prediction._file import written_prediction

SIZE = {"hidden": 16, "n_layers": 2, "intermediate": 32, "n_heads": 2}
SUFFIXES = ("h5ad", "zarr")


@pytest.fixture(params=[1, 2**29], ids=["small chunks", "one chunk"])
def chunk_bytes(request, monkeypatch):
    monkeypatch.setattr(_predictor, "CHUNK_BYTES", request.param)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(_predictor, "CHUNK_BYTES", 1)


def predict(model, *args, **options):
    return model.predict(*args, progress=False, **options)


def read(path):
    return ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)


def dense(matrix):
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def assert_equal(got, expected):
    for matrix, wanted in ((got.X, expected.X), *((got.layers[k], expected.layers[k]) for k in expected.layers if k)):
        assert matrix.dtype == wanted.dtype
        np.testing.assert_array_equal(dense(matrix), dense(wanted))
    pd.testing.assert_frame_equal(got.obs, expected.obs, check_dtype=False, check_categorical=False)
    pd.testing.assert_frame_equal(got.var, expected.var)
    assert set(got.uns) == set(expected.uns) == {PREDICTION_RECORD}
    for key, value in expected.uns[PREDICTION_RECORD].items():
        np.testing.assert_equal(got.uns[PREDICTION_RECORD][key], value)


@pytest.mark.usefixtures("chunk_bytes")
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("prior", "options"),
    [
        ("none", {}),
        ("none", {"n_cells": 100, "control_layer": True, "batch_size": 3}),
        ("none", {"output": "delta", "n_cells": 11}),
        ("none", {"output": "counts"}),
        ("cells", {"control_layer": True}),
        ("cells", {"output": "counts"}),
        ("cells", {"output": "prior"}),
        ("mean", {}),
        ("mean", {"output": "delta"}),
        ("mean", {"output": "counts"}),
        ("mean", {"output": "prior", "n_cells": 9}),
    ],
)
def test_a_written_prediction_is_the_one_in_memory_to_the_last_bit(models, prior, options, suffix, tmp_path):
    path = tmp_path / f"predicted.{suffix}"
    written = predict(models[prior], path=path, **options)
    expected = predict(models[prior], **options)
    assert_equal(read(path), expected)
    assert_equal(written.to_memory(), expected)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_embeddings_are_written_too(make_model, train, suffix, tmp_path):
    model = train(make_model(representation="embedding", setup={"cell_embedding_key": "X_embedding"}))
    for output in ("embedding", "expression"):
        written = predict(model, n_cells=9, output=output, control_layer=True, path=tmp_path / f"{output}.{suffix}")
        assert_equal(written.to_memory(), predict(model, n_cells=9, output=output, control_layer=True))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_matrices_stay_in_the_file_until_they_are_wanted(models, suffix, tmp_path):
    written = predict(models["none"], n_cells=9, control_layer=True, path=tmp_path / f"predicted.{suffix}")
    expected = predict(models["none"], n_cells=9, control_layer=True)
    for matrix in (written.X, written.layers["control"]):
        assert not isinstance(matrix, np.ndarray)
        assert not sp.issparse(matrix)
    some = np.flatnonzero(written.obs["perturbation"] == "perturbation_3")
    np.testing.assert_array_equal(dense(written[some].to_memory().X), expected.X[some])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_are_sparse_where_that_is_smaller_and_the_log_says_so(models, suffix, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="scvi_tahoe"):
        predict(models["none"], path=tmp_path / f"few_zeros.{suffix}", output="delta")
    assert not sp.issparse(read(tmp_path / f"few_zeros.{suffix}").X)
    assert "X is written dense" in caplog.text
    adata = models["none"].adata.copy()
    adata.X.data[np.random.default_rng(0).random(adata.X.nnz) < 0.7] = 0  # zeros stay zeros
    adata.X.eliminate_zeros()
    with caplog.at_level(logging.INFO, logger="scvi_tahoe"):
        predict(models["none"], adata, path=tmp_path / f"many_zeros.{suffix}", check_scale=False)
    assert sp.issparse(read(tmp_path / f"many_zeros.{suffix}").X)
    assert "X is written as CSR" in caplog.text


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_written_prediction_is_scored_like_one_in_memory(models, screen, suffix, tmp_path):
    model = models["none"]
    expected, written = (predict(model, path=p) for p in (None, tmp_path / f"predicted.{suffix}"))
    scores = [
        model.evaluate(screen, p, preset="quick", allow_train=True, progress=False).summary for p in (expected, written)
    ]
    np.testing.assert_allclose(scores[0]["value"], scores[1]["value"], rtol=1e-6)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_there_is_replaced_only_when_asked(models, suffix, tmp_path):
    model, path = models["none"], tmp_path / f"predicted.{suffix}"
    predict(model, n_cells=2, path=path)
    with pytest.raises(FileExistsError, match="exists; give overwrite=True to replace it, or another path"):
        predict(model, n_cells=3, path=path)
    assert read(path).n_obs == 24
    predict(model, n_cells=3, path=path, overwrite=True)
    assert read(path).n_obs == 36
    assert list(tmp_path.iterdir()) == [path]


def test_something_else_is_never_replaced(models, tmp_path):
    (tmp_path / "thesis.zarr").mkdir()
    (tmp_path / "thesis.zarr" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="exists and is no zarr; it is not replaced"):
        predict(models["none"], path=tmp_path / "thesis.zarr", overwrite=True)
    assert (tmp_path / "thesis.zarr" / "thesis.tex").exists()


@pytest.mark.parametrize("name", ["predicted.csv", "predicted", "predicted.h5ad.gz"])
def test_other_endings_are_refused(models, name, tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.h5ad \(one file\) or \.zarr \(a folder\)"):
        predict(models["none"], path=tmp_path / name)


def write_half(path, predicted, error):
    with written_prediction(path, obs=predicted.obs, var=predicted.var) as file:
        file.append("X", dense(predicted.X)[:10])
        raise error


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_prediction_that_fails_leaves_nothing(models, suffix, tmp_path):
    path = tmp_path / "new" / f"predicted.{suffix}"
    with pytest.raises(ValueError, match="knows no perturbation"):
        predict(models["none"], perturbations=["BRD4"], path=path)
    assert not path.parent.exists()
    predicted = predict(models["none"], n_cells=2)
    path.parent.mkdir()
    with pytest.raises(RuntimeError, match="no space left"):
        write_half(path, predicted, RuntimeError("no space left"))
    assert list(path.parent.iterdir()) == []


def test_an_interrupted_replacement_leaves_the_old_prediction(models, tmp_path):
    path = tmp_path / "predicted.h5ad"
    predicted = predict(models["none"], n_cells=2, path=path).to_memory()
    with pytest.raises(KeyboardInterrupt):
        write_half(path, predicted, KeyboardInterrupt())
    np.testing.assert_array_equal(dense(read(path).X), dense(predicted.X))


@pytest.mark.parametrize("options", [{}, {"output": "counts"}, {"control_layer": True}])
def test_memory_does_not_grow_with_the_number_of_conditions(options, tmp_path, monkeypatch):
    monkeypatch.setattr(_predictor, "CHUNK_BYTES", 2**21)
    names = [f"perturbation_{i:02d}" for i in range(1, 41)]
    adata = simulate_screen(1, 40, n_genes=500, n_cells=10, n_control_cells=200)
    TahoeST.setup_anndata(adata, "perturbation", "control", context_key="context")
    model = TahoeST(adata, size=SIZE, set_size=50)
    model.train(2, progress=False)
    peaks = []
    for n in (8, 40):
        tracemalloc.start()
        predict(model, perturbations=names[:n], n_cells=500, path=tmp_path / f"{n}.h5ad", **options)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    in_memory = 40 * 500 * 500 * 4
    assert peaks[1] < peaks[0] + in_memory / 10  # obs and the sets, which are in memory, are small beside the cells


def test_a_sparse_matrix_may_have_more_entries_than_32_bits_count(models, tmp_path):
    predict(models["none"], output="counts", path=tmp_path / "predicted.h5ad")
    with h5py.File(tmp_path / "predicted.h5ad") as file:
        assert file["X"]["indptr"].dtype == np.int64
        assert file["X"]["indices"].dtype == np.int32


def test_an_ensemble_predicts_in_memory(models, tmp_path):
    ensemble = TahoeEnsemble([models["none"]] * 2)
    with pytest.raises(ValueError, match="an ensemble predicts in memory"):
        predict(ensemble, path=tmp_path / "predicted.h5ad")
