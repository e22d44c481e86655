"""Cells are embedded as by Arc's program, reproducibly, in memory and from disk to disk, or refused with a reason."""

from __future__ import annotations

import tracemalloc

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from hub_server import COMMIT, Repository, serve
from se_folder import GOLDEN, counts, proteins, screen, write_folder

from scvi_tahoe import TahoeST, read_store, write_store
from scvi_tahoe.pretrained import (
    LicenceNotAcceptedError,
    _embed_cells,
    embed_cells,
    read_state_embedding,
)
from scvi_tahoe.pretrained._gene_slots import cell_generator, fill_slots, log_values, match_genes, slot_shares

pytestmark = pytest.mark.filterwarnings("ignore:Variable names are not unique", "ignore:.*which means nothing")
SCREENS = ["toy_a", "toy_b", "toy_c"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("se") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return read_state_embedding(folder)


def _embedded(adata, model, **options):
    adata = adata.copy()
    embed_cells(adata, model, progress=False, **options)
    return adata.obsm["X_state"]


@pytest.mark.parametrize("options", [{}, {"seed": 7}, {"seed": None}, {"batch_size": 2}, {"n_draws": 2}], ids=str)
@pytest.mark.parametrize("name", SCREENS)
def test_cells_whose_slots_are_certain_have_the_embeddings_of_arcs_program(model, name, options):
    found = _embedded(screen(name), model, scale="per_cell", **options)
    certain = GOLDEN[f"{name}/same_tokens"]
    assert certain.any() == (name != "toy_b")
    assert np.abs(found - GOLDEN[f"{name}/seed1/X_state"])[certain].max(initial=0) < 3e-5


@pytest.mark.parametrize("name", SCREENS)
def test_slots_hold_the_genes_and_counts_of_arcs_program_where_chance_has_no_say(model, name):
    adata, recorded = screen(name), {key: GOLDEN[f"{name}/seed1/{key}"] for key in ("token_ids", "token_counts")}
    genes = match_genes(adata.var, model.proteins, lender=3)
    values = log_values(sp.csr_matrix(adata.X), genes, "per_cell")
    shares = slot_shares(values)
    rows = np.array([list(model.proteins).index(n) for n in genes.names])
    for i in range(adata.n_obs):
        slots, n_random = fill_slots(values[i], 63, np.random.default_rng(0))
        theirs, their_counts = recorded["token_ids"][i, 1:], recorded["token_counts"][i, 1:]
        assert abs(shares[i, genes.lender] - recorded["token_counts"][i, 0]) < 1e-5
        np.testing.assert_allclose(np.sort(shares[i, slots]), np.sort(their_counts), atol=1e-5)
        above = shares[i, slots] > their_counts.min() + 1e-4
        assert sorted(rows[slots[above]]) == sorted(theirs[their_counts > their_counts.min() + 1e-4])
        assert (n_random == 0) == bool(GOLDEN[f"{name}/same_tokens"][i])


@pytest.mark.parametrize("name", ["toy_a", "toy_b"])
def test_arcs_draws_are_no_further_from_ours_than_ours_from_each_other(model, name):
    ours = np.stack([_embedded(screen(name), model, scale="per_cell", seed=seed) for seed in range(20)])
    between = np.abs(ours[:, None] - ours[None]).max(-1)  # seeds x seeds x cells
    for seed in ("seed1", "seed2"):
        nearest = np.abs(ours - GOLDEN[f"{name}/{seed}/X_state"]).max(-1).min(0)
        assert (nearest <= 1.5 * between.max((0, 1)) + 3e-5).all()


def test_an_embedding_depends_on_the_cell_and_the_seed_alone(model):
    adata = counts()
    found = _embedded(adata, model, batch_size=5)
    np.testing.assert_array_equal(_embedded(adata, model, batch_size=5), found)
    order = np.random.default_rng(0).permutation(adata.n_obs)
    np.testing.assert_allclose(_embedded(adata[order], model, batch_size=3), found[order], atol=1e-6)
    np.testing.assert_allclose(_embedded(adata[3:7], model), found[3:7], atol=1e-6)
    assert np.abs(_embedded(adata, model, seed=1) - found).max(1).min() > 1e-3


def test_a_generator_is_that_of_a_name_a_seed_and_a_draw():
    first = cell_generator("cell", 0, 0).random()
    others = [cell_generator(*key).random() for key in (("cell2", 0, 0), ("cell", 1, 0), ("cell", 0, 1))]
    assert cell_generator("cell", 0, 0).random() == first
    assert len({first, *others}) == 4


def test_more_draws_come_closer_to_the_average_of_many(model):
    adata = counts(4)
    many = _embedded(adata, model, seed=99, n_draws=25)
    np.testing.assert_allclose(np.linalg.norm(many[:, :24], axis=1), 1, atol=1e-5)
    errors = [np.abs(_embedded(adata, model, n_draws=n) - many).mean() for n in (1, 16)]
    assert errors[1] < errors[0] / 2


def test_without_chance_ties_are_taken_in_the_order_of_the_table(model):
    adata = counts()
    order = np.random.default_rng(1).permutation(adata.n_vars)
    order = np.concatenate([[0, 1, 2, 3], order[order > 3]])  # the fourth gene lends its count
    np.testing.assert_allclose(
        _embedded(adata[:, order], model, seed=None), _embedded(adata, model, seed=None), atol=1e-6
    )


FILLED = {  # values, slots, genes that must be there, how many are left to chance
    "more genes than slots": ([5, 4, 3, 2, 1], 3, [0, 1, 2], 0),
    "a tie at the end": ([5, 1, 1, 1], 2, [0], 1),
    "few are expressed": ([5, 0, 0, 4], 3, [0, 3], 1),
    "a panel": ([5, 0, 4], 6, [0, 2], 4),
    "a panel that is all expressed": ([5, 3, 4], 5, [0, 1, 2], 2),
    "nothing expressed": ([0, 0, 0, 0], 3, [], 3),
}


@pytest.mark.parametrize(("values", "n_slots", "sure", "n_open"), FILLED.values(), ids=FILLED)
@pytest.mark.parametrize("generator", [None, np.random.default_rng(0)], ids=["in order", "drawn"])
def test_slots_are_filled_by_rank(values, n_slots, sure, n_open, generator):
    slots, n_random = fill_slots(np.array(values, dtype=np.float32), n_slots, generator)
    assert (len(slots), n_random) == (n_slots, n_open)
    assert set(sure) <= set(slots.tolist())
    if n_slots <= len(values):
        assert len(set(slots.tolist())) == n_slots


def _write(adata, path, kind):
    adata = adata.copy()
    adata.obs["gene"], adata.obs["line"] = "control", "a"
    if kind == "dense h5ad":
        adata.X = adata.X.toarray()
    if kind == "layer of h5ad":
        adata.layers["counts"], adata.X = adata.X, np.zeros(adata.shape, dtype=np.float32)
    if kind.endswith("h5ad"):
        adata.write_h5ad(path.with_suffix(".h5ad"))
        return path.with_suffix(".h5ad")
    adata.write_zarr(path.with_suffix(".zarr"))
    return path.with_suffix(".zarr")


@pytest.mark.parametrize("kind", ["sparse h5ad", "dense h5ad", "layer of h5ad", "zarr"])
def test_cells_go_from_disk_to_disk_in_blocks(model, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(_embed_cells, "_BLOCK", 5)
    monkeypatch.setattr(_embed_cells, "_READ", 700)
    adata, expected = counts(), _embedded(counts(), model, batch_size=2)
    data = _write(adata, tmp_path / "in", kind)
    output = tmp_path / f"out{data.suffix}"
    layer = "counts" if kind.startswith("layer") else None
    report = embed_cells(data, model, output=output, layer=layer, batch_size=2, progress=False)
    written = (anndata.read_h5ad if data.suffix == ".h5ad" else anndata.read_zarr)(output)
    np.testing.assert_allclose(written.obsm["X_state"], expected, atol=1e-6)
    assert written.uns["scvi_tahoe_embedding"]["X_state"]["source"] == report.source == "model"
    assert list(written.obs.columns) == ["gene", "line"]
    assert (written.layers["counts"] if layer else sp.csr_matrix(written.X)).sum() == adata.X.sum()


def test_embeddings_are_written_alone_or_beside_others(model, tmp_path):
    data, expected = _write(counts(), tmp_path / "in", "sparse h5ad"), _embedded(counts(), model)
    alone = tmp_path / "alone.npy"
    embed_cells(data, model, output=alone, progress=False)
    np.testing.assert_allclose(np.load(alone), expected, atol=1e-6)
    embed_cells(data, model, output=data, overwrite=True, progress=False)
    embed_cells(data, model, output=data, key="again", overwrite=True, progress=False)
    written = anndata.read_h5ad(data)
    assert set(written.obsm) == set(written.uns["scvi_tahoe_embedding"]) == {"X_state", "again"}


def test_a_backed_file_is_embedded_where_it_is(model, tmp_path):
    path = _write(counts(), tmp_path / "in", "sparse h5ad")
    backed = anndata.read_h5ad(path, backed="r")
    embed_cells(backed, model, progress=False)
    np.testing.assert_allclose(backed.obsm["X_state"], _embedded(counts(), model), atol=1e-6)


def test_a_store_on_disk_keeps_embeddings_and_trains_from_them(model, tmp_path):
    adata = _screen()
    adata.write_h5ad(tmp_path / "screen.h5ad")
    store = write_store(tmp_path / "screen.h5ad", tmp_path / "screen.zarr", perturbation_key="gene", control="control")
    embed_cells(store, model, output=tmp_path / "embedded.zarr", scale="log1p", progress=False)
    embedded = read_store(tmp_path / "embedded.zarr")
    assert embedded.obsm["X_state"].shape == (adata.n_obs, 34)
    TahoeST.setup_anndata(embedded, "gene", "control", cell_embedding_key="X_state")
    assert TahoeST(embedded, representation="expression+embedding", size="mini")


def test_the_whole_matrix_is_never_in_memory(model, tmp_path, monkeypatch):
    monkeypatch.setattr(_embed_cells, "_BLOCK", 64)
    monkeypatch.setattr(_embed_cells, "_READ", 2**18)
    n_cells, genes = 300, [f"OTHER{i}" for i in range(6_000)] + list(proteins())
    adata = counts(10, genes=genes)
    with h5py.File(tmp_path / "in.h5ad", "w") as file:
        anndata.io.write_elem(file, "/", adata)
        del file["X"]
        matrix = file.create_dataset("X", (n_cells, len(genes)), "float32", chunks=(20, len(genes)), compression=1)
        matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        matrix[:, -130:] = np.resize(adata.X[:, -130:].toarray(), (n_cells, 130))
        del file["obs"]
        anndata.io.write_elem(file, "obs", counts(n_cells, genes=["a"]).obs)
    tracemalloc.start()
    embed_cells(tmp_path / "in.h5ad", model, output=tmp_path / "out.npy", progress=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.6 * 4 * n_cells * len(genes)


def _screen(n_cells=60):
    adata = counts(n_cells)
    adata.obs["gene"] = np.resize(["control", "A", "B"], n_cells)
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.multiply(1e3 / adata.X.sum(1)).tocsr().log1p().astype(np.float32)
    return adata


def test_the_embedding_is_what_setup_anndata_takes(model):
    adata = _screen()
    report = embed_cells(adata, model, layer="counts", progress=False)
    assert (report.n_genes, report.missing, report.matched_share) == (100, (), 1.0)
    TahoeST.setup_anndata(adata, "gene", "control", cell_embedding_key="X_state")
    network = TahoeST(adata, representation="embedding", size="mini")
    network.train(max_steps=2, progress=False)
    assert network.predict(perturbations=["A"], output="embedding", n_cells=4).X.shape == (4, 34)


REFUSED = {
    "normalised values": ({"X": "normalised"}, {}, r"no whole numbers, so no counts \(cell 'c0'.*scale='log1p'"),
    "negative values": ({"X": "negative"}, {}, r"negative values \(cell 'c3': -1\)"),
    "missing values": ({"X": "nan"}, {}, r"NaN or infinite values \(cell 'c3'"),
    "counts as logarithms": ({}, {"scale": "log1p"}, "holds whole numbers, as counts do"),
    "values beyond logarithms": ({"X": "large"}, {"scale": "log1p"}, "no log1p of counts reaches"),
    "no counts at all": ({"X": "zeros"}, {}, "no count in any of the 100 genes"),
    "other genes": ({"genes": "lower"}, {}, r"0 of 100 genes .*\(did you mean 'GENE\d+'"),
    "too few genes": ({"genes": "three"}, {}, "3 of 3 genes .* too few"),
    "no cells": ({"cells": 0}, {}, "has no cells"),
    "an unknown layer": ({}, {"layer": "cuonts"}, "not in layers"),
    "an unknown column of genes": ({}, {"gene_key": "symbol"}, "not a column of var"),
    "an unknown scale": ({}, {"scale": "raw"}, "scale='raw' is unknown"),
    "an unknown precision": ({}, {"precision": "16"}, "precision='16' is unknown"),
    "no draws": ({}, {"n_draws": 0}, "n_draws=0 must be 1 or more"),
    "a batch of none": ({}, {"batch_size": 0}, "batch_size=0 must be"),
    "no device": ({}, {"device": "zz"}, "device='zz' is unknown; give 'auto', 'cpu' or 'cuda'"),
    "an output for cells in memory": ({}, {"output": "x.h5ad"}, "output= is for cells in a file"),
}


def _bad(X=None, genes=None, cells=12):
    adata = counts()
    if genes == "lower":
        adata.var_names = adata.var_names.str.lower()
    if genes == "three":
        adata = adata[:, :3].copy()
    if X == "normalised":
        adata.X = adata.X.multiply(0.37).tocsr()
    if X == "zeros":
        adata.X = adata.X * 0
    if X in ("negative", "nan", "large"):
        dense = adata.X.toarray()
        dense[3, 2] = {"negative": -1, "nan": np.nan, "large": 50.5}[X]
        adata.X = sp.csr_matrix(dense)
    return adata[:cells].copy()


@pytest.mark.parametrize(("data", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_one_clear_message_and_leaves_nothing(model, data, options, message):
    adata = _bad(**data)
    with pytest.raises((ValueError, KeyError), match=message):
        embed_cells(adata, model, progress=False, **options)
    assert not len(adata.obsm)
    assert not adata.uns


def test_nothing_is_half_written(model, tmp_path, monkeypatch):
    data = _write(_bad("nan"), tmp_path / "in", "sparse h5ad")
    with pytest.raises(ValueError, match="NaN"):
        embed_cells(data, model, output=tmp_path / "out.h5ad", progress=False)
    good = _write(counts(), tmp_path / "good", "sparse h5ad")
    monkeypatch.setattr(_embed_cells, "_mean", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        embed_cells(good, model, output=tmp_path / "out.h5ad", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.h5ad", "in.h5ad"]


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (None, ValueError, "output= is needed"),
        ("out.zarr", ValueError, r"is a \.h5ad, and \.npy holds"),
        ("in.h5ad", FileExistsError, "overwrite=True"),
    ],
)
def test_a_place_that_cannot_take_embeddings_is_refused_before_anything(tmp_path, output, error, message):
    data = _write(counts(), tmp_path / "in", "sparse h5ad")
    with pytest.raises(error, match=message):
        embed_cells(data, "no/such-model", output=output and tmp_path / output)


def test_files_that_hold_no_cells_are_refused(model, tmp_path):
    (tmp_path / "text.h5ad").write_text("no cells")
    (tmp_path / "empty").mkdir()
    columns = counts()
    columns.X = columns.X.tocsc()
    columns.write_h5ad(tmp_path / "columns.h5ad")
    for name, message in (
        ("text.h5ad", "not a readable h5ad file"),
        ("empty", "not a readable folder of cells"),
        ("columns.h5ad", "by rows"),
    ):
        with pytest.raises(ValueError, match=message):
            embed_cells(tmp_path / name, model, output=tmp_path / "out.npy")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        embed_cells(tmp_path / "gone.h5ad", model, output=tmp_path / "out.npy")


def test_names_are_found_in_var_through_aliases_and_what_was_not_found_is_reported(model):
    adata = screen("toy_b")
    with pytest.warns(UserWarning, match="cell5, cell6"):
        report = embed_cells(adata, model, scale="per_cell", progress=False)
    assert (report.n_genes, len(report.missing), report.gene_names) == (33, 10, "var_names")
    assert report.empty_cells == ("cell5", "cell6")
    assert "10 not: ABSENT2" in report.text()
    assert "Non-Commercial" in report.text()
    aliases = {name: name.upper() for name in adata.var_names}
    assert embed_cells(adata, model, scale="per_cell", aliases=aliases, progress=False).n_genes == 39
    assert embed_cells(screen("toy_c"), model, scale="per_cell", progress=False).gene_names == "var['symbol']"
    chosen = embed_cells(screen("toy_c"), model, scale="per_cell", gene_key="short", progress=False)
    assert chosen.gene_names == "var['short']"
    assert chosen.n_genes < 110


def test_counts_and_logarithms_are_read_as_they_are_declared(model):
    adata = counts(40)
    logs = adata.copy()
    logs.X = logs.X.log1p()
    np.testing.assert_allclose(_embedded(logs, model, scale="log1p"), _embedded(adata, model), atol=1e-5)
    # these cells are so shallow that their values look like logarithms
    assert np.abs(_embedded(adata, model, scale="per_cell") - _embedded(adata, model)).max() > 1e-3


@pytest.mark.filterwarnings("ignore::scvi_tahoe.pretrained.LicenceWarning")
def test_the_hub_asks_for_the_licence_and_sends_no_more_than_is_needed(folder, tmp_path, use_hub):
    (folder / "se_epoch4.safetensors").write_bytes(b"not wanted")
    (folder / "se_epoch16.ckpt").write_bytes(b"not wanted")
    repository, adata = Repository(folder), counts()
    with serve(repository) as address:
        use_hub(address)
        with pytest.raises(LicenceNotAcceptedError, match="accept_license=True"):
            embed_cells(adata, "someone/st-model", progress=False)
        cache = {"accept_license": True, "cache_dir": tmp_path / "hub"}
        report = embed_cells(adata, "someone/st-model", progress=False, **cache)
    assert (report.source, report.revision) == ("someone/st-model", COMMIT)
    assert {name for name, _ in repository.sent} == {"config.yaml", "model.safetensors", "protein_embeddings.pt"}


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_lower_precision_stays_near_and_leaves_no_setting_behind(model, precision):
    import torch

    adata, before = counts(), torch.get_float32_matmul_precision()
    exact, found = _embedded(adata, model), _embedded(adata, model, precision=precision)
    assert torch.get_float32_matmul_precision() == before
    assert (exact[:, :24] * found[:, :24]).sum(1).min() > 0.99
    assert np.abs(exact - found)[:, 24:].max() < 0.1 * np.abs(exact[:, 24:]).max()
