"""A store on disk holds the cells it was written from, and is opened whole or not at all."""

from __future__ import annotations

import json
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
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


FORMS = {
    "one file": lambda s: {"screens": [shuffled(s)]},
    "two files, genes in another order": lambda s: {"screens": [shuffled(s)[:100], shuffled(s)[100:, ::-1]]},
    "dense": lambda s: {"screens": [ad.AnnData(s.X.toarray(), obs=s.obs, var=s.var)]},
    "layer": lambda s: {"screens": [ad.AnnData(s.X.expm1(), s.obs, s.var, layers={"log": s.X})], "layer": "log"},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_store_holds_what_the_files_hold(form, screen, convert):
    options = FORMS[form](screen)
    stored = read_store(convert(*options.pop("screens"), **options))
    assert is_sharded(stored.X)
    memory = stored.to_memory()[screen.obs_names, screen.var_names]
    assert (memory.X != screen.X).nnz == 0
    pd.testing.assert_frame_equal(memory.obs.astype(str), screen.obs.astype(str))


def test_cells_lie_together_by_condition_behind_their_controls(screen, convert):
    stored = read_store(convert(shuffled(screen)))
    label = stored.obs["context"].astype(str) + " " + stored.obs["perturbation"].astype(str)
    names = ["control", *(f"perturbation_{i}" for i in range(1, 7))]
    assert list(dict.fromkeys(label)) == [f"context_{i} {name}" for i in (1, 2) for name in names]
    pd.testing.assert_frame_equal(stored.uns["perturbation_embedding"], screen.uns["perturbation_embedding"])


def test_names_that_two_files_share_are_told_apart(screen, convert):
    adata = read_store(convert(screen, screen))
    assert adata.n_obs == 2 * screen.n_obs
    assert adata.obs_names.is_unique
    assert {name.rpartition("-")[2] for name in adata.obs_names} == {"0", "1"}


def test_sorting_does_not_depend_on_how_much_is_in_memory(screen, convert, monkeypatch, tmp_path):
    whole = read_store(convert(shuffled(screen))).to_memory()
    sizes = {"conversion._READ": 500, "conversion._BUCKET": 700, "folder._CHUNK": 256, "folder._SHARD": 1024}
    for name, size in sizes.items():
        monkeypatch.setattr(f"scvi_tahoe.data._store_{name}", size)
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


def read(store, rows):
    return store.dense(store.fetch(rows), CPU)


@pytest.mark.parametrize(
    ("kind", "pins"),
    [("disk", False), ("disk", True), ("host", False), ("device", False)],
    ids=["disk", "disk, controls kept", "host", "device"],
)
def test_rows_come_in_the_order_asked_for(kind, pins, in_pieces):
    folder, memory = in_pieces
    controls = np.flatnonzero(memory.obs["perturbation"] == "control")
    store = make_store(read_store(folder).X, CPU, kind=kind, pinned_rows=controls if pins else None)
    for rows in map(np.array, ([[5, 2, 5], [0, 9, 2]], [[300, 7, 8], [9, 150, 151]], [[3]])):
        for _ in range(2):
            store.prefetch(rows)
            np.testing.assert_array_equal(read(store, rows), memory.X.toarray()[rows])
    if pins:  # control cells are read once
        shutil.rmtree(folder)
        np.testing.assert_array_equal(read(store, controls), memory.X.toarray()[controls])


def test_genes_are_aligned(in_pieces):
    folder, memory = in_pieces
    wanted = [*memory.var_names[::-1][:50], "absent"]
    alignment = align_genes(wanted, memory.var_names)
    store = make_store(read_store(folder).X, CPU, kind="disk", alignment=alignment, pinned_rows=np.arange(20))
    for rows in (np.array([3, 200, 3]), np.array([4, 1])):
        expected = np.hstack([memory[rows, wanted[:50]].X.toarray(), np.zeros((len(rows), 1))])
        np.testing.assert_array_equal(read(store, rows), expected)


@pytest.mark.parametrize("prior", ["none", "cells"])
def test_training_and_prediction_do_not_depend_on_the_store(prior, in_pieces, make_model, train):
    folder, memory = in_pieces
    stored, setup = read_store(folder), {"batch_key": None}
    there = train(make_model(memory, setup=setup, prior=prior), store="device")
    here = train(make_model(stored, setup=setup, prior=prior))
    pd.testing.assert_frame_equal(here.history["validation_loss"], there.history["validation_loss"])
    for name, weight in there.module.state_dict().items():
        assert torch.equal(weight, here.module.state_dict()[name]), name
    expected = there.predict(progress=False).to_df()
    for predicted in (here.predict(progress=False), there.predict(stored, progress=False)):
        np.testing.assert_array_equal(predicted.to_df(), expected)


def test_a_screen_with_other_genes_is_refused(in_pieces, make_model, train):
    folder, memory = in_pieces
    memory.var_names = [f"other_{i}" for i in range(memory.n_vars)]
    model = train(make_model(memory, setup={"batch_key": None}))
    with pytest.raises(ValueError, match="the data lack 60 of the model's 60 genes"):
        model.predict(read_store(folder), progress=False)


# ---------------------------------------------------------------------------------------------- what is no store


def unreadable_zarr(path, _):
    path.mkdir()
    (path / "zarr.json").write_text("{")


NO_STORE = "is not a store on disk of scvi-tahoe; write one with"


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        pytest.param(lambda *_: None, FileNotFoundError,
            "does not exist; a folder that `scvi-tahoe convert` wrote", id="absent"),
        pytest.param(lambda path, screen: screen.write_h5ad(path), ValueError,
            "is a file, and a store on disk is a folder; write one with: scvi-tahoe convert", id="h5ad"),
        pytest.param(lambda path, _: path.mkdir(), ValueError, NO_STORE, id="empty folder"),
        pytest.param(lambda path, screen: screen.write_zarr(path), ValueError, NO_STORE, id="other zarr"),
        pytest.param(unreadable_zarr, ValueError, "cannot be opened as zarr", id="unreadable zarr"),
    ],
)  # fmt: skip
def test_what_is_no_store_is_refused(write, error, message, screen, tmp_path):
    write(tmp_path / "place", screen)
    with pytest.raises(error, match=f"place {message}"):
        read_store(tmp_path / "place")


@pytest.mark.parametrize("part", ["X/data", "X/indices", "X/indptr", "obs"])
@pytest.mark.parametrize("cut_off", [False, True], ids=["missing", "cut off"])
def test_a_file_that_is_missing_or_cut_off_is_found(part, cut_off, in_pieces):
    folder, _ = in_pieces
    path = max(p for p in (folder / part).rglob("*") if p.is_file() and p.name != "zarr.json")
    path.write_bytes(path.read_bytes()[:-5]) if cut_off else path.unlink()
    with pytest.raises(ValueError, match=rf"store is damaged: {part.split('/')[0]} has \d+ files .* were written"):
        read_store(folder)


def test_a_store_of_a_later_release_is_refused(in_pieces):
    folder, _ = in_pieces
    text = json.loads((folder / "zarr.json").read_text())
    text["attributes"]["scvi_tahoe_store"]["version"] = 2
    (folder / "zarr.json").write_text(json.dumps(text))
    with pytest.raises(ValueError, match=r"written by a later release of scvi-tahoe \(version 2"):
        read_store(folder)


# ---------------------------------------------------------------------------------------------- what is not written


CHANGES = {
    "unlogged": lambda s: setattr(s, "X", s.X.expm1()),
    "nan": lambda s: s.X.data.put(7, np.nan),
    "csc": lambda s: setattr(s, "X", s.X.tocsc()),
    "unlabelled": lambda s: s.obs.insert(0, "context", s.obs.pop("context").where(s.obs_names != s.obs_names[3])),
    "names": lambda s: setattr(s, "obs_names", ["cell"] * s.n_obs),
}


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ("unlogged", {}, ValueError, "X of .*screen_0.h5ad holds normalised counts without a logarithm"),
        ("nan", {}, ValueError, "NaN or infinite"),
        ("csc", {}, ValueError, "expression in .* is a csc_matrix; write it by rows"),
        ("unlabelled", {}, ValueError, r"obs\['context'\] of .* has 1 cells without a value"),
        ("names", {}, ValueError, "cell names must be unique, .* in .*screen_0.h5ad"),
        (None, {"control": "contrl"}, ValueError, r"control='contrl' is not a label of obs\['perturbation'\].*control"),
        (None, {"context_key": "contex"}, KeyError, "'contex' is not a column of obs.*context"),
        (None, {"layer": "log"}, KeyError, "layer='log' is not in layers of"),
    ],
)
def test_a_refused_file_leaves_nothing_behind(change, options, error, message, screen, convert, tmp_path):
    CHANGES.get(change, lambda _: None)(screen)
    with pytest.raises(error, match=message):
        convert(screen, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["screen_0.h5ad"]


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["absent.h5ad"], FileNotFoundError, "absent.h5ad does not exist"),
        (["text.h5ad"], ValueError, "text.h5ad is not a readable h5ad file"),
        (["all.h5ad", "some.h5ad"], ValueError, "some.h5ad has other genes than .*all.h5ad: 10 are missing"),
        ([], ValueError, "no file was given"),
    ],
)
def test_files_that_do_not_make_a_store_are_refused(names, error, message, screen, tmp_path):
    screen.write_h5ad(tmp_path / "all.h5ad")
    screen[:, 10:].write_h5ad(tmp_path / "some.h5ad")
    (tmp_path / "text.h5ad").write_text("no HDF5")
    with pytest.raises(error, match=message):
        write_store([tmp_path / name for name in names], tmp_path / "store", **KEYS)


def test_only_a_store_is_replaced_and_only_when_asked(screen, convert, tmp_path):
    folder = convert(screen)
    with pytest.raises(FileExistsError, match="store exists; give overwrite=True"):
        convert(screen)
    assert read_store(convert(screen[:200].copy(), overwrite=True)).n_obs == 200
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("mine")
    with pytest.raises(FileExistsError, match="precious exists and is not a store on disk; it is not replaced"):
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


def test_values_of_other_zarr_are_verified(screen, tmp_path):
    screen.X.data[5] = np.inf
    screen.write_zarr(tmp_path / "other")
    matrix = ad.io.sparse_dataset(zarr.open_group(tmp_path / "other", mode="r")["X"])
    screen = ad.AnnData(matrix, obs=screen.obs, var=screen.var)
    with pytest.raises(ValueError, match="holds NaN or infinite values"):
        TahoeST.setup_anndata(screen, **KEYS)
