from __future__ import annotations

import hashlib

import numpy as np
from scipy import sparse

from scvi_tahoe.datasets import norman_k562, papalexi_few_shot, papalexi_thp1


def test_papalexi_holds_all_cells_raw_or_as_log1p_of_200_counts():
    raw, adata = papalexi_thp1(normalize=False), papalexi_thp1()
    assert raw.shape == adata.shape == (20_729, 299)
    assert raw.X.max() == 278
    assert np.array_equal(raw.X.data, np.round(raw.X.data))
    assert np.asarray(raw.X.sum(1)).min() > 20
    assert (raw.obs["perturbation"] == "non-targeting").sum() == 2_386
    assert sparse.issparse(adata.X)
    assert adata.X.dtype == np.float32
    np.testing.assert_allclose(np.asarray(adata.X.expm1().sum(1)).ravel(), 200, rtol=1e-5)
    assert (adata.layers["counts"] != raw.X).nnz == 0


def test_norman_is_k562_alone_unless_all_lines_are_asked_for():
    k562, everything = norman_k562(), norman_k562(all_lines=True)
    assert k562.shape == (3_375, 500)
    assert everything.n_obs == 5_961
    assert set(k562.obs["cell_type"]) == {"k562"}
    assert k562.obs["perturbation"].nunique() == 34
    assert k562.X.dtype == np.float32
    assert k562.X.max() < 10
    assert k562.obs["perturbation"].value_counts().min() > 0  # no category without cells


def test_few_shot_holds_out_twelve_targets_and_trains_on_the_rest():
    task, n_cells = papalexi_few_shot(), papalexi_thp1().n_obs
    train, held_out = task.train.obs, task.held_out.obs
    assert len(task.targets) == 12
    assert set(held_out["target_gene"]) == {*task.targets, task.control}
    assert set(held_out["replicate"]) == {task.context} == {"rep_3"}
    in_context = train["replicate"] == task.context
    assert not set(task.targets) & set(train["target_gene"][in_context])
    assert set(task.targets) <= set(train["target_gene"][~in_context])
    assert set(task.validation_targets) <= set(train["target_gene"][in_context])
    n_controls = ((train["target_gene"] == task.control) & in_context).sum()
    assert n_controls == (held_out["target_gene"] == task.control).sum()
    assert task.train.n_obs + task.held_out.n_obs - n_controls == n_cells
    # cells, labels and values are those that published figures are quoted for
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
