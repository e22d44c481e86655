from __future__ import annotations

import pytest

from scvi_tahoe.demo._job import FILES, claim_folder
from scvi_tahoe.files import atomic_write


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


def test_a_folder_with_other_peoples_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="not of a demo"):
        claim_folder(tmp_path, {"seed": 0}, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "demo").touch()
    with pytest.raises(ValueError, match="is a file"):
        claim_folder(tmp_path / "demo", {"seed": 0}, overwrite=False)


def test_a_demo_with_other_settings_is_refused_unless_overwritten(tmp_path):
    claim_folder(tmp_path, {"seed": 0}, overwrite=False)
    (tmp_path / "scores.csv").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="other settings"):
        claim_folder(tmp_path, {"seed": 1}, overwrite=False)
    claim_folder(tmp_path, {"seed": 1}, overwrite=True)
    assert {p.name for p in tmp_path.iterdir()} == {"settings.json", "notes.txt"}


def test_a_demo_with_the_same_settings_continues_without_partial_files(tmp_path):
    claim_folder(tmp_path, {"seed": 0}, overwrite=False)
    (tmp_path / FILES[1]).touch()
    (tmp_path / ".partial-prediction.h5ad").touch()
    claim_folder(tmp_path, {"seed": 0}, overwrite=False)
    assert {p.name for p in tmp_path.iterdir()} == {"settings.json", FILES[1]}
