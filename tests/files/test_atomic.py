"""A folder is written whole or not at all, also where an earlier one is replaced."""

from __future__ import annotations

import os

import pytest

from scvi_tahoe.files import _atomic, atomic_folder, atomic_write


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
        with atomic_write(tmp_path / "model") as partial:
            partial.mkdir()
            (partial / text).touch()
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["new"]
