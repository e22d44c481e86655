"""Files for the challenges: what is written can be read back, and what breaks a rule is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scvi_tahoe.evaluate import Rules2026, submission

RULES = Rules2026(n_genes=299, n_targets=2, n_contexts=2, cells_per_condition=20)


@pytest.fixture
def of_2026(task):
    """Twenty cells of each of two targets in two replicates, with their counts."""
    train, conditions = task.train, product(("JAK2", "STAT1", task.control), ("rep_1", "rep_2"))
    labels = [train.obs[key] for key in (task.perturbation_key, task.context_key)]
    cells = anndata.concat([train[(labels[0] == p) & (labels[1] == c)][:20] for p, c in conditions])
    cells.X = cells.layers["counts"].copy()
    return cells


def write_2026(cells, path, **kwargs):
    options = {"genes": list(cells.var_names), "context_key": "replicate", "rules": RULES} | kwargs
    return submission(cells, path, year=2026, **options)


def spoilt(adata, value):
    copy = adata.copy()
    matrix = copy.X.toarray() if sp.issparse(copy.X) else copy.X.copy()
    matrix[0, 0] = value
    copy.X = matrix
    return copy


def test_a_file_of_2026_holds_the_counts_without_controls(of_2026, tmp_path):
    before = of_2026.copy()
    found = anndata.read_h5ad(write_2026(of_2026, tmp_path / "mine.h5ad"))
    assert (of_2026.X != before.X).nnz == 0  # the prediction stays as it is
    pd.testing.assert_frame_equal(of_2026.obs, before.obs)
    assert found.shape == (80, 299)
    assert sorted(found.obs.columns) == ["context", "target_gene"]
    assert (found.obs.groupby(["context", "target_gene"], observed=True).size() == 20).all()
    np.testing.assert_array_equal(found.X.toarray(), of_2026.X[:80].toarray())


def test_moved_measured_cells_are_warned_of(of_2026, tmp_path):
    of_2026.uns["scvi_tahoe_prediction"] = {"cells_from": "measured"}
    with pytest.warns(UserWarning, match="measured cells of other conditions"):
        write_2026(of_2026, tmp_path / "mine.h5ad")


def rules(**changes):
    return {"rules": replace(RULES, **changes)}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        pytest.param(lambda a: a[1:].copy(), {}, "20 cells of every.*'JAK2' in 'rep_1' has 19", id="a cell less"),
        pytest.param(None, {"rules": Rules2026()}, "has 18,533 genes; the list given has 299", id="another panel"),
        pytest.param(None, rules(n_targets=3), "3 targets in 2 contexts; .* has 2 and 2", id="a target less"),
        pytest.param(None, rules(max_total=10), "at most 10 counts a cell", id="large cells"),
        pytest.param(None, rules(max_stored=10), "10 non-zero", id="large file"),
        pytest.param(lambda a: spoilt(a, 0.5), {}, "takes raw counts.*no counts", id="fractions"),
        pytest.param(lambda a: spoilt(a, -1), {}, "takes raw counts", id="negative"),
        pytest.param(lambda a: spoilt(a, np.nan), {}, "takes raw counts.*NaN", id="NaN"),
        pytest.param(None, {"genes": lambda genes: [*genes[1:], "NEW"]}, "lacks 1 of them.*has 1 others", id="genes"),
        pytest.param(None, {"genes": lambda genes: [*genes[1:], genes[1]]}, "names some more than once", id="twice"),
        pytest.param(None, {"context_key": None}, "name their column with context_key", id="no contexts"),
    ],
)
def test_what_breaks_a_rule_of_2026_is_refused(of_2026, tmp_path, change, options, message):
    options = {k: v(list(of_2026.var_names)) if callable(v) else v for k, v in options.items()}
    with pytest.raises(ValueError, match=message):
        write_2026(of_2026 if change is None else change(of_2026), tmp_path / "mine.h5ad", **options)
    assert not list(tmp_path.iterdir())


def test_rules_must_be_positive_and_the_year_known(of_2026, tmp_path):
    with pytest.raises(ValueError, match="must be positive"):
        Rules2026(n_genes=0)
    for year, message in ((2024, "2025 and 2026, none of 2024"), (2025, "written by cell-eval.*cell-eval prep")):
        with pytest.raises(ValueError, match=message):
            submission(of_2026, tmp_path / "mine.vcc", year=year, genes=list(of_2026.var_names))


def test_a_disk_that_changes_the_file_is_noticed_and_the_old_file_stays(of_2026, tmp_path, monkeypatch):
    path = tmp_path / "mine.h5ad"
    path.write_text("the submission of yesterday")

    def damaged(file):
        found = read(file)
        found.X = found.X * 2
        return found

    read = anndata.read_h5ad
    monkeypatch.setattr(anndata, "read_h5ad", damaged)
    with pytest.raises(OSError, match="differs from what was written"):
        write_2026(of_2026, path)
    assert path.read_text() == "the submission of yesterday"
    assert [p.name for p in tmp_path.iterdir()] == ["mine.h5ad"]
