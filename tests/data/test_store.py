"""Wherever expression lives, the minibatches are the same."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scvi_tahoe.data import align_genes, make_store
from scvi_tahoe.data._store import _on_device

CPU = torch.device("cpu")
ROWS = np.array([[5, 2, 5], [0, 9, 2]])  # unsorted and repeated


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
    "dense": lambda x: x.toarray(),
    "float64": lambda x: x.toarray().astype(np.float64),
    "csr": lambda x: x,
    "csc": lambda x: x.tocsc(),
    "csr array": sparse.csr_array,
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
    expected = screen.X.toarray()[ROWS].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(read(store).numpy(), expected)


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
def test_entries_of_one_place_add_up(kind):
    matrix = sparse.csr_matrix((np.ones(3, np.float32), [1, 1, 0], [0, 3]), shape=(1, 2))
    np.testing.assert_array_equal(read(make_store(matrix, CPU, kind=kind), np.array([0])), [[1, 2]])
    assert matrix.nnz == 3  # the user's matrix is left as it is


def test_a_data_frame_is_read_as_its_values(screen):
    frame = pd.DataFrame(screen.obsm["X_embedding"], index=screen.obs_names)
    np.testing.assert_array_equal(read(make_store(frame, CPU)), screen.obsm["X_embedding"][ROWS])


@pytest.mark.parametrize("kind", ["device", "host"])
def test_changing_a_minibatch_does_not_change_the_data(kind, screen):
    dense = screen.X.toarray()
    read(make_store(dense, CPU, kind=kind)).zero_()
    np.testing.assert_array_equal(dense, screen.X.toarray())


def test_stores_that_do_not_exist_are_refused(screen):
    with pytest.raises(ValueError, match="store='ram' is unknown; allowed are 'auto', 'device', 'host' and 'disk'"):
        make_store(screen.X, CPU, kind="ram")
    with pytest.raises(ValueError, match=r"store='disk' needs data on disk; .*backed='r'.*scvi-tahoe convert"):
        make_store(screen.X, CPU, kind="disk")
