"""Matrices: genes are matched by name, and rows on disk are read in runs."""

from __future__ import annotations

import importlib.util
import logging

import anndata as ad
import numpy as np
import pytest
import zarr
from scipy import sparse

from scvi_tahoe.data import DiskRows, align_genes
from scvi_tahoe.data._matrix import runs_of

WITH_ANNBATCH = importlib.util.find_spec("annbatch") is not None
GENES = [f"G{i}" for i in range(20)]
CELLS = np.random.default_rng(0).poisson(1.0, size=(5, 20)).astype(np.float32)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix], ids=["dense", "csr"])
@pytest.mark.parametrize("missing", [0, 2])
def test_columns_come_in_the_order_of_the_model(form, missing):
    order = np.random.default_rng(1).permutation(20)[missing:]
    alignment = align_genes(GENES, ["other", *np.array(GENES)[order]])
    block = np.concatenate([np.full((5, 1), 9.0, np.float32), CELLS[:, order]], axis=1)
    aligned = alignment.apply(form(block))
    assert sparse.issparse(aligned) == (form is sparse.csr_matrix)
    expected = CELLS.copy()
    expected[:, [i for i in range(20) if i not in order]] = 0
    np.testing.assert_array_equal(aligned.toarray() if sparse.issparse(aligned) else aligned, expected)
    assert (len(alignment.missing), alignment.surplus) == (missing, 1)


def test_genes_in_order_are_passed_through():
    alignment = align_genes(GENES, GENES)
    assert alignment.is_identity
    assert alignment.apply(CELLS) is CELLS


@pytest.mark.parametrize(
    ("names", "message"),
    [
        pytest.param(GENES[:17],
            r"lack 3 of the model's 20 genes, e.g. \['G17'.*max_missing_genes \(now 0.1", id="three missing"),
        pytest.param([f"ENSG{i:05d}" for i in range(20)],
            r"the data have e.g. \['ENSG00000', .*Bring the gene names to the model's", id="other identifiers"),
    ],
)  # fmt: skip
def test_too_many_missing_genes_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        align_genes(GENES, names)


def test_the_report_counts_genes_and_names_missing_ones():
    expected = "19 genes matched by name, 1 missing and taken as zero (G19), 1 left out"
    assert str(align_genes(GENES, ["x", *GENES[:19]])) == expected


@pytest.fixture
def matrix():
    return sparse.random(400, 50, 0.2, "csr", dtype=np.float32, random_state=0)


@pytest.fixture
def on_disk(matrix, tmp_path):
    ad.AnnData(matrix).write_zarr(tmp_path / "matrix")
    return ad.io.sparse_dataset(zarr.open_group(tmp_path / "matrix", mode="r")["X"])


def test_rows_with_few_entries_between_them_come_in_one_run():
    indptr = np.arange(0, 1010, 10)
    rows = np.array([3, 4, 7, 20, 22])
    assert runs_of(rows, indptr, 0).tolist() == [[3, 5], [7, 8], [20, 21], [22, 23]]
    assert runs_of(rows, indptr, 10).tolist() == [[3, 5], [7, 8], [20, 23]]
    assert runs_of(rows, indptr, 20).tolist() == [[3, 8], [20, 23]]
    assert runs_of(rows, indptr, 1000).tolist() == [[3, 23]]
    assert runs_of(np.array([99]), indptr, 0).tolist() == [[99, 100]]


@pytest.mark.parametrize("rows", [[], [7], [0, 399], [5, 4, 4, 398, 200], range(400), range(100, 0, -1)])
def test_rows_are_those_of_the_matrix(rows, matrix, on_disk):
    rows = np.array(rows, dtype=np.int64)
    np.testing.assert_array_equal(DiskRows(on_disk)[rows].toarray(), matrix[rows].toarray())


def test_entries_are_counted_without_reading_them(matrix, on_disk):
    assert DiskRows(on_disk).n_entries(np.array([3, 9])) == matrix[[3, 9]].nnz


def test_reading_goes_on_after_rows_that_do_not_exist(matrix, on_disk):
    rows = DiskRows(on_disk)
    with pytest.raises(IndexError):
        rows[np.array([400])]
    np.testing.assert_array_equal(rows[np.array([2])].toarray(), matrix[[2]].toarray())


def test_reading_goes_on_after_a_file_that_cannot_be_read(matrix, on_disk, tmp_path):
    rows = DiskRows(on_disk)
    files = (path for path in (tmp_path / "matrix" / "X" / "data").rglob("*") if path.is_file())
    path = max(files, key=lambda path: path.stat().st_size)
    content = path.read_bytes()
    path.write_bytes(content[:20])
    with pytest.raises(Exception):  # noqa: B017, PT011  zarr, numcodecs and zarrs raise kinds of their own
        rows[np.arange(400)]
    path.write_bytes(content)
    np.testing.assert_array_equal(rows[np.arange(400)].toarray(), matrix.toarray())


def test_without_annbatch_one_line_names_the_extra_and_with_it_none(on_disk, caplog):
    before = zarr.config.get("codec_pipeline.path")
    with caplog.at_level(logging.WARNING, "scvi_tahoe"):
        DiskRows(on_disk)
    assert ["pip install 'scvi-tahoe[annbatch]'" in message for message in caplog.messages] == [True] * (
        not WITH_ANNBATCH
    )
    assert zarr.config.get("codec_pipeline.path") == before
