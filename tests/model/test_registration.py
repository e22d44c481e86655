"""What setup_anndata and setup_mudata accept, and what each refusal says."""

from __future__ import annotations

import gc
import pickle
import weakref

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from mudata import MuData

from scvi_tahoe import TahoeST
from scvi_tahoe.data import _registration

PERTURBATIONS = [f"perturbation_{i}" for i in range(1, 7)]
ROWS = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)


def replaced_x(function):
    def change(adata):
        adata.X = function(adata.X.toarray())

    return change


def with_value(value):
    def change(adata):
        adata.X.data[7] = value

    return change


def without_controls_in_one_context(adata):
    return adata[~((adata.obs["perturbation"] == "control") & (adata.obs["context"] == "context_2"))].copy()


def duplicated(axis):
    def change(adata):
        names = list(getattr(adata, axis))
        setattr(adata, axis, [names[1], *names[1:]])

    return change


def unnamed_cells(value):
    def change(adata):
        adata.obs["context"] = adata.obs["context"].astype(object)
        adata.obs.loc[adata.obs_names[:3], "context"] = value

    return change


def with_embedding(value):
    def change(adata):
        adata.obsm["X_embedding"][0, 0] = value

    return change


def with_obs(function):
    return lambda adata: setattr(adata, "_obs", function(adata.obs))


def with_genes(function):
    def change(adata):
        names = function(list(adata.var_names))
        adata._var = adata.var.set_index(names if isinstance(names, pd.MultiIndex) else pd.Index(names, dtype=object))

    return change


def with_part(name, dtype):
    return lambda adata: setattr(adata.X, name, getattr(adata.X, name).astype(dtype))


REFUSALS = {
    "a missing perturbation column": (None, {"perturbation_key": "perturbatio"}, KeyError,
        r"perturbation_key='perturbatio' is not a column of obs \(did you mean 'perturbation'\?\); it has \["),
    "a missing context column": (None, {"context_key": "cell_line"}, KeyError, "context_key='cell_line' is not a col"),
    "a missing batch column": (None, {"batch_key": "plate"}, KeyError, "batch_key='plate' is not a column"),
    "a missing layer": (None, {"layer": "lognorm"}, KeyError,
        r"layer='lognorm' is not in layers; there are \['counts'\], and layer=None takes X"),
    "a missing cell embedding": (None, {"cell_embedding_key": "X_state"}, KeyError,
        r"cell_embedding_key='X_state' is not in obsm; there are \['X_embedding'\]"),
    "a missing table": (None, {"perturbation_embedding_key": "esm2"}, KeyError,
        "perturbation_embedding_key='esm2' is not in uns; there are .*perturbation_embedding"),
    "an unknown control label": (None, {"control": "contrl"}, ValueError,
        r"control='contrl' is not a label of obs\['perturbation'\] \(did you mean 'control'\?\); it has 7 labels.*; "
        "most cells have 'control'"),
    "controls only": (lambda a: a[a.obs["perturbation"] == "control"].copy(), {}, ValueError,
        r"every cell is a control \('control'\); there is nothing to learn from"),
    "a context without controls": (without_controls_in_one_context, {}, ValueError,
        r"no cell is labelled control='control' in these contexts of obs\['context'\]: \['context_2'\]; every context"),
    "cells without a label": (unnamed_cells(np.nan), {}, ValueError, "3 cells without a value; name them or remove"),
    "cells with an empty label": (unnamed_cells(" "), {}, ValueError, "empty label; name them or remove"),
    "two genes of one name": (duplicated("var_names"), {}, ValueError,
        r"gene names must be unique.*\['gene_02'\]; call adata.var_names_make_unique\(\)"),
    "two cells of one name": (duplicated("obs_names"), {}, ValueError,
        r"cell names must be unique.*\['cell_1'\]; call adata.obs_names_make_unique\(\)"),
    "no cells": (lambda a: a[:0].copy(), {}, ValueError, "the screen is empty: 0 cells x 60 genes"),
    "no genes": (lambda a: a[:, :0].copy(), {}, ValueError, "the screen is empty: 368 cells x 0 genes"),
    "no expression": (lambda a: ad.AnnData(obs=a.obs, var=a.var), {}, ValueError, "adata.X is None; put log1p"),
    "NaN in expression": (with_value(np.nan), {}, ValueError, "adata.X holds NaN or infinite values; remove or impute"),
    "infinite expression": (with_value(np.inf), {}, ValueError, "adata.X holds NaN or infinite values"),
    "NaN in a dense layer": (lambda a: a.layers.update({"dense": np.full(a.shape, np.nan)}), {"layer": "dense"},
        ValueError, r"adata.layers\['dense'\] holds NaN"),
    "a NaN cell embedding": (with_embedding(np.nan), {"cell_embedding_key": "X_embedding"}, ValueError,
        "the cell embedding holds NaN or infinite"),
    "counts": (None, {"layer": "counts"}, ValueError,
        r"adata.layers\['counts'\] holds raw counts; run sc.pp.normalize_total\(adata, target_sum=1e4\) and sc.pp"),
    "normalised counts": (replaced_x(np.expm1), {}, ValueError, r"without a logarithm; run sc.pp.log1p\(adata\) first"),
    "a double log": (replaced_x(np.log1p), {}, ValueError, r"log1p ran twice; undo one of them, X = expm1\(X\)"),
    "log2": (replaced_x(lambda x: x / np.log(2)), {}, ValueError, r"multiply them by log\(2\) to get log1p"),
    "scaled values": (replaced_x(lambda x: x - x.mean(0)), {}, ValueError,
        "negative values .* pass the matrix from before sc.pp.scale, or the embedding as cell_embedding_key"),
    "values too large for a logarithm": (replaced_x(lambda x: 9 * x**0.85), {}, ValueError,
        "above 15, which no log1p of counts reaches"),
    "a column twice": (with_obs(lambda obs: pd.concat([obs, obs[["perturbation"]]], axis=1)), {}, ValueError,
        r"obs\['perturbation'\] \(perturbation_key\) occurs 2 times; keep one"),
    "labels that are lists": (with_obs(lambda obs: obs.assign(perturbation=[["A"]] * len(obs))), {}, ValueError,
        "holds list values; labels are text"),
    "a label with NUL": (with_obs(lambda obs: obs.assign(context="a\0b")), {}, ValueError, "NUL or half a character"),
    "a gene with half a character": (with_genes(lambda genes: ["g\ud800", *genes[1:]]), {}, ValueError,
        r"gene names has 'g\\ud800', with NUL or half a character, which no file can hold"),
    "a gene without a name": (with_genes(lambda genes: [np.nan, *genes[1:]]), {}, ValueError, "missing for 1 of 60"),
    "genes of two names": (with_genes(lambda genes: pd.MultiIndex.from_arrays([genes, genes])), {}, ValueError,
        "gene names have 2 levels; one name each is needed"),
    "fewer rows than names": (lambda a: setattr(a, "_X", a.X[:-3]), {}, ValueError,
        r"adata.X has shape \(365, 60\), and there are names for \(368, 60\) cells x features"),
    "a tensor": (lambda a: setattr(a, "_X", torch.ones(a.shape)), {}, ValueError, "adata.X is Tensor; a matrix"),
    "indices that are fractions": (with_part("indices", np.float64), {}, ValueError, "indices are float64 and int32"),
    "indices without a sign": (with_part("indices", np.uint32), {}, ValueError, "its indices are uint32 and int32"),
    "zeros only": (replaced_x(np.zeros_like), {}, ValueError, "holds nothing but zeros"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_setup_refuses_in_one_sentence(case, screen, register):
    change, options, error, message = REFUSALS[case]
    changed = change(screen) if change else None
    screen = changed if isinstance(changed, ad.AnnData) else screen
    with pytest.raises(error, match=message):
        register(screen, **options)


def test_setup_refuses_a_view_and_says_what_to_type(screen, register):
    with pytest.raises(ValueError, match=r"view of other data; run adata = adata.copy\(\) first"):
        register(screen[:100])


@pytest.mark.parametrize(
    "store", [np.asarray, "csr", "csc", "float64", "float16"], ids=["dense", "csr", "csc", "float64", "float16"]
)
def test_expression_may_be_dense_or_sparse_in_any_precision(store, screen, register):
    from scipy import sparse

    dense = screen.X.toarray()
    change = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "float64": np.float64, "float16": np.float16}
    screen.X = dense if callable(store) else change[store](dense)
    assert TahoeST(register(screen)).summary_stats.n_vars == 60


def test_backed_data_are_registered_and_checked(screen, register, tmp_path):
    screen.write_h5ad(tmp_path / "screen.h5ad")
    assert TahoeST(register(ad.read_h5ad(tmp_path / "screen.h5ad", backed="r"))).summary_stats.n_context == 2
    screen.X = screen.X.expm1()
    screen.write_h5ad(tmp_path / "normalised.h5ad")
    with pytest.raises(ValueError, match="without a logarithm"):
        register(ad.read_h5ad(tmp_path / "normalised.h5ad", backed="r"))


def test_labels_may_be_numbers_and_the_control_a_number(screen, register):
    screen.obs["dose"] = screen.obs["perturbation"].cat.codes.astype(int)
    model = TahoeST(register(screen, perturbation_key="dose", control=0))
    assert model.keys.control == "0"
    assert set(model.perturbation_table.names) == {str(i) for i in range(7)}


def test_unused_categories_do_not_count_as_labels(screen, register):
    screen.obs["perturbation"] = screen.obs["perturbation"].cat.add_categories(["never"])
    assert "never" not in TahoeST(register(screen)).perturbation_table.names


def test_setup_changes_nothing_but_scvi_tools_own_marks(screen, simulated, register):
    register(screen, perturbation_embedding_key="perturbation_embedding", cell_embedding_key="X_embedding")
    assert {k for k in screen.uns if not k.startswith("_scvi")} == set(simulated.uns)
    pd.testing.assert_frame_equal(screen.obs, simulated.obs)
    pd.testing.assert_frame_equal(screen.var, simulated.var)
    assert (screen.X != simulated.X).nnz == 0
    assert list(screen.obsm) == list(simulated.obsm)


def test_the_setup_can_be_viewed(screen, register, capsys):
    TahoeST(register(screen, perturbation_embedding_key="perturbation_embedding")).view_anndata_setup()
    shown = capsys.readouterr().out
    assert "perturbation_embedding state registry" in shown
    assert "adata.obs['perturbation']" in shown


def test_a_screen_is_verified_once_between_setup_and_training(screen, make_model, monkeypatch):
    calls = []
    real = _registration.verify_screen
    monkeypatch.setattr(_registration, "verify_screen", lambda *a, **k: calls.append(1) or real(*a, **k))
    model = make_model(screen)
    first = model._training_screen()
    assert model._training_screen() is first
    assert first.index is first.index
    assert len(calls) == 1


def relabelled(adata):
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).replace("control", "nothing")


LATER = {
    "a value in place": (with_value(np.nan), "adata.X holds NaN"),
    "a scale in place": (lambda a: np.expm1(a.X.data, out=a.X.data), "without a logarithm"),
    "another matrix": (replaced_x(np.expm1), "without a logarithm"),
    "an embedding in place": (with_embedding(np.inf), "the cell embedding holds NaN or infinite"),
    "labels": (relabelled, "control='control' is not a label"),
    "labels in place": (unnamed_cells(np.nan), "3 cells without a value"),
    "names of genes": (duplicated("var_names"), "gene names must be unique"),
}


@pytest.mark.parametrize(("change", "message"), LATER.values(), ids=LATER)
def test_data_that_changed_after_setup_are_verified_again(change, message, screen, make_model):
    model = make_model(screen, setup={"cell_embedding_key": "X_embedding"})
    change(screen)
    with pytest.raises(ValueError, match=message):
        model._training_screen()


def test_two_screens_of_one_session_do_not_influence_each_other(screen, register, make_model):
    other = screen[screen.obs["perturbation"].isin(["control", "perturbation_1"])].copy()
    other.obs = other.obs.rename(columns={"perturbation": "target"})
    first = make_model()
    second = make_model(other, setup={"perturbation_key": "target", "batch_key": None})
    assert first.keys.perturbation_key == "perturbation"
    assert len(first.perturbation_table.names) == 7
    assert second.perturbation_table.names == ("control", "perturbation_1")
    assert first.keys.batch_key == "batch"
    assert second.keys.batch_key is None


def test_cells_as_single_rows_are_refused_with_a_way_out():
    with pytest.raises(NotImplementedError, match=r"sets of cells.*read_h5ad\(path, backed='r'\)"):
        TahoeST.setup_annbatch(None)


# ---------------------------------------------------------------- tables


TABLES = {
    "a mapping": dict(zip(PERTURBATIONS, ROWS, strict=True)),
    "a DataFrame": pd.DataFrame(ROWS, index=PERTURBATIONS, columns=list("abcde")),
    "a pair": (PERTURBATIONS, ROWS),
    "names and matrix": {"names": np.array(PERTURBATIONS), "matrix": ROWS},
}


@pytest.mark.parametrize("form", TABLES)
def test_a_table_may_come_in_four_forms(form, screen, register):
    screen.uns["table"] = TABLES[form]
    table = TahoeST(register(screen, perturbation_embedding_key="table")).perturbation_table
    assert table.width == 5
    assert not table.one_hot
    for name, row in zip(PERTURBATIONS, ROWS, strict=True):
        np.testing.assert_array_equal(table.matrix[table.row(name)], row)
    assert not table.matrix[table.row("control")].any()  # the control has zeros where the table lacks it


@pytest.mark.parametrize("form", ["a mapping", "a DataFrame", "names and matrix"])
def test_a_table_survives_writing_the_screen_to_a_file(form, screen, register, tmp_path):
    screen.uns["table"] = TABLES[form]
    screen.write_h5ad(tmp_path / "screen.h5ad")
    table = TahoeST(
        register(ad.read_h5ad(tmp_path / "screen.h5ad"), perturbation_embedding_key="table")
    ).perturbation_table
    for name, row in zip(PERTURBATIONS, ROWS, strict=True):
        np.testing.assert_array_equal(table.matrix[table.row(name)], row)


def test_a_label_without_a_row_is_refused_with_the_nearest_names(screen, register):
    screen.uns["table"] = dict(zip(PERTURBATIONS[:-1], ROWS, strict=False))
    with pytest.raises(ValueError, match=r"no row for 1 of 7 perturbations: \['perturbation_6'\] \(did you mean"):
        register(screen, perturbation_embedding_key="table")


# ---------------------------------------------------------------- MuData


def as_mudata(screen, **modalities):
    rna = ad.AnnData(screen.X, obs=screen.obs[[]].copy(), var=screen.var)
    state = ad.AnnData(screen.obsm["X_embedding"], obs=screen.obs[[]].copy())
    mdata = MuData({"rna": rna, "state": state, **modalities})
    for column in ("perturbation", "context", "batch"):
        mdata.obs[column] = screen.obs[column].reindex(mdata.obs_names)
    return mdata


MODALITIES = {"expression": "rna", "cell_embedding": "state"}
MUDATA_SETUP = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}


def test_a_mudata_gives_the_same_model_as_the_anndata_it_was_made_from(screen, make_model, train):
    mdata = as_mudata(screen)
    TahoeST.setup_mudata(mdata, **MUDATA_SETUP, modalities=MODALITIES)
    options = {"size": {"hidden": 16, "n_layers": 1, "intermediate": 32, "n_heads": 2}, "set_size": 8}
    options |= {"representation": "expression+embedding", "prior": "none"}
    from_mudata = train(TahoeST(mdata, **options))
    keys = {"cell_embedding_key": "X_embedding", "batch_key": None}
    from_anndata = train(make_model(screen, setup=keys, **options))
    first, second = (m.predict(n_cells=5, progress=False).X for m in (from_mudata, from_anndata))
    np.testing.assert_array_equal(first, second)


def test_labels_of_a_mudata_belong_to_the_cells_of_their_name(screen):
    """A MuData lists its cells in an order of its own, that of the expression modality is another."""
    shuffled = screen[np.random.default_rng(0).permutation(screen.n_obs)]
    rna = ad.AnnData(shuffled.X, obs=shuffled.obs[[]].copy(), var=screen.var)
    other = ad.AnnData(screen.obsm["X_embedding"], obs=screen.obs[[]].copy())
    mdata = MuData({"other": other, "rna": rna})
    for column in ("perturbation", "context"):
        mdata.obs[column] = screen.obs[column].reindex(mdata.obs_names)
    TahoeST.setup_mudata(mdata, **MUDATA_SETUP, modalities={"expression": "rna"})
    from scvi_tahoe.data import read_screen

    seen = read_screen(mdata, TahoeST(mdata).keys)
    labels = np.array(seen.perturbation.names)[seen.perturbation.codes]
    np.testing.assert_array_equal(labels, screen.obs["perturbation"].astype(str).loc[list(seen.cells)])


def test_modalities_with_other_cells_are_refused(screen):
    mdata = as_mudata(screen, few=ad.AnnData(screen.obsm["X_embedding"][:50], obs=screen.obs[[]][:50].copy()))
    with pytest.raises(ValueError, match="unpaired observations in modality few"):
        TahoeST.setup_mudata(mdata, **MUDATA_SETUP, modalities={"expression": "rna"})


@pytest.mark.parametrize(
    ("modalities", "error", "message"),
    [
        ({"expresion": "rna"}, ValueError, r"unknown parts \['expresion'\]; allowed are \['cell_embedding'"),
        ({"cell_embedding": "state"}, ValueError, "must name the expression, e.g. modalities={'expression': 'rna'}"),
        ({"expression": "gex"}, KeyError, r"modality 'gex', given for expression, is not in the MuData; it has"),
        ({"expression": "rna", "cell_embedding": "few"}, ValueError, "hold other cells or another order of them"),
    ],
)
def test_wrong_modalities_are_refused(modalities, error, message, screen):
    few = ad.AnnData(screen.obsm["X_embedding"][:50], obs=screen.obs[[]][:50].copy())
    mdata = as_mudata(screen, few=few)
    with pytest.raises(error, match=message):
        TahoeST.setup_mudata(mdata, **MUDATA_SETUP, modalities=modalities)
    assert "_scvi_uuid" not in mdata.uns


# ---------------------------------------------------------------- the constructor


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "huge"}, "size='huge' is unknown; allowed are 'mini', .* or a mapping"),
        ({"representation": "genes"}, "representation='genes' is unknown; allowed are .*'expression'"),
        ({"representation": "embedding"}, "needs a cell embedding; register one with cell_embedding_key"),
        ({"set_size": 0}, "set_size=0 must be 1 or more"),
        ({"batch_encoder": True}, "batch_encoder=True needs batches; register them with batch_key"),
        ({"objective": {"term": {}}}, r"objective has no option 'term' \(did you mean 'terms'\?\); it has 'terms', "),
        ({"network": {"layers": 3}}, r"network has no option 'layers' \(did you mean 'n_layers'"),
        (
            {"prior": "transfer", "network": {"sees_perturbation": False, "base_encoder": True}},
            "sees_perturbation=False knows a perturbation by the cells of its prior, and prior is 'transfer'",
        ),
        ({"prior": "mode"}, "prior='mode' is unknown; allowed are 'auto', 'none'"),
    ],
)
def test_the_constructor_refuses_unknown_options_by_name(options, message, screen, register):
    with pytest.raises(ValueError, match=message):
        TahoeST(register(screen, batch_key=None), **options)


def test_the_initial_weights_follow_the_seed_only(screen, register):
    import torch

    register(screen)
    torch.manual_seed(5)
    first = TahoeST(screen, seed=1).module.state_dict()
    drawn = torch.rand(1)
    second = TahoeST(screen, seed=1).module.state_dict()
    third = TahoeST(screen, seed=2).module.state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not all(torch.equal(first[k], third[k]) for k in first)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


def test_another_label_that_sounds_like_the_controls_is_named(screen, register, recwarn):
    label = screen.obs["perturbation"].astype(str)
    screen.obs["perturbation"] = label.replace({"control": "safe-targeting"})
    with pytest.warns(UserWarning, match=r"has \['safe-targeting'\], which sounds more like it"):
        register(screen, control="perturbation_1")
    recwarn.clear()
    register(screen, control="safe-targeting")
    screen.obs["perturbation"] = label.replace(
        {"control": "wild type", "perturbation_1": "CTRL9"}
    )  # a gene of that name
    register(screen, control="wild type")
    assert not [w for w in recwarn if "sounds more like it" in str(w.message)]


def test_registered_data_are_forgotten_when_nobody_has_them_any_more(screen):
    data = screen.copy()
    TahoeST.setup_anndata(data, "perturbation", "control", context_key="context")
    model = TahoeST(data, size={"hidden": 8, "n_layers": 1, "intermediate": 8, "n_heads": 2}, set_size=4)
    gone = weakref.ref(data)
    copied = pickle.loads(pickle.dumps(data))
    with pytest.raises(ValueError, match="set up your AnnData|make a copy"):
        TahoeST(copied)
    assert TahoeST(data).adata is data  # registered as long as somebody has it
    del data, model
    gc.collect()
    assert gone() is None
