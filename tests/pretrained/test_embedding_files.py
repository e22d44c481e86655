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
        ("t.xlsx", lambda p: p.write_text("x"), ValueError, r"t.xlsx is not a table .*; allowed endings are .pt, .pth"),
        ("t.pt", lambda p: None, FileNotFoundError, "there is no file"),
        ("t.csv", lambda p: p.write_text(""), UnsafeFileError, "t.csv is empty"),
        ("t.parquet", lambda p: p.write_text("x"), UnsafeFileError, "t.parquet is damaged"),
        (
            "t.csv",
            lambda p: p.write_text("g,x\nA,high\n"),
            ValueError,
            "t.csv was refused: it holds something else than numbers",
        ),
        ("t.csv", lambda p: p.write_text("g,x\nA,True\nB,False\n"), ValueError, "something else than numbers: 'True'"),
        ("t.csv", lambda p: p.write_text("A\0,1\nB,2\n"), ValueError, "it holds bytes that are no text"),
        (
            "t.csv",
            lambda p: p.write_text("x" * 200_000 + ",1\n"),
            ValueError,
            "not a table of text: field larger",
        ),
        ("t.csv", lambda p: p.write_text("1," * 100_001 + "1"), ValueError, "at most 100,000 are read from text"),
        ("t.csv", lambda p: p.write_text("g,x\nA,1\nA,2\n"), ValueError, "2 names, 1 of them different"),
        ("t.csv", lambda p: p.write_text("g,x\nA,\n"), ValueError, "'A' holds values that are not finite"),
        ("t.pt", lambda p: torch.save([torch.ones(2)], p), ValueError, "does not hold a mapping of labels to vectors"),
        ("t.pt", lambda p: torch.save({"A": torch.ones(2, 2)}, p), ValueError, "'A' is not a plain vector"),
        *(
            ("t.pt", lambda p, vector=vector: torch.save({"A": vector}, p), UnsafeFileError, "not a plain vector")
            for vector in (
                torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
                torch.nested.nested_tensor([torch.ones(2)]),
                torch.ones(2, device="meta"),
                torch.ones(1).expand(10**9),
            )
        ),
        ("t.pt", lambda p: torch.save({"A": torch.ones(2), "B": torch.ones(3)}, p), ValueError, r"2 widths: \[2, 3\]"),
        ("t.npz", lambda p: np.savez(p, names=np.array(["A"]), matrix=ROWS), ValueError, r"1 names.*shape \(3, 4\)"),
    ],
)
def test_what_is_no_table_is_refused(name, write, error, message, tmp_path):
    write(tmp_path / name)
    with pytest.raises(error, match=message):
        read_embedding_table(tmp_path / name)


TEXTS = {
    "header": ("gene,w,x\nNA,1,2\nnan,3,4\n", None, ["NA", "nan"]),
    "no header": ("NA,1,2\nNULL,3,4\n", None, ["NA", "NULL"]),
    "numbers as labels": ("007,1,2\n1e5,3,4\n", None, ["007", "1e5"]),
    "counted columns": ("gene,0,1\nA,1,2\nB,3,4\n", None, ["A", "B"]),
    "empty first field": (",10,20\nA,1,2\nB,3,4\n", None, ["A", "B"]),
    "header of numbers, as said": ("year,2019,2020\nA,1,2\nB,3,4\n", True, ["A", "B"]),
    "counts that are a row, as said": ("A,0,1\nB,3,4\n", False, ["A", "B"]),
    "windows": ("gene,w,x\r\nA,1,2\r\nB,3,4\r\n", None, ["A", "B"]),
    "quoted": ('gene,w,x\n"A,B",1,2\nB,3,4\n', None, ["A,B", "B"]),
}


@pytest.mark.parametrize("case", TEXTS)
def test_labels_of_text_are_exact_and_no_row_is_lost(case, tmp_path):
    text, header, names = TEXTS[case]
    (tmp_path / "t.csv").write_text(text, newline="")
    table = read_embedding_table(tmp_path / "t.csv", header=header)
    assert table["names"].tolist() == names
    assert table["matrix"][-1].tolist() == [3, 4]


@pytest.mark.parametrize("text", ["A,1+2j,3\nB,1,2\n", "A,1\nB,1,2\n", "A,,1\nB,1,2\n", "A,x\nB,y\n", "A,nan\nB,1\n"])
def test_text_that_is_no_table_of_real_numbers_is_refused(text, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=r"t\.csv"):
        read_embedding_table(tmp_path / "t.csv", header=False)


@pytest.mark.parametrize("rows", [ROWS.astype(complex) * 1j, np.full((3, 4), 3e38), np.full((3, 4), -1e300)])
def test_numbers_that_a_network_cannot_take_are_refused(rows, tmp_path):
    np.savez(tmp_path / "t.npz", names=np.array(NAMES), matrix=rows)
    with pytest.raises(ValueError, match=r"imaginary|above 1e\+12|finite"):
        read_embedding_table(tmp_path / "t.npz")
    with pytest.raises(ValueError, match=r"imaginary|above 1e\+12|infinite"):
        EmbeddingTable.from_user((NAMES, rows), "uns['t']")


def bomb_npz(path):
    import zipfile

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("A.npy", bytes(280_000_000))


def bomb_header(path):
    import io
    import zipfile

    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (3, 10**11)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("matrix.npy", stream.getvalue())


def bomb_parquet(path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    label = pa.array(["x" * 1_000_000]).dictionary_encode()
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, dtype=np.int32)), label.dictionary)
    pq.write_table(pa.table({"gene": column, "w": np.zeros(100_000)}), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [("t.npz", bomb_npz), ("t.npz", bomb_header), ("t.parquet", bomb_parquet)],
    ids=["zeros", "header", "dictionary"],
)
def test_a_small_file_with_a_large_content_is_refused_before_it_is_read(name, write, tmp_path):
    import resource

    write(tmp_path / name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=rf"{name} "):
        read_embedding_table(tmp_path / name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
