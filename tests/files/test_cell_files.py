"""Cells in HDF5 and zarr refer to nothing outside of themselves, and no codec of theirs runs code."""

from __future__ import annotations

import json
import os

import anndata
import h5py
import numpy as np
import pytest

import scvi_tahoe
from scvi_tahoe.files import UnsafeFileError, read_h5ad, verify_zarr


@pytest.fixture
def path(tmp_path):
    obs = {"perturbation": ["control"] * 4 + ["STAT1"] * 4}
    cells = anndata.AnnData(np.eye(8, 5, dtype=np.float32), obs=obs)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def test_cells_come_back(path):
    assert read_h5ad(path).shape == (8, 5)
    assert read_h5ad(path, backed=True).isbacked


def test_cells_come_back_beside_an_empty_text(path):
    with h5py.File(path, "a") as file:
        file["uns"].create_dataset("nothing", data=h5py.Empty(h5py.string_dtype()))
        file["uns/nothing"].attrs.update({"encoding-type": "null", "encoding-version": "0.1.0"})
    assert read_h5ad(path).shape == (8, 5)


def link(file: h5py.File) -> None:
    file["uns/secret"] = h5py.ExternalLink("other.h5", "/X")


def storage(file: h5py.File) -> None:
    file.create_dataset("layers/secret", shape=(8, 5), dtype="f4", external=[("other.bin", 0, 160)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(8, 5), dtype="f4")
    layout[:] = h5py.VirtualSource("other.h5", "X", shape=(8, 5))
    file.create_virtual_dataset("layers/secret", layout)


@pytest.mark.parametrize(
    ("make", "message"), [(link, "link to another"), (storage, "stored in another"), (virtual, "from other files")]
)
def test_what_lies_in_other_files_is_refused(make, message, path):
    with h5py.File(path, "a") as file:
        make(file)
    with pytest.raises(UnsafeFileError, match=message):
        read_h5ad(path)


@pytest.mark.parametrize("again", ["uns", "/", "obs"])
def test_groups_with_several_names_are_refused(again, path):
    with h5py.File(path, "a") as file:
        file["uns/again"] = file[again]
    with pytest.raises(UnsafeFileError, match="several names, or holds itself"):
        read_h5ad(path)


@pytest.mark.parametrize("kept", [0, 100, 2_000, 5_000])
def test_a_damaged_file_is_named(kept, path):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UnsafeFileError, match=r"cells.h5ad"):
        read_h5ad(path)


def test_a_text_longer_than_its_file_is_refused_before_memory_is_reserved(path):
    with h5py.File(path) as file:
        labels = file["obs/_index"]  # a group of values and mask in newer versions of anndata
        start = (labels if isinstance(labels, h5py.Dataset) else labels["values"]).id.get_offset()
    content = bytearray(path.read_bytes())
    content[start : start + 4] = (0xF0000000).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(
        UnsafeFileError, match=r"obs/_index(/values)? claims 4,026,531,8\d\d bytes of text; the whole file has"
    ):
        read_h5ad(path)


@pytest.mark.parametrize("length", [0, 2**40, 2**64 - 8], ids=["no bytes", "past the end", "backwards"])
def test_texts_in_which_hdf5_would_go_round_without_an_end_are_refused(length, path):
    content = bytearray(path.read_bytes())
    heap = content.find(b"GCOL\x01")
    content[heap + 16 : heap + 32] = bytes(8) + length.to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(UnsafeFileError, match=rf"its texts are damaged at byte {heap + 16:,}"):
        read_h5ad(path)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_h5ad(tmp_path / "cells.h5ad")


class Plant:
    def __init__(self, marker) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("place", ["uns", "obs"])
def test_no_codec_of_a_store_runs_code(place, path, tmp_path):
    import pickle

    store, marker = tmp_path / "cells.zarr", tmp_path / "code ran"
    log1p = read_h5ad(path)
    log1p.X = np.log1p(np.random.default_rng(0).poisson(3, log1p.shape) * 1.7).astype(np.float32)
    log1p.X = __import__("scipy.sparse").sparse.csr_matrix(log1p.X)
    log1p.write_h5ad(path)
    scvi_tahoe.write_store(path, store, perturbation_key="perturbation", control="control", progress=False)
    assert scvi_tahoe.read_store(store).n_obs == 8
    array = store / place / "planted"
    array.mkdir()
    description = {
        "zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "compressor": None, "fill_value": None,
        "order": "C", "filters": [{"id": "pickle", "protocol": 5}],
    }  # fmt: skip
    (array / ".zarray").write_text(json.dumps(description))
    (array / "0").write_bytes(pickle.dumps([Plant(marker)]))
    with pytest.raises(ValueError, match=r"codec 'pickle'|damaged"):
        scvi_tahoe.read_store(store)
    with pytest.raises(UnsafeFileError, match="codec 'pickle'"):
        verify_zarr(store)
    assert not marker.exists()


def test_links_that_lead_out_of_a_store_are_refused(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "X").symlink_to("/etc")
    with pytest.raises(UnsafeFileError, match="leads out"):
        verify_zarr(tmp_path / "store")
