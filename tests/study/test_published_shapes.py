"""Six configurations of the case study's shape, on stand-ins in its layouts: each gives a run file that trains."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scvi_tahoe import TahoeST
from scvi_tahoe.study import TahoeRun, check_config, finetune

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "stand_in.py"
BRIEF = {"max_steps": 2, "batch_size": 2, "accumulate": 1, "validate_every": 2, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """Folder and places of a small stand-in."""
    spec = importlib.util.spec_from_file_location("stand_in", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("h1")
    return folder, module.write_all(folder, module.Shape())


def brief(run):
    return replace(run, train=run.train.replaced(**BRIEF), score=run.score.replaced(preset=None))


def test_six_configurations_become_six_runs_that_train(stand_in):
    folder, places = stand_in
    for day in ("0826", "0901", "0905", "0906", "0907", "0908"):
        check = check_config(places[day])
        assert check.exit_code() == (day in ("0826", "0901"))
        written = check.write(folder / f"{day}.yaml")
        assert "a trial of the start says" not in (folder / f"{day}.yaml").read_text()
        assert TahoeRun.from_yaml(folder / f"{day}.yaml") == written
        result = finetune(brief(written), folder / "runs" / day, progress=False)
        model = TahoeST.from_pretrained(result.folder)
        config = model.module.config
        assert config.n_batches == 8
        assert config.control_encoder == ("linear" if day in ("0826", "0901") else "mlp")
        assert (config.gene_decoder is not None) == (day in ("0826", "0901"))
        assert config.head == "down_up"
        assert model.split_ is None or model.split_["kind"] == "listed_conditions"
    accepted = {day: set(TahoeRun.from_yaml(folder / f"{day}.yaml").start.accept) for day in ("0826", "0901", "0906")}
    assert {"other_control_encoder", "new_batch_encoder", "new_gene_decoder", "other_set_size"} <= accepted["0826"]
    assert accepted["0901"] == accepted["0906"] == set()
