"""Wherever expression lives, and whichever way its rows come, the minibatches are the same."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scvi_tahoe.data import DeviceStore, align_genes, make_store
from scvi_tahoe.data._compact_rows import CompactRows, fits_half
from scvi_tahoe.data._store import _MOST_PENDING, HostStore, _on_device

CPU = torch.device("cpu")
ROWS = np.array([[5, 2, 5], [0, 9, 2]])  # unsorted and repeated
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def read(store, rows=ROWS):
    return store.dense(store.fetch(rows), CPU)


@pytest.fixture
def backed(screen, tmp_path):
    def open_as(change, matrix=None):
        adata = ad.AnnData(change(screen.X if matrix is None else matrix))
        adata.write_h5ad(tmp_path / "screen.h5ad")
        return ad.read_h5ad(tmp_path / "screen.h5ad", backed="r").X

    return open_as


FORMS = {
    **{"csr": lambda x: x, "csc": lambda x: x.tocsc(), "csr array": sparse.csr_array},
    **{"dense": lambda x: x.toarray(), "float64": lambda x: x.toarray().astype(np.float64)},
}
IN_MEMORY = [(form, kind, False) for form in FORMS for kind in ("auto", "device", "host")]
ON_DISK = [(form, kind, True) for form in ("dense", "csr", "csc") for kind in ("auto", "disk", "device", "host")]


@pytest.mark.parametrize(("form", "kind", "on_disk"), IN_MEMORY + ON_DISK)
def test_a_store_gives_the_rows_in_the_order_asked_for(form, kind, on_disk, screen, backed):
    store = make_store(backed(FORMS[form]) if on_disk else FORMS[form](screen.X), CPU, kind=kind)
    tensor = read(store)
    assert (tensor.dtype, store.n_features) == (torch.float32, 60)
    np.testing.assert_array_equal(tensor.numpy(), screen.X.toarray()[ROWS])


def test_a_large_sparse_matrix_stays_sparse_on_the_device():
    rng = np.random.default_rng(0)
    places = (rng.integers(0, 9000, 20000), rng.integers(0, 20000, 20000))
    matrix = sparse.coo_matrix((rng.random(20000, dtype=np.float32), places), shape=(9000, 20000)).tocsr()
    store = make_store(matrix, CPU, kind="device")
    assert store.sparse
    np.testing.assert_array_equal(read(store).numpy(), matrix[ROWS.ravel()].toarray().reshape(2, 3, -1))


def test_a_small_sparse_matrix_is_dense_and_rounded_on_the_device(screen):
    store = _on_device(screen.X, CPU, half=True)
    assert not store.sparse
    np.testing.assert_array_equal(read(store), screen.X.toarray()[ROWS].astype(np.float16))


@pytest.mark.parametrize("kind", ["device", "host", "disk"])
@pytest.mark.parametrize("form", ["dense", "csr"])
def test_genes_are_aligned_in_every_store(form, kind, screen, backed):
    names = screen.var_names[::-1][:57]
    shuffled = screen[:, names].X
    alignment = align_genes(screen.var_names, names)
    matrix = backed(FORMS[form], shuffled) if kind == "disk" else FORMS[form](shuffled)
    expected = screen.X.toarray()
    expected[:, [i for i, g in enumerate(screen.var_names) if g not in set(names)]] = 0
    np.testing.assert_array_equal(read(make_store(matrix, CPU, kind=kind, alignment=alignment)), expected[ROWS])


@pytest.mark.parametrize("kind", ["device", "host"])
def test_entries_of_one_place_add_up_and_data_stay_as_they_are(kind, screen):
    matrix = sparse.csr_matrix((np.ones(3, np.float32), [1, 1, 0], [0, 3]), shape=(1, 2))
    np.testing.assert_array_equal(read(make_store(matrix, CPU, kind=kind), np.array([0])), [[1, 2]])
    assert matrix.nnz == 3
    dense = screen.X.toarray()
    read(make_store(dense, CPU, kind=kind)).zero_()  # changing a minibatch
    np.testing.assert_array_equal(dense, screen.X.toarray())


def test_a_data_frame_is_read_as_its_values(screen):
    frame = pd.DataFrame(screen.obsm["X_embedding"], index=screen.obs_names)
    np.testing.assert_array_equal(read(make_store(frame, CPU)), screen.obsm["X_embedding"][ROWS])


def test_stores_that_do_not_exist_are_refused(screen):
    with pytest.raises(ValueError, match="store='ram' is unknown; allowed are 'auto', 'device', 'host' and 'disk'"):
        make_store(screen.X, CPU, kind="ram")
    with pytest.raises(ValueError, match=r"store='disk' needs data on disk; .*backed='r'.*scvi-tahoe convert"):
        make_store(screen.X, CPU, kind="disk")


def log1p_rows(n_rows, n_features):
    rng = np.random.default_rng(0)
    matrix = sparse.random(n_rows, n_features, density=0.05, format="csr", dtype=np.float32, rng=rng)
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
    compact = CompactRows.from_csr(sparse.csr_matrix((4, 7), dtype=np.float32), half=True)
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
    assert torch.equal(dense, read(host))
    assert compact.dtype == (torch.float16 if half else torch.float32)
    assert torch.equal(compact.float(), dense)


def test_rows_that_are_read_ahead_are_the_same(backed):
    store = make_store(backed(FORMS["csr"]), CPU, kind="disk")
    plain = read(store)
    store.prefetch(ROWS)
    assert torch.equal(read(store), plain)
    # what is expected and never fetched does not pile up, and other rows are not mistaken for it
    for _ in range(3 * _MOST_PENDING):
        store.prefetch(ROWS.copy())
    assert torch.equal(read(store), plain)
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
    by_torch = compact._by_torch(rows, rows.device, torch.float32)
    assert torch.equal(compact.dense(rows, rows.device), by_torch.view(100, -1))
