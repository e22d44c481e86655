"""Screens that make no sense, labels with any name, folders in use, flipped bits: each with its own words."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from scvi_tahoe import (
    EvaluationReference,
    TahoeEnsemble,
    TahoeST,
    evaluate,
    read_store,
    response,
    screen_quality,
    write_store,
)
from scvi_tahoe._matrices import trusted_matrix
from scvi_tahoe.files import FolderInUseError, UnsafeFileError, locked, read_h5ad, verify_zarr

KEYS = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}
#: functions of tensors, and small ones that the package calls in its innermost loops
UNCHECKED = {"check_collapse", "mean_cosine"}


def listed_functions():
    """Return the functions of the page of the API for users, by their name there."""
    page = (Path(__file__).parents[1] / "docs" / "api" / "index.md").read_text("utf-8")
    module, found = "", {}
    for line in page.splitlines():
        if match := re.match(r"\.\. currentmodule:: (\S+)", line):
            module = match[1]
        elif match := re.match(r"    ([a-z]\w+)$", line):
            found[f"{module}.{match[1]}"] = getattr(import_module(module), match[1], None)
    return {name: value for name, value in found.items() if inspect.isfunction(value)}


def is_checked(function):
    while hasattr(function, "__wrapped__"):
        if function.__code__.co_filename.endswith("_arguments.py"):
            return True
        function = function.__wrapped__
    return False


def test_every_function_that_the_api_lists_checks_its_arguments():
    functions = listed_functions()
    assert len(functions) > 50
    takes = {name: f for name, f in functions.items() if inspect.signature(f).parameters}
    assert [n for n, f in takes.items() if not is_checked(f) and n.rpartition(".")[2] not in UNCHECKED] == []


def with_values(screen, change):
    found = screen.copy()
    found.X = change(np.asarray(screen.X.toarray() if sp.issparse(screen.X) else screen.X))
    return found


def with_index(screen, value):
    found = with_values(screen, sp.csr_matrix)
    found.X.indices[0] = value
    return found


@pytest.mark.parametrize("preset", ["quick", "vcc2025"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda s: with_values(s, lambda x: x * 0), "the reference is zero everywhere", id="zeros"),
        pytest.param(lambda s: s[:, :0].copy(), "The reference has no genes", id="no genes"),
        pytest.param(lambda s: s[:0].copy(), "The reference has no cells", id="no cells"),
        pytest.param(lambda s: with_index(s, -1), "is damaged: it has an entry in column -1", id="index"),
    ],
)
def test_a_reference_that_nothing_can_be_compared_with_is_refused(screen, change, message, preset):
    with pytest.raises(ValueError, match=message):
        evaluate(screen, change(screen), preset=preset, **KEYS)


def stored(screen, folder):
    screen.write_h5ad(folder / "cells.h5ad")
    write_store(folder / "cells.h5ad", folder / "store", **KEYS)


@pytest.mark.parametrize("value", [-1, 10**6])
@pytest.mark.parametrize(
    "take",
    [
        pytest.param(lambda s, _: screen_quality(s, **KEYS, n_permutations=0), id="screen_quality"),
        pytest.param(lambda s, _: response.effects_table(s, **KEYS), id="effects_table"),
        pytest.param(stored, id="write_store"),
    ],
)
def test_an_index_out_of_range_is_refused_wherever_cells_come_in(screen, take, value, tmp_path):
    with pytest.raises(ValueError, match="is damaged"):
        take(with_index(screen, value), tmp_path)


def outside(matrix, part, value):
    getattr(matrix, part)[0] = value
    return matrix


@pytest.mark.parametrize(
    "matrix",
    [
        pytest.param(lambda x: outside(x.tocoo(), "row", 10**6), id="row of COO"),
        pytest.param(lambda x: outside(x.tocoo(), "col", -1), id="column of COO"),
        pytest.param(lambda x: outside(sp.bsr_matrix(x), "indices", 10**6), id="block of BSR"),
        pytest.param(lambda x: outside(sp.bsr_matrix(x), "indptr", 7), id="start of BSR"),
        pytest.param(lambda x: outside(x.tolil(), "rows", [10**6]), id="row of LIL"),
    ],
)
def test_an_entry_outside_is_refused_before_a_matrix_is_converted(screen, matrix):
    cells = sp.csr_matrix(screen.X)
    with pytest.raises(ValueError, match=r"adata\.X is damaged: "):
        trusted_matrix(matrix(cells.copy()), "adata.X")
    for kind in (sp.coo_array, sp.bsr_matrix, sp.lil_matrix, sp.dok_matrix, sp.dia_matrix):
        np.testing.assert_array_equal(trusted_matrix(kind(cells), "adata.X").toarray(), cells.toarray())


@pytest.mark.parametrize("dtype", [np.float16, ">f4", ">f8", np.longdouble], ids=str)
def test_numbers_that_compiled_code_does_not_take_become_ordinary_ones(screen, dtype):
    dense = np.asarray(screen.X[:9].todense() if sp.issparse(screen.X) else screen.X[:9])
    found = trusted_matrix(dense.astype(dtype), "adata.X")
    assert found.dtype in (np.float32, np.float64)
    np.testing.assert_allclose(found, dense, rtol=1e-3)


@pytest.mark.parametrize("key", ["origin", "support", "expected_error", "uncertainty", "gene", "change", "n_cells"])
def test_a_column_of_labels_keeps_its_labels_whatever_its_name(screen, train, key):
    screen.obs = screen.obs.rename(columns={"perturbation": key})
    keys = {**KEYS, "perturbation_key": key}
    TahoeST.setup_anndata(screen, **keys)
    model = train(TahoeST(screen, size={"hidden": 8, "n_layers": 1, "intermediate": 8, "n_heads": 2}, set_size=4))
    tables = {
        "predict": model.predict(progress=False, n_cells=40).obs,
        "ensemble": TahoeEnsemble([model, model]).predict(progress=False, n_cells=40).obs,
        "effects": model.predict_effects(),
        "effects as AnnData": model.predict_effects(as_adata=True).obs,
        "quality": screen_quality(screen, **keys, n_permutations=0, progress=False),
        "prior": model.prior_report(),
    }
    for name, table in tables.items():
        assert not table.columns.duplicated().any(), name
        assert set(table[key].astype(str)) <= {f"perturbation_{i}" for i in range(1, 7)}, name


def test_a_warning_points_to_the_line_that_called(screen):
    rows = np.flatnonzero(screen.obs["perturbation"] != "control")[::9]
    few = screen[np.union1d(rows, np.flatnonzero(screen.obs["perturbation"] == "control"))].copy()
    with pytest.warns(UserWarning, match="number of cells") as caught:
        evaluate(few, few.copy(), preset="quick", representation_check="warn", **KEYS)
    assert {warning.filename for warning in caught if "number of cells" in str(warning.message)} == {__file__}


def test_two_trainings_in_one_folder_are_refused(make_model, train, tmp_path, monkeypatch):
    from scvi_tahoe.files import _lock

    with locked(tmp_path / "run"), monkeypatch.context() as patched:
        patched.setattr(_lock, "_MINE", {})  # as another process sees it
        with pytest.raises(FolderInUseError, match=r"is in use by process \d+ on .*, for 0 minutes"):
            train(make_model(), save_dir=tmp_path / "run")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_a_flipped_bit_is_named_in_predictions_stores_and_lists_of_ensembles(make_model, train, screen, tmp_path):
    model = train(make_model())
    model.predict(path=tmp_path / "p.zarr", progress=False, n_cells=20)
    verify_zarr(tmp_path / "p.zarr")
    flip(max((tmp_path / "p.zarr" / "X").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size))
    with pytest.raises(UnsafeFileError, match="does not match its checksum"):
        verify_zarr(tmp_path / "p.zarr")

    screen.uns.clear()
    stored(screen, tmp_path)
    read_store(tmp_path / "store")
    flip(next(p for p in (tmp_path / "store" / "obs" / "perturbation").rglob("*") if p.is_file() and "c" in p.parts))
    with pytest.raises(UnsafeFileError, match="obs/perturbation.* does not match its checksum"):
        read_store(tmp_path / "store")

    TahoeEnsemble([model, model]).save(tmp_path / "ensemble")
    members = tmp_path / "ensemble" / "ensemble.json"
    members.write_text(members.read_text().replace("member_1", "member_0"))
    with pytest.raises(UnsafeFileError, match=r"ensemble.json .* does not match its checksum"):
        TahoeEnsemble.load(tmp_path / "ensemble", False)


def test_an_array_that_claims_more_than_the_file_holds_is_refused(screen, tmp_path):
    screen.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        del file["X"]
        file.create_dataset("X", (screen.n_obs, 10**8), "f4", chunks=(1, 10**6))
    with pytest.raises(UnsafeFileError, match="X claims .* bytes and holds 0 of them"):
        read_h5ad(tmp_path / "cells.h5ad")


def test_dense_cells_in_a_file_are_predicted_from_and_scored_as_in_memory(make_model, train, screen, tmp_path):
    whole = with_values(screen, np.asarray)
    whole.write_h5ad(tmp_path / "cells.h5ad")
    model = train(make_model(whole))
    found = [
        (model.predict(cells, progress=False, n_cells=20), cells)
        for cells in (whole.copy(), ad.read_h5ad(tmp_path / "cells.h5ad", backed="r"))
    ]
    first, second = (np.asarray(p.X.toarray() if sp.issparse(p.X) else p.X) for p, _ in found)
    np.testing.assert_array_equal(first, second)
    references = [EvaluationReference.from_adata(cells, **KEYS) for _, cells in found]
    scores = [evaluate(found[0][0], reference, preset="quick").summary for reference in references]
    assert scores[0].equals(scores[1])
