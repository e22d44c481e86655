"""A store on disk holds the cells it was written from, and is opened whole or not at all."""

from __future__ import annotations

import json
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scvi_tahoe import TahoeST, read_store, write_store
from scvi_tahoe.data import align_genes, is_sharded, make_store
from scvi_tahoe.data._store_folder import StoreWriter

CPU = torch.device("cpu")
KEYS = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}


@pytest.fixture(scope="module")
def small(simulated):
    """The simulated screen without tables of its truth, of which zarr makes hundreds of files."""
    adata = simulated.copy()
    adata.uns = {key: adata.uns[key] for key in ("log1p", "perturbation_embedding")}
    return adata


@pytest.fixture
def screen(small):
    return small.copy()


@pytest.fixture
def convert(tmp_path):
    """Write AnnData objects as h5ad files, and these as a store."""

    def convert(*screens, folder=tmp_path / "store", **options):
        files = []
        for i, adata in enumerate(screens):
            files.append(tmp_path / f"screen_{i}.h5ad")
            adata.write_h5ad(files[-1])
        return write_store(files, folder, **{**KEYS, **options})

    return convert


def shuffled(adata, seed=0):
    return adata[np.random.default_rng(seed).permutation(adata.n_obs)].copy()


def test_cells_genes_and_tables_are_those_of_the_file(screen, convert):
    adata = read_store(convert(shuffled(screen)))
    assert is_sharded(adata.X)
    memory = adata.to_memory()[screen.obs_names]
    assert (memory.X != screen.X).nnz == 0
    pd.testing.assert_frame_equal(memory.obs.astype(str), screen.obs.astype(str))
    assert list(adata.var_names) == list(screen.var_names)
    pd.testing.assert_frame_equal(adata.uns["perturbation_embedding"], screen.uns["perturbation_embedding"])


def test_cells_of_a_condition_lie_together_and_controls_before_them(screen, convert):
    obs = read_store(convert(shuffled(screen))).obs
    conditions = list(dict.fromkeys(zip(obs["context"], obs["perturbation"], strict=True)))
    assert len(conditions) == 14
    assert [i for i, (_, perturbation) in enumerate(conditions) if perturbation == "control"] == [0, 7]
    assert len({context for context, _ in conditions[:7]}) == 1


def test_several_files_with_genes_in_another_order_become_one_store(screen, convert):
    screen = shuffled(screen)
    parts = screen[:100].copy(), screen[100:, ::-1].copy()
    memory = read_store(convert(*parts)).to_memory()
    assert (memory[screen.obs_names, screen.var_names].X != screen.X).nnz == 0


def test_names_that_two_files_share_are_told_apart(screen, convert):
    adata = read_store(convert(screen, screen))
    assert adata.n_obs == 2 * screen.n_obs
    assert adata.obs_names.is_unique
    assert {name.rpartition("-")[2] for name in adata.obs_names} == {"0", "1"}


@pytest.mark.parametrize("form", ["dense", "layer"])
def test_expression_may_be_dense_or_in_a_layer(form, screen, convert):
    expected = screen.X.toarray()
    if form == "dense":
        screen.X = expected
    else:
        screen.layers["log"] = screen.X.copy()
        screen.X = sparse.csr_matrix(np.expm1(screen.X.toarray()))
    memory = read_store(convert(screen, layer="log" if form == "layer" else None)).to_memory()
    np.testing.assert_array_equal(memory[screen.obs_names].X.toarray(), expected)


def test_sorting_on_disk_does_not_depend_on_how_much_is_in_memory(screen, convert, monkeypatch, tmp_path):
    whole = read_store(convert(shuffled(screen))).to_memory()
    monkeypatch.setattr("scvi_tahoe.data._store_conversion._READ", 500)
    monkeypatch.setattr("scvi_tahoe.data._store_conversion._BUCKET", 700)
    monkeypatch.setattr("scvi_tahoe.data._store_folder._CHUNK", 256)
    monkeypatch.setattr("scvi_tahoe.data._store_folder._SHARD", 1024)
    pieces = read_store(convert(shuffled(screen), folder=tmp_path / "pieces")).to_memory()
    assert list(pieces.obs_names) == list(whole.obs_names)
    assert (pieces.X != whole.X).nnz == 0


@pytest.fixture(scope="module")
def written_in_pieces(small, tmp_path_factory):
    """A store of several files, each of several chunks."""
    folder = tmp_path_factory.mktemp("pieces")
    small.write_h5ad(folder / "screen.h5ad")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scvi_tahoe.data._store_folder._CHUNK", 256)
        patch.setattr("scvi_tahoe.data._store_folder._SHARD", 2048)
        return write_store(folder / "screen.h5ad", folder / "store", **KEYS)


@pytest.fixture
def in_pieces(written_in_pieces, tmp_path):
    """A copy of it, and the same in memory."""
    folder = shutil.copytree(written_in_pieces, tmp_path / "store")
    return folder, read_store(folder).to_memory()


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("rows", [[[5, 2, 5], [0, 9, 2]], [[300, 7, 8], [9, 150, 151]], [[3]]])
def test_rows_come_in_the_order_asked_for_whether_kept_in_memory_or_not(rows, keep, in_pieces):
    folder, memory = in_pieces
    pinned_rows = np.flatnonzero(memory.obs["perturbation"] == "control") if keep else None
    store = make_store(read_store(folder).X, CPU, kind="disk", pinned_rows=pinned_rows)
    rows = np.array(rows)
    for _ in range(2):
        store.prefetch(rows)
        np.testing.assert_array_equal(store.dense(store.fetch(rows), CPU), memory.X.toarray()[rows])


def test_control_cells_are_read_once(in_pieces):
    folder, memory = in_pieces
    pinned_rows = np.flatnonzero(memory.obs["perturbation"] == "control")
    store = make_store(read_store(folder).X, CPU, kind="disk", pinned_rows=pinned_rows)
    shutil.rmtree(folder)
    np.testing.assert_array_equal(store.dense(store.fetch(pinned_rows), CPU), memory.X.toarray()[pinned_rows])


def test_genes_are_aligned(in_pieces):
    folder, memory = in_pieces
    wanted = [*memory.var_names[::-1][:50], "absent"]
    alignment = align_genes(wanted, memory.var_names)
    store = make_store(read_store(folder).X, CPU, kind="disk", alignment=alignment, pinned_rows=np.arange(20))
    for rows in (np.array([3, 200, 3]), np.array([4, 1])):
        expected = np.hstack([memory[rows, wanted[:50]].X.toarray(), np.zeros((len(rows), 1))])
        np.testing.assert_array_equal(store.dense(store.fetch(rows), CPU), expected)


@pytest.mark.parametrize("kind", ["host", "device"])
def test_a_store_that_fits_may_be_read_into_memory(kind, in_pieces):
    folder, memory = in_pieces
    store = make_store(read_store(folder).X, CPU, kind=kind)
    np.testing.assert_array_equal(store.dense(store.fetch(np.array([5, 2])), CPU), memory.X.toarray()[[5, 2]])


@pytest.mark.parametrize("prior", ["none", "cells"])
def test_training_and_prediction_do_not_depend_on_the_store(prior, in_pieces, make_model, train):
    folder, memory = in_pieces
    setup = {"batch_key": None}
    there = train(make_model(memory, setup=setup, prior=prior), store="device")
    here = train(make_model(read_store(folder), setup=setup, prior=prior))
    pd.testing.assert_frame_equal(here.history["validation_loss"], there.history["validation_loss"])
    for name, weight in there.module.state_dict().items():
        assert torch.equal(weight, here.module.state_dict()[name]), name
    predicted, expected = (model.predict(progress=False) for model in (here, there))
    np.testing.assert_array_equal(predicted.to_df(), expected.to_df())


def test_a_model_trained_in_memory_predicts_from_a_store(in_pieces, make_model, train):
    folder, memory = in_pieces
    model = train(make_model(memory, setup={"batch_key": None}))
    np.testing.assert_array_equal(
        model.predict(read_store(folder), progress=False).to_df(), model.predict(progress=False).to_df()
    )


def test_a_screen_with_other_genes_is_refused(in_pieces, make_model, train):
    folder, memory = in_pieces
    memory.var_names = [f"other_{i}" for i in range(memory.n_vars)]
    model = train(make_model(memory, setup={"batch_key": None}))
    with pytest.raises(ValueError, match="the data lack 60 of the model's 60 genes"):
        model.predict(read_store(folder), progress=False)


# ---------------------------------------------------------------------------------------------- what is no store


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent does not exist; a folder that `scvi-tahoe convert` wrote"):
        read_store(tmp_path / "absent")


def test_an_h5ad_file_is_pointed_to_convert(screen, tmp_path):
    screen.write_h5ad(tmp_path / "screen.h5ad")
    with pytest.raises(
        ValueError, match=r"is a file, and a store on disk is a folder; write one with: scvi-tahoe convert"
    ):
        read_store(tmp_path / "screen.h5ad")


def test_a_folder_of_something_else(screen, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "zarr.json").write_text("{")
    screen.write_zarr(tmp_path / "other")
    for name in ("empty", "other"):
        with pytest.raises(ValueError, match=f"{name} is no store on disk of scvi-tahoe; write one with"):
            read_store(tmp_path / name)
    with pytest.raises(ValueError, match="broken cannot be opened as zarr"):
        read_store(tmp_path / "broken")


def files_below(folder, part):
    return sorted(p for p in (folder / part).rglob("*") if p.is_file() and p.name != "zarr.json")


@pytest.mark.parametrize("part", ["X/data", "X/indices", "X/indptr", "obs"])
def test_a_missing_file_is_found(part, in_pieces):
    folder, _ = in_pieces
    files_below(folder, part)[-1].unlink()
    with pytest.raises(ValueError, match=rf"store is damaged: {part.split('/')[0]} has \d+ files .* were written"):
        read_store(folder)


def test_a_file_that_was_cut_off_is_found(in_pieces):
    folder, _ = in_pieces
    path = files_below(folder, "X/data")[1]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="store is damaged: X has"):
        read_store(folder)


def test_a_store_of_a_later_release(in_pieces):
    folder, _ = in_pieces
    text = json.loads((folder / "zarr.json").read_text())
    text["attributes"]["scvi_tahoe_store"]["version"] = 2
    (folder / "zarr.json").write_text(json.dumps(text))
    with pytest.raises(ValueError, match=r"written by a later release of scvi-tahoe \(version 2"):
        read_store(folder)


# ---------------------------------------------------------------------------------------------- what is not written


def broken(screen, how):
    if how == "scale":
        screen.X = sparse.csr_matrix(np.expm1(screen.X.toarray()))
    elif how == "nan":
        screen.X.data[7] = np.nan
    elif how == "csc":
        screen.X = screen.X.tocsc()
    elif how == "unlabelled":
        screen.obs.loc[screen.obs_names[3], "context"] = np.nan
    elif how == "twice":
        screen.obs_names = ["cell"] * screen.n_obs
    return screen


@pytest.mark.parametrize(
    ("how", "options", "error", "message"),
    [
        ("scale", {}, ValueError, "X of .*screen_0.h5ad holds normalised counts without a logarithm"),
        ("nan", {}, ValueError, "NaN or infinite"),
        ("csc", {}, ValueError, "expression in .* is a csc_matrix; write it by rows"),
        ("unlabelled", {}, ValueError, r"obs\['context'\] of .* has cells without a value"),
        ("twice", {}, ValueError, "cell names of .* must be unique"),
        ("", {"control": "contrl"}, ValueError, r"control='contrl' is no label of obs\['perturbation'\].*control"),
        ("", {"context_key": "contex"}, KeyError, "'contex' is not a column of obs.*context"),
        ("", {"layer": "log"}, KeyError, "layer='log' is not in layers of"),
    ],
)
def test_data_that_are_not_as_they_should_be_leave_nothing_behind(
    how, options, error, message, screen, convert, tmp_path
):
    with pytest.raises(error, match=message):
        convert(broken(screen, how), **options)
    assert [path.name for path in tmp_path.iterdir()] == ["screen_0.h5ad"]


def test_files_with_other_genes_are_refused(screen, convert):
    with pytest.raises(ValueError, match=r"screen_1.h5ad has other genes than .*screen_0.h5ad: 10 are missing"):
        convert(screen, screen[:, 10:].copy())


def test_a_file_that_is_missing_or_no_h5ad(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.h5ad does not exist"):
        write_store(tmp_path / "absent.h5ad", tmp_path / "store", **KEYS)
    (tmp_path / "text.h5ad").write_text("no HDF5")
    with pytest.raises(ValueError, match="text.h5ad is no h5ad file"):
        write_store(tmp_path / "text.h5ad", tmp_path / "store", **KEYS)
    with pytest.raises(ValueError, match="no file was given"):
        write_store([], tmp_path / "store", **KEYS)


def test_only_a_store_is_replaced_and_only_when_asked(screen, convert, tmp_path):
    folder = convert(screen)
    with pytest.raises(FileExistsError, match="store exists; give overwrite=True"):
        convert(screen)
    assert read_store(convert(screen[:200].copy(), overwrite=True)).n_obs == 200
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("mine")
    with pytest.raises(FileExistsError, match="precious exists and is no store on disk; it is not replaced"):
        convert(screen, folder=precious, overwrite=True)
    assert (precious / "data").read_text() == "mine"
    assert folder.is_dir()


def test_a_writer_refuses_what_does_not_fit_together(tmp_path):
    (tmp_path / "store").mkdir()
    writer = StoreWriter(tmp_path / "store", 3)
    with pytest.raises(ValueError, match="the store has 3 genes, and the block 4"):
        writer.append(sparse.csr_matrix((2, 4), dtype=np.float32))
    writer.append(sparse.csr_matrix((2, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="2 cells x 3 genes were appended; obs has 1 rows, var 3"):
        writer.finish(pd.DataFrame(index=["a"]), pd.DataFrame(index=list("xyz")))


def test_values_of_zarr_that_somebody_else_wrote_are_verified(screen, tmp_path):
    screen.X.data[5] = np.inf
    screen.write_zarr(tmp_path / "other")
    import zarr

    screen = ad.AnnData(
        ad.io.sparse_dataset(zarr.open_group(tmp_path / "other", mode="r")["X"]), obs=screen.obs, var=screen.var
    )
    with pytest.raises(ValueError, match="holds NaN or infinite values"):
        TahoeST.setup_anndata(screen, **KEYS)
