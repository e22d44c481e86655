from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy import sparse

from scvi_tahoe.datasets import norman_k562, papalexi_few_shot, papalexi_thp1


@pytest.fixture(scope="module")
def task():
    return papalexi_few_shot()


def test_papalexi_without_normalisation_holds_all_cells_and_raw_counts():
    adata = papalexi_thp1(normalize=False)
    assert adata.shape == (20_729, 299)
    assert adata.X.max() == 278
    assert np.array_equal(adata.X.data, np.round(adata.X.data))
    assert (adata.obs["perturbation"] == "non-targeting").sum() == 2_386


def test_papalexi_is_log1p_of_counts_normalised_to_200():
    adata = papalexi_thp1()
    assert sparse.issparse(adata.X)
    assert adata.X.dtype == np.float32
    np.testing.assert_allclose(np.asarray(adata.X.expm1().sum(1)).ravel(), 200, rtol=1e-5)


def test_papalexi_keeps_the_counts_beside_the_normalised_values():
    raw, adata = papalexi_thp1(normalize=False), papalexi_thp1()
    assert (adata.layers["counts"] != raw.X).nnz == 0
    assert np.asarray(raw.X.sum(1)).min() > 20


def test_norman_is_k562_alone_unless_all_lines_are_asked_for():
    k562, everything = norman_k562(), norman_k562(all_lines=True)
    assert k562.shape == (3_375, 500)
    assert everything.n_obs == 5_961
    assert set(k562.obs["cell_type"]) == {"k562"}
    assert k562.obs["perturbation"].nunique() == 34
    assert k562.X.dtype == np.float32
    assert k562.X.max() < 10


def test_norman_has_no_category_without_cells():
    counts = norman_k562().obs["perturbation"].value_counts()
    assert counts.min() > 0


def test_few_shot_holds_out_twelve_targets_of_replicate_3_with_its_controls(task):
    held_out = task.held_out.obs
    assert len(task.targets) == 12
    assert set(held_out["target_gene"]) == {*task.targets, task.control}
    assert set(held_out["replicate"]) == {task.context} == {"rep_3"}


def test_few_shot_train_holds_everything_else(task):
    train = task.train.obs
    in_context = train["replicate"] == task.context
    assert not set(task.targets) & set(train["target_gene"][in_context])
    assert set(task.targets) <= set(train["target_gene"][~in_context])
    assert set(task.validation_targets) <= set(train["target_gene"][in_context])
    n_controls = ((train["target_gene"] == task.control) & in_context).sum()
    assert n_controls == (task.held_out.obs["target_gene"] == task.control).sum()
    assert task.train.n_obs + task.held_out.n_obs - n_controls == papalexi_thp1().n_obs


def test_few_shot_is_the_task_that_published_figures_are_quoted_for(task):
    """Cells, labels and values, as fixed when the figures were measured."""

    digests = []
    for adata in (task.train, task.held_out):
        digest = hashlib.sha256()
        counts = sparse.csr_matrix(adata.layers["counts"])
        counts.sort_indices()
        # Integers only: the last bit of a logarithm depends on the processor.
        for part in (counts.data, counts.indices, counts.indptr):
            digest.update(np.asarray(part, dtype=np.int64).tobytes())
        for column in ("target_gene", "replicate"):
            digest.update("|".join(adata.obs[column].astype(str)).encode())
        digests.append(digest.hexdigest()[:16])
    assert digests == ["e3a4b5f2bde0bd64", "8b2b051a45608c51"]
