"""What an evaluation needs beside both matrices, counted in copies of one: nothing is copied whole on the way."""

from __future__ import annotations

import tracemalloc

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from scvi_tahoe.evaluate import EvaluationReference

PERTURBATIONS = [f"p{i}" for i in range(30)]
KEYS = {"perturbation_key": "target", "control": "control", "context_key": "line"}


def screen(seed, *, n_cells=200, n_genes=500, contexts=("a",)):
    """Shuffled cells, dense: no condition lies together by accident."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.repeat(["control", *PERTURBATIONS], n_cells // len(contexts)), len(contexts))
    lines = np.repeat(list(contexts), len(labels) // len(contexts))
    effects = np.random.default_rng(0).gamma(1, 1, (len(PERTURBATIONS) + 1, n_genes))
    counts = rng.poisson(effects[np.unique(labels, return_inverse=True)[1]]).astype(np.float32)
    matrix = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e3)
    order = rng.permutation(len(labels))
    obs = pd.DataFrame({"target": labels[order], "line": lines[order]}, index=order.astype(str))
    return anndata.AnnData(matrix[order], obs=obs, var=pd.DataFrame(index=[f"gene_{i}" for i in range(n_genes)]))


def copies(scored, truth, prediction, *, ceiling, baseline=None):
    """Peak of the memory that Python traces above that of both sides, in units of one matrix."""
    tracemalloc.start()
    try:
        reference = EvaluationReference.from_adata(truth, ceiling=ceiling, **KEYS)
        result = scored(prediction, reference, preset="vcc2025", baseline=baseline)  # kept, as users keep it
        assert result.de_predicted is not None
        return tracemalloc.get_traced_memory()[1] / truth.X.nbytes
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module", autouse=True)
def compiled(scored):
    """Libraries and compiled code are no matrices."""
    copies(scored, *(screen(seed, n_cells=8, n_genes=40) for seed in (1, 2)), ceiling=True, baseline="control")


@pytest.mark.parametrize("contexts", [("a",), ("a", "b")], ids=["one context", "two contexts"])
def test_an_evaluation_with_ceiling_needs_less_than_three_matrices(scored, contexts):
    assert copies(scored, *(screen(seed, contexts=contexts) for seed in (1, 2)), ceiling=True) < 1


def test_a_named_baseline_needs_its_own_cells_and_no_second_copy_of_them(scored):
    assert copies(scored, screen(1), screen(2), ceiling=False, baseline="control") < 2


@pytest.mark.parametrize("kind", [np.asarray, csr_matrix], ids=["dense", "CSR"])
def test_cells_in_a_file_that_do_not_fit_into_memory_are_refused_unread(kind, tmp_path, monkeypatch):
    truth = screen(0, n_cells=4, n_genes=50)
    truth.X = kind(truth.X)
    truth.write_h5ad(tmp_path / "truth.h5ad")
    backed = anndata.read_h5ad(tmp_path / "truth.h5ad", backed="r")
    assert EvaluationReference.from_adata(backed, **KEYS).cells.n_cells == truth.n_obs
    monkeypatch.setattr("scvi_tahoe._memory.free_memory", lambda: 1000.0)
    with pytest.raises(ValueError, match=r"124 cells of the reference take about .*at most \d+ fit.*to_memory"):
        EvaluationReference.from_adata(backed, **KEYS)
