from __future__ import annotations

import pytest

from scvi_tahoe.demo._job import FILES, claim_folder


@pytest.mark.parametrize(
    ("name", "message"), [("", "not of a demo"), ("thesis.tex", "is a file")], ids=["foreign folder", "file"]
)
def test_a_place_that_is_taken_is_refused(tmp_path, name, message):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=message):
        claim_folder(tmp_path / name, {"seed": 0}, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


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
