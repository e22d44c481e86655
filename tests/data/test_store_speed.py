"""The fast ways to the rows of a minibatch give the same rows as the slow ones."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scvi_tahoe.data import DeviceStore, make_store
from scvi_tahoe.data._compact_rows import CompactRows, fits_half
from scvi_tahoe.data._store import _MOST_PENDING, HostStore

CPU = torch.device("cpu")
ROWS = np.array([[5, 2, 5, 7], [0, 9, 2, 9]])
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def log1p_rows(n_rows: int, n_features: int, seed: int = 0) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    matrix = sp.random(n_rows, n_features, density=0.05, format="csr", dtype=np.float32, rng=rng)
    matrix.data = np.log1p(rng.integers(1, 50, matrix.nnz)).astype(np.float32)
    return matrix


# 16 bits hold 32,767 columns with a sign and 65,536 without; one more needs 32 bits
@pytest.mark.parametrize("n_features", [3, 32_767, 32_769, 65_536, 65_537])
@pytest.mark.parametrize("half", [False, True])
def test_compact_rows_become_the_dense_rows_at_every_width(n_features, half):
    matrix = log1p_rows(10, n_features)
    matrix[9, n_features - 1] = 2.5  # the last column, where a number that is too narrow would wrap
    compact = CompactRows.from_csr(matrix, half=half)
    expected = torch.from_numpy(matrix.toarray()[ROWS])
    found = compact.dense(torch.from_numpy(ROWS), CPU)
    assert torch.equal(found, expected.half().float() if half else expected)
    assert compact.indices.dtype == (torch.int16 if n_features <= 65_536 else torch.int32)


def test_rows_without_entries_are_zero():
    compact = CompactRows.from_csr(sp.csr_matrix((4, 7), dtype=np.float32), half=True)
    assert not compact.dense(torch.tensor([3, 0]), CPU).any()
    assert compact.dense(torch.empty(0, dtype=torch.long), CPU).shape == (0, 7)


def test_float16_keeps_log1p_of_counts_to_half_a_thousandth():
    full, rounded = (CompactRows.from_csr(log1p_rows(40, 500), half=h).dense(torch.arange(40), CPU) for h in (0, 1))
    assert float(((rounded - full).abs() / full.clamp_min(1e-9)).max()) < 5e-4


@pytest.mark.parametrize(("values", "fits"), [([3.0, 14.9], True), ([7e4], False), ([-7e4], False), ([], True)])
def test_values_beyond_float16_are_noticed(values, fits):
    assert fits_half(np.asarray(values, dtype=np.float32)) is fits


def test_read_only_data_are_taken_without_a_warning(recwarn):
    matrix = log1p_rows(4, 9)
    for array in (matrix.data, matrix.indices, matrix.indptr):
        array.flags.writeable = False
    CompactRows.from_csr(matrix, half=False)
    assert not recwarn


@pytest.mark.parametrize(("half", "bytes_of_entry"), [(False, 6), (True, 4)], ids=["float32", "float16"])
def test_a_device_store_is_compact_and_agrees_with_one_in_main_memory(half, bytes_of_entry):
    matrix = log1p_rows(100, 1000)
    store, host = DeviceStore(matrix, CPU, half=half), HostStore(matrix, half=half)
    assert store.nbytes == bytes_of_entry * matrix.nnz + 8 * 101
    payload = store.fetch(ROWS)
    dense, compact = store.dense(payload, CPU), store.compact(payload, CPU)
    assert torch.equal(dense, host.dense(host.fetch(ROWS), CPU))
    assert compact.dtype == (torch.float16 if half else torch.float32)
    assert torch.equal(compact.float(), dense)


def test_rows_that_are_read_ahead_are_the_same(tmp_path):
    ad.AnnData(log1p_rows(10, 30)).write_h5ad(tmp_path / "cells.h5ad")
    matrix = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r").X
    store = make_store(matrix, CPU, kind="disk")
    plain = store.dense(store.fetch(ROWS), CPU)
    store.prefetch(ROWS)
    assert torch.equal(store.dense(store.fetch(ROWS), CPU), plain)
    # what is expected and never fetched does not pile up, and other rows are not mistaken for it
    for _ in range(3 * _MOST_PENDING):
        store.prefetch(ROWS.copy())
    assert torch.equal(store.dense(store.fetch(ROWS), CPU), plain)
    assert len(store._pending._begun) <= _MOST_PENDING + 1


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton, whose interpreter runs anywhere")
def test_the_kernel_gathers_what_plain_torch_gathers():
    # the interpreter has to be chosen before Triton is imported
    code = """
import numpy as np, scipy.sparse as sp, torch
from scvi_tahoe.data._compact_rows import CompactRows
from scvi_tahoe.data._gather_kernel import gather_rows
for n_features in (700, 40_000):
    matrix = sp.random(6, n_features, density=0.1, format="csr", dtype=np.float32, rng=np.random.default_rng(0))
    rows = torch.tensor([4, 0, 5, 4, 1])
    for half in (False, True):
        compact = CompactRows.from_csr(matrix, half=half)
        out = torch.full((5, n_features), float("nan"))
        gather_rows[(2,)](rows, compact.indptr, compact.indices, compact.values, out, 5, n_features,
                          BLOCK=1024, N_BITS=16, num_warps=8)
        if not torch.equal(out, compact.dense(rows, torch.device("cpu"))):
            raise SystemExit("other rows")
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("kind", ["device", "host"])
@pytest.mark.parametrize("full_precision", [True, False])
@pytest.mark.parametrize("n_features", [2_001, 40_000])
def test_on_a_gpu_every_store_gives_the_rows(kind, full_precision, n_features):
    matrix, device = log1p_rows(5_000, n_features), torch.device("cuda", 0)
    store = make_store(matrix, device, kind=kind, full_precision=full_precision)
    rows = np.random.default_rng(0).integers(0, 5_000, (3, 64))
    expected = torch.from_numpy(matrix[rows.ravel()].toarray()).view(3, 64, -1)
    expected = expected if full_precision else expected.half().float()
    for step in range(3):
        if step:
            store.prefetch(rows)
        assert torch.equal(store.dense(store.fetch(rows), device).cpu(), expected)


@pytest.mark.gpu
@on_gpu
def test_on_a_gpu_plain_torch_gathers_what_the_kernel_gathers():
    compact = CompactRows.from_csr(log1p_rows(500, 2_000), half=True).to(torch.device("cuda", 0))
    rows = torch.randint(0, 500, (100,), device="cuda")
    assert torch.equal(
        compact.dense(rows, rows.device), compact._by_torch(rows, rows.device, torch.float32).view(100, -1)
    )
