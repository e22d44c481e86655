"""Perturbation-embedding tables from files, harmless and hostile ones."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pandas as pd
import pytest
import torch

from scvi_tahoe import read_embedding_table
from scvi_tahoe.data import EmbeddingTable
from scvi_tahoe.pretrained import UnsafeFileError

NAMES = ["STAT1", "JAK2", "IRF1"]
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
FRAME = pd.DataFrame(ROWS, index=NAMES, columns=list("wxyz"))
VECTORS = dict(zip(NAMES, ROWS, strict=True))


class Hostile:
    """Makes a folder when unpickled by a reader that runs what a file says."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


WRITERS = {
    "table.pt": lambda p: torch.save({n: torch.tensor(r) for n, r in VECTORS.items()}, p),
    "half.pt": lambda p: torch.save({n: torch.tensor(r).half() for n, r in VECTORS.items()}, p),
    "rows.pt": lambda p: torch.save(dict(zip(NAMES, torch.tensor(ROWS), strict=True)), p),
    "numpy_names.pt": lambda p: torch.save({np.str_(n): torch.tensor(r) for n, r in VECTORS.items()}, p),
    "table.torch": lambda p: torch.save({n: torch.tensor(r) for n, r in VECTORS.items()}, p),
    "pair.npz": lambda p: np.savez(p, names=np.array(NAMES), matrix=ROWS),
    "rows.npz": lambda p: np.savez(p, **VECTORS),
    "table.csv": FRAME.to_csv,
    "table.tsv": lambda p: FRAME.to_csv(p, sep="\t"),
    "table.parquet": FRAME.to_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_table_is_the_same_whatever_the_file(name, tmp_path):
    WRITERS[name](tmp_path / name)
    table = EmbeddingTable.from_user(read_embedding_table(tmp_path / name), name)
    assert table.names == tuple(NAMES)
    assert table.matrix.dtype == np.float32
    np.testing.assert_array_equal(table.matrix, ROWS)


def test_only_the_rows_that_are_asked_for_are_kept(tmp_path):
    WRITERS["table.pt"](tmp_path / "table.pt")
    table = read_embedding_table(str(tmp_path / "table.pt"), labels=["JAK2", "non-targeting", "JAK2"])
    assert list(table["names"]) == ["JAK2"]
    np.testing.assert_array_equal(table["matrix"], ROWS[1:2])
    with pytest.raises(ValueError, match="table.pt has none of the labels"):
        read_embedding_table(tmp_path / "table.pt", labels=["BRD4"])


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("t.pt", lambda p, evil: torch.save({"A": evil}, p)),
        ("t.pt", lambda p, evil: torch.save({"A": torch.ones(2), evil: torch.ones(2)}, p)),
        ("t.pt", lambda p, evil: p.write_bytes(pickle.dumps({"A": evil}))),
        ("t.npz", lambda p, evil: np.savez(p, A=np.array([evil], dtype=object))),
        ("t.npz", lambda p, evil: p.write_bytes(pickle.dumps(evil))),
    ],
)
def test_code_in_a_file_is_refused_and_never_runs(name, write, tmp_path):
    write(tmp_path / name, Hostile(tmp_path / "pwned"))
    with pytest.raises(UnsafeFileError, match=f"{name} was refused"):
        read_embedding_table(tmp_path / name)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("name", "write", "error", "message"),
    [
        ("t.xlsx", lambda p: p.write_text("x"), ValueError, r"t.xlsx is no table .*; allowed endings are .pt, .pth"),
        ("t.pt", lambda p: None, FileNotFoundError, "there is no file"),
        ("t.csv", lambda p: p.write_text(""), UnsafeFileError, "t.csv is empty"),
        ("t.parquet", lambda p: p.write_text("x"), UnsafeFileError, "t.parquet is damaged"),
        ("t.csv", lambda p: p.write_text("g,x\nA,high\n"), ValueError, "t.csv holds something else than numbers"),
        ("t.csv", lambda p: p.write_text("g,x\nA,1\nA,2\n"), ValueError, "2 names, 1 of them different"),
        ("t.csv", lambda p: p.write_text("g,x\nA,\n"), ValueError, "'A' holds values that are not finite"),
        ("t.pt", lambda p: torch.save([torch.ones(2)], p), ValueError, "does not hold a mapping of labels to vectors"),
        ("t.pt", lambda p: torch.save({"A": torch.ones(2, 2)}, p), ValueError, "'A' is not a plain vector"),
        ("t.pt", lambda p: torch.save({"A": torch.ones(2), "B": torch.ones(3)}, p), ValueError, r"2 widths: \[2, 3\]"),
        ("t.npz", lambda p: np.savez(p, names=np.array(["A"]), matrix=ROWS), ValueError, r"1 names.*shape \(3, 4\)"),
    ],
)
def test_what_is_no_table_is_refused(name, write, error, message, tmp_path):
    write(tmp_path / name)
    with pytest.raises(error, match=message):
        read_embedding_table(tmp_path / name)
