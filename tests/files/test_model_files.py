"""Models that scvi-tools saved are read without running anything of them, through every door."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from scvi_tahoe import TahoeEnsemble, TahoeST
from scvi_tahoe.files import UnsafeFileError, only_weights, verify_model_file

FILES = Path(__file__).parent
SAVED = FILES / "model_scvi_1.4.2"


class Plant:
    """Writes a marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "code ran"


def content() -> dict:
    with only_weights():
        return torch.load(SAVED / "model.pt", weights_only=False)


def planted(place: str, folder: Path, marker: Path) -> Path:
    """Save a model with a plant in one of its parts."""
    model = content()
    if place == "file":
        model = Plant(marker)
    elif place in model:
        model[place] = Plant(marker)
    elif place == "array":
        model["attr_dict"]["registry_"]["names"] = np.array([Plant(marker), 1], dtype=object)
    else:
        model["attr_dict"][place] = Plant(marker)
    folder.mkdir(parents=True)
    torch.save(model, folder / "model.pt")
    return folder


def ensemble(folder: Path) -> None:
    outside = folder.parent / "ensemble"
    outside.mkdir()
    shutil.copytree(folder, outside / "member_0")
    (outside / "ensemble.json").write_text('{"members": ["member_0"]}')
    TahoeEnsemble.load(outside, False)


def command(folder: Path) -> None:
    from typer.testing import CliRunner

    from scvi_tahoe.cli import app
    from scvi_tahoe.datasets import simulate_screen

    simulate_screen(n_genes=20).write_h5ad(folder / "cells.h5ad")
    arguments = ["predict", str(folder), str(folder / "cells.h5ad"), "-o", str(folder / "predicted.h5ad")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    raise UnsafeFileError(result.output)


def start_of_a_run(folder: Path) -> None:
    from scvi_tahoe.study._model import _weights_of_run
    from scvi_tahoe.study._run_config import StartConfig

    run = folder.parent / "run"
    shutil.copytree(FILES / "0.1" / "run", run)
    shutil.copy(folder / "model.pt", run / "model" / "model.pt")
    _weights_of_run(StartConfig(source=str(run)))


DOORS = {
    "load": lambda folder: TahoeST.load(folder, False),
    "load without checksums": lambda folder: TahoeST.load(folder, False, verify=False),
    "registry": TahoeST.load_registry,
    "setup arguments": TahoeST.view_setup_args,
    "ensemble": ensemble,
    "command": command,
    "start of a run": start_of_a_run,
}


@pytest.mark.parametrize("door", DOORS)
def test_no_door_runs_code_of_a_model(door, tmp_path, marker):
    folder = planted("init_params_", tmp_path / "model", marker)
    with pytest.raises(UnsafeFileError, match="refused"):
        DOORS[door](folder)
    assert not marker.exists()


@pytest.mark.parametrize("place", ["file", "var_names", "model_state_dict", "attr_dict", "registry_", "array"])
def test_no_part_of_a_model_runs_code(place, tmp_path, marker):
    folder = planted(place, tmp_path / "model", marker)
    with pytest.raises(UnsafeFileError, match=r"model.pt .*Nothing of it was run.*export\(\)"):
        TahoeST.load(folder, False)
    assert not marker.exists()


def test_a_model_in_the_format_before_zip_is_refused(tmp_path, marker):
    torch.save(Plant(marker), tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UnsafeFileError, match="zip format"):
        TahoeST.load(tmp_path, False)
    assert not marker.exists()


def test_old_pickles_of_scvi_tools_are_not_converted(tmp_path):
    with pytest.raises(NotImplementedError, match="run code"):
        TahoeST.convert_legacy_save(tmp_path, tmp_path / "new")


@pytest.mark.parametrize("folder", sorted(path.parent for path in FILES.glob("**/model.pt")), ids=str)
def test_models_of_earlier_versions_pass(folder):
    assert "registry_" in verify_model_file(folder / "model.pt")


class ForgedDtype:
    """A dtype of pointers whose description says that it is one of numbers."""

    def __reduce__(self):
        return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)


class ForgedArray:
    def __reduce__(self):
        state = (1, (4,), ForgedDtype(), False, b"\x41" * 32)
        return np.empty(0).__reduce__()[0], (np.ndarray, (0,), b"b"), state


class ShortArray:
    def __reduce__(self):
        state = (1, (10**9,), np.dtype("f8"), False, b"\x41" * 32)
        return np.empty(0).__reduce__()[0], (np.ndarray, (0,), b"b"), state


@pytest.mark.parametrize("forged", [ForgedArray, ShortArray])
def test_an_array_that_reads_beyond_its_bytes_is_refused(forged, tmp_path):
    model = content()
    model["attr_dict"]["train_indices_"] = forged()
    torch.save(model, tmp_path / "model.pt")
    with pytest.raises(UnsafeFileError, match="numpy"):
        TahoeST.load(tmp_path, False)


def test_every_flipped_bit_is_named(tmp_path):
    original = (SAVED / "model.pt").read_bytes()
    with zipfile.ZipFile(SAVED / "model.pt") as archive:
        records = [record for record in archive.infolist() if record.file_size]
    for record in records[::5]:
        damaged = bytearray(original)
        header = damaged[record.header_offset :]
        begin = 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        damaged[record.header_offset + begin + record.file_size // 2] ^= 8
        (tmp_path / "model.pt").write_bytes(damaged)
        with pytest.raises(UnsafeFileError, match=r"model.pt"):
            TahoeST.load(tmp_path, False)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.1, 0.9, 0.999])
def test_a_model_that_was_cut_off_is_named(kept, tmp_path):
    original = (SAVED / "model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(original[: int(kept * len(original))])
    with pytest.raises(UnsafeFileError, match=r"model.pt"):
        TahoeST.load(tmp_path, False)


@pytest.mark.parametrize("damage", ["no registry", "list", "attributes", "text in weights"])
def test_another_structure_is_refused(damage, tmp_path):
    model = content()
    if damage == "no registry":
        del model["attr_dict"]["registry_"]
    elif damage == "list":
        model = [model]
    elif damage == "attributes":
        model["attr_dict"] = []
    else:
        model["model_state_dict"] = OrderedDict(weight="text")
    torch.save(model, tmp_path / "model.pt")
    with pytest.raises(UnsafeFileError, match="model.pt"):
        TahoeST.load(tmp_path, False)


def test_other_readers_are_as_they_were_afterwards():
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    TahoeST.load(SAVED, False)
    assert os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD") == before
