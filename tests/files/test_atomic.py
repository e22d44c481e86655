"""A folder is written whole or not at all, also where an earlier one is replaced."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from scvi_tahoe.files import _atomic, atomic_folder, atomic_write, read_csv


def test_without_an_exchange_the_earlier_folder_is_put_back_if_the_last_rename_fails(tmp_path, monkeypatch):
    target = tmp_path / "model"
    with atomic_folder(target, kind="model", signatures=["config.json"], overwrite=False) as folder:
        (folder / "config.json").write_text("old")
    rename, calls = os.replace, []

    def replace(source, destination):
        calls.append(source)
        if len(calls) == 2:  # the earlier folder is away, the new one is to take its place
            raise OSError("no space left on device")
        rename(source, destination)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(_atomic, "_renameat2", lambda: None)
    with pytest.raises(OSError, match="no space left"):
        with atomic_folder(target, kind="model", signatures=["config.json"], overwrite=True) as folder:
            (folder / "config.json").write_text("new")
    assert (target / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_takes_its_name_when_it_is_complete(tmp_path):
    with atomic_write(tmp_path / "scores.csv") as partial:
        partial.write_text("1")
        assert not (tmp_path / "scores.csv").exists()
    assert (tmp_path / "scores.csv").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["scores.csv"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_file_leaves_the_old_one_and_nothing_else(tmp_path, error):
    path = tmp_path / "scores.csv"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as partial:  # noqa: PT012
        partial.write_text("ne")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_a_folder(tmp_path):
    for text in ("old", "new"):
        with atomic_write(tmp_path / "model", folder=True) as partial:
            partial.mkdir()
            (partial / text).touch()
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["new"]


def make_folder(path):
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")


def make_file(path):
    path.write_text("years of work")


@pytest.mark.parametrize(
    ("make", "name", "folder", "message"),
    [
        pytest.param(make_folder, "t", False, "is a folder, and a file is to be written", id="folder"),
        pytest.param(make_file, "t", True, "is a file, and a folder is to be written", id="file"),
        pytest.param(os.mkfifo, "t", False, "is a device or a pipe and is not replaced", id="pipe"),
        pytest.param(make_file, "t/inside", False, "a part of the path is not a folder", id="file as folder"),
        pytest.param(lambda p: p.symlink_to(p), "t/inside", False, "a part of the path is", id="link to itself"),
        pytest.param(None, "x" * 240, False, "has 240 bytes; give one of at most 220", id="long name"),
        pytest.param(None, "x" * 300 + "/t", False, "is not a path that a file can have", id="long folder"),
        pytest.param(None, "/".join(["x" * 200] * 25), False, "is not a path that a file can have", id="long path"),
        pytest.param(None, "a\0b", False, "is not a path that a file can have", id="NUL"),
        pytest.param(None, "a\ud800", False, "is not a path that a file can have", id="half a character"),
        pytest.param(None, "..", False, "is not a name; give that of a new file", id="folder above"),
    ],
)
def test_a_place_where_nothing_can_be_written_is_refused_and_left_as_it_is(tmp_path, make, name, folder, message):
    if make is not None:
        make(tmp_path / "t")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises((ValueError, OSError), match=message), atomic_write(tmp_path / name, folder=folder):
        pytest.fail("the writer was let in")
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    assert [p.read_text() for p in tmp_path.rglob("*") if p.is_file()] == ["years of work"] * (
        make in (make_folder, make_file)
    )


@pytest.mark.parametrize("folder", [False, True])
def test_a_link_to_nothing_is_replaced(tmp_path, folder):
    (tmp_path / "t").symlink_to(tmp_path / "nothing")
    with atomic_write(tmp_path / "t", folder=folder) as partial:
        partial.mkdir() if folder else partial.write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["t"]
    assert not (tmp_path / "t").is_symlink()


@pytest.mark.parametrize("name", ["~nobody/t.csv", "https:/example.invalid/t.csv"])
def test_a_relative_name_is_what_it_says_to_whoever_writes(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with atomic_write(name) as partial:
        pd.DataFrame({"a": [1]}).to_csv(partial, index=False)
    assert (tmp_path / name).read_text() == "a\n1\n"
    assert read_csv(Path(name))["a"].tolist() == [1]


def test_where_the_system_lets_nobody_make_a_file_it_is_said():
    with pytest.raises(OSError, match="nothing can be made in /proc/self"), atomic_write("/proc/self/t") as partial:
        partial.write_text("x")
