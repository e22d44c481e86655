"""A folder is written whole or not at all, also where an earlier one is replaced."""

from __future__ import annotations

import os

import pytest

from scvi_tahoe.files import atomic_folder


def test_the_earlier_folder_is_put_back_if_the_last_rename_fails(tmp_path, monkeypatch):
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
    with pytest.raises(OSError, match="no space left"):
        with atomic_folder(target, kind="model", signatures=["config.json"], overwrite=True) as folder:
            (folder / "config.json").write_text("new")
    assert (target / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
