"""Files for the challenges: what is written can be read back, and what breaks a rule is refused."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scvi_tahoe.evaluate import EvaluationWarning, Rules2026, submission
from scvi_tahoe.evaluate._submission_2025 import read_2025
from scvi_tahoe.evaluate._submission_2026 import read_2026

RULES = Rules2026(n_genes=299, n_targets=2, n_contexts=2, cells_per_condition=20)


@pytest.fixture
def of_2025(task, predicted):
    controls = task.held_out[task.held_out.obs[task.perturbation_key] == task.control]
    both = anndata.concat([predicted, controls])
    both.obs_names_make_unique()
    return both


@pytest.fixture
def of_2026(task):
    """Twenty cells of each of two targets in two replicates, with their counts."""
    parts = []
    for target in ("JAK2", "STAT1", task.control):
        for context in ("rep_1", "rep_2"):
            train = task.train
            rows = (train.obs[task.perturbation_key] == target) & (train.obs[task.context_key] == context)
            parts.append(train[rows][:20])
    cells = anndata.concat(parts)
    cells.X = cells.layers["counts"].copy()
    return cells


def write_2026(cells, path, **kwargs):
    options = {"genes": list(cells.var_names), "context_key": "replicate", "rules": RULES} | kwargs
    return submission(cells, path, year=2026, **options)


def test_a_file_of_2025_holds_the_prediction_in_the_challenges_order(of_2025, tmp_path):
    genes = list(of_2025.var_names[::-1])
    path = submission(of_2025, tmp_path / "mine.vcc", year=2025, genes=genes)
    found = read_2025(path)
    assert list(found.var_names) == genes
    assert list(found.obs.columns) == ["target_gene"]
    assert found.X.dtype == np.float32
    np.testing.assert_array_equal(found.X.toarray()[:, ::-1], of_2025.X.toarray())
    assert [p.name for p in tmp_path.iterdir()] == ["mine.vcc"]


def test_a_file_of_2025_is_the_one_that_prep_writes(of_2025, tmp_path):
    import shutil

    if shutil.which("zstd") is None:
        pytest.skip("cell-eval prep needs the program zstd")
    from cell_eval._cli._prep import strip_anndata

    genes = list(of_2025.var_names)
    plain = anndata.AnnData(of_2025.X.copy(), obs=of_2025.obs[["target_gene"]].astype(str), var=of_2025.var[[]])
    strip_anndata(plain, str(tmp_path / "theirs.vcc"), genes, encoding=32)
    theirs = read_2025(tmp_path / "theirs.vcc")
    ours = read_2025(submission(of_2025, tmp_path / "ours.vcc", year=2025, genes=genes))
    assert (ours.X != theirs.X).nnz == 0
    assert list(ours.obs["target_gene"]) == list(theirs.obs["target_gene"])
    assert list(ours.obs_names) == list(theirs.obs_names)


def spoilt(adata, value):
    copy = adata.copy()
    matrix = copy.X.toarray() if sp.issparse(copy.X) else copy.X.copy()
    matrix[0, 0] = value
    copy.X = matrix
    return copy


def test_what_breaks_a_rule_of_2025_is_refused(of_2025, tmp_path):
    genes = list(of_2025.var_names)
    path = tmp_path / "mine.vcc"
    no_control = of_2025[of_2025.obs["target_gene"] != "non-targeting"].copy()
    counts = of_2025.copy()
    counts.X = np.round(counts.X.toarray())
    numbers = of_2025.obs["target_gene"].value_counts().to_dict()
    cases = [
        (of_2025, {"genes": [*genes[1:], "NEW"]}, "lacks 1 of them.*has 1 others"),
        (of_2025, {"genes": [*genes, genes[0]]}, "names some more than once"),
        (no_control, {}, "needs control cells"),
        (counts, {}, "takes log1p expression.*whole numbers"),
        (spoilt(of_2025, np.nan), {}, "NaN"),
        (spoilt(of_2025, 20), {}, "largest value"),
        (of_2025, {"n_cells": numbers | {"MYC": 7}}, "'MYC', has 35 instead of 7"),
        (of_2025, {"n_cells": numbers | {"NEW": 7}}, "'NEW', has 0 instead of 7"),
    ]
    for prediction, options, message in cases:
        with pytest.raises(ValueError, match=message):
            submission(prediction, path, year=2025, **({"genes": genes} | options))
    submission(of_2025, path, year=2025, genes=genes, n_cells=numbers)
    with pytest.raises(KeyError, match="no obs column 'gene'"):
        submission(of_2025, path, year=2025, genes=genes, perturbation_key="gene")


def test_another_panel_of_genes_than_that_of_2025_is_told(of_2025, tmp_path):
    with pytest.warns(EvaluationWarning, match="scores 18,080 genes, and this file has 299"):
        submission(of_2025, tmp_path / "mine.vcc", year=2025, genes=list(of_2025.var_names))


def test_too_many_cells_are_refused(of_2025, tmp_path, monkeypatch):
    from scvi_tahoe.evaluate import _submission_2025

    monkeypatch.setattr(_submission_2025, "MAX_CELLS", 100)
    with pytest.raises(ValueError, match="at most 100 cells"):
        submission(of_2025, tmp_path / "mine.vcc", year=2025, genes=list(of_2025.var_names))


def test_a_file_of_2026_holds_the_counts_without_controls(of_2026, tmp_path):
    found = read_2026(write_2026(of_2026, tmp_path / "mine.h5ad"))
    assert found.shape == (80, 299)
    assert sorted(found.obs.columns) == ["context", "target_gene"]
    assert (found.obs.groupby(["context", "target_gene"], observed=True).size() == 20).all()
    np.testing.assert_array_equal(found.X.toarray(), of_2026.X[:80].toarray())


def test_what_breaks_a_rule_of_2026_is_refused(of_2026, tmp_path):
    path = tmp_path / "mine.h5ad"
    genes = list(of_2026.var_names)
    small = {"n_genes": 299, "n_targets": 2, "n_contexts": 2, "cells_per_condition": 20}
    fractional = spoilt(of_2026, 0.5)
    cases = [
        (of_2026[1:].copy(), {}, "20 cells of every target.*'JAK2' in 'rep_1' has 19"),
        (of_2026, {"rules": Rules2026()}, "has 18,533 genes; the list given has 299"),
        (
            of_2026,
            {"rules": Rules2026(**(small | {"n_targets": 3}))},
            "3 targets in 2 contexts; the prediction has 2 and 2",
        ),
        (of_2026, {"rules": Rules2026(**small, max_total=10)}, "at most 10 counts a cell"),
        (of_2026, {"rules": Rules2026(**small, max_stored=10)}, "10 non-zero"),
        (fractional, {}, "takes raw counts.*no counts"),
        (spoilt(of_2026, -1), {}, "takes raw counts"),
        (of_2026, {"genes": [*genes[1:], "NEW"]}, "lacks 1 of them"),
        (of_2026, {"context_key": None}, "name their column with context_key"),
    ]
    for prediction, options, message in cases:
        with pytest.raises(ValueError, match=message):
            write_2026(prediction, path, **options)
    assert not list(tmp_path.iterdir())


def test_rules_must_be_positive_and_the_year_known(of_2026, tmp_path):
    with pytest.raises(ValueError, match="must be positive"):
        Rules2026(n_genes=0)
    with pytest.raises(ValueError, match="challenges of 2025 and 2026, none of 2024"):
        submission(of_2026, tmp_path / "x", year=2024, genes=[])


def test_a_disk_that_changes_the_file_is_noticed_and_the_old_file_stays(of_2026, tmp_path, monkeypatch):
    from scvi_tahoe.evaluate import _submission

    path = tmp_path / "mine.h5ad"
    path.write_text("the submission of yesterday")

    def damaged(table, file):
        other = table.copy()
        other.X = other.X * 2
        other.write_h5ad(file)

    monkeypatch.setattr(_submission, "write_2026", damaged)
    with pytest.raises(OSError, match="differs from what was written"):
        write_2026(of_2026, path)
    assert path.read_text() == "the submission of yesterday"
    assert [p.name for p in tmp_path.iterdir()] == ["mine.h5ad"]


def test_the_prediction_stays_as_it_is(of_2026, tmp_path):
    before = of_2026.X.copy()
    obs = pd.DataFrame(of_2026.obs)
    write_2026(of_2026, tmp_path / "mine.h5ad")
    assert (of_2026.X != before).nnz == 0
    pd.testing.assert_frame_equal(of_2026.obs, obs)
