"""The scale of expression is measured, on real screens too."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from scvi_tahoe.data import infer_scale
from scvi_tahoe.data._verification import verify_log1p
from scvi_tahoe.datasets import norman_k562, papalexi_thp1


@pytest.fixture(scope="module", params=[papalexi_thp1, norman_k562], ids=["papalexi", "norman"])
def real_screen(request):
    adata = request.param()
    return adata[:: max(1, adata.n_obs // 1500)].copy()


@pytest.fixture(scope="module")
def counted_screen():
    return papalexi_thp1()[::10].copy()


def values(adata):
    return adata.X.toarray() if sparse.issparse(adata.X) else np.asarray(adata.X)


AS = {"normalized": np.expm1, "log1p": np.asarray, "log1p_twice": np.log1p, "log2p1": lambda x: x / np.log(2)}


@pytest.mark.parametrize("n_genes", [None, 300], ids=["all genes", "300 genes"])
@pytest.mark.parametrize("scale", AS)
def test_the_scale_of_a_real_screen_is_recognised(scale, n_genes, real_screen):
    genes = np.random.default_rng(0).permutation(real_screen.n_vars)[:n_genes]
    assert infer_scale(AS[scale](values(real_screen)[:, genes])).scale == scale


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_scale_is_recognised_in_any_precision(dtype, real_screen):
    assert infer_scale(values(real_screen).astype(dtype)).scale == "log1p"
    assert infer_scale(np.log1p(values(real_screen)).astype(dtype)).scale == "log1p_twice"


def test_counts_are_recognised_in_any_type(counted_screen):
    for dtype in (np.float32, np.int32):
        assert infer_scale(counted_screen.layers["counts"].astype(dtype)).scale == "counts"


@pytest.mark.parametrize("target", [1e3, 1e4, 1e6])
def test_the_normalisation_target_does_not_matter(target, counted_screen):
    counts = counted_screen.layers["counts"].toarray()
    assert infer_scale(np.log1p(counts / counts.sum(1, keepdims=True) * target)).scale == "log1p"


def test_storage_does_not_matter(real_screen, tmp_path):
    dense = values(real_screen)
    reports = [infer_scale(m) for m in (dense, sparse.csr_matrix(dense), sparse.csc_matrix(dense))]
    real_screen.write_h5ad(tmp_path / "screen.h5ad")
    reports.append(infer_scale(ad.read_h5ad(tmp_path / "screen.h5ad", backed="r").X))
    assert len({r.scale for r in reports}) == 1
    assert reports[0].integer_fraction["log1p"] == pytest.approx(reports[-1].integer_fraction["log1p"])


def test_values_without_a_unit_pass_and_counts_do_not():
    smooth = np.random.default_rng(0).gamma(1.0, 1.0, size=(100, 50))
    assert verify_log1p(smooth, "adata.X").scale == "unknown"
    with pytest.raises(ValueError, match=r"^adata.layers\['raw'\] holds raw counts"):
        verify_log1p(np.random.default_rng(0).poisson(2.0, size=(50, 20)), "adata.layers['raw']")


def test_a_logarithm_of_counts_that_were_not_normalised_warns(counted_screen, recwarn):
    counts = counted_screen.layers["counts"].toarray()
    for dtype in (np.float32, np.float64):
        with pytest.warns(UserWarning, match=r"not normalised: .* Run sc.pp.normalize_total\(adata, .*\) before"):
            verify_log1p(np.log1p(counts).astype(dtype), "adata.X")
    recwarn.clear()
    for total in (200, 1e4):
        verify_log1p(np.log1p(counts / counts.sum(1, keepdims=True) * total).astype(np.float32), "adata.X")
    assert not recwarn.list
