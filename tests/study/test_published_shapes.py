"""The walk with real weights, on small stand-ins: no step fails, and runs have what their configurations asked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scvi_tahoe import TahoeST
from scvi_tahoe.study import TahoeRun

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DAYS = ("0826", "0901", "0905", "0906", "0907", "0908")


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """Folder of the walk, and its steps."""
    folder = tmp_path_factory.mktemp("h1")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import real_weights_walk
        import stand_in

        yield folder, real_weights_walk.walk(folder, stand_in.Shape(), 2, DAYS).rows
        for name in ("real_weights_walk", "stand_in"):
            del sys.modules[name]


def test_no_step_of_the_walk_fails(walked):
    assert len(walked[1]) == 33
    assert [row["step"] for row in walked[1] if row["failed"]] == []


@pytest.mark.parametrize("day", DAYS)
def test_a_configuration_becomes_a_run_that_has_what_was_asked_for(walked, day):
    folder, embeds = walked[0], day in ("0826", "0901")
    written = folder / f"run-{day}.yaml"
    assert "a trial of the start says" not in written.read_text()
    model = TahoeST.from_pretrained(folder / "runs" / day)
    config = model.module.config
    assert (config.n_batches, config.head) == (8, "down_up")
    assert config.control_encoder == ("linear" if embeds else "mlp")
    assert (config.gene_decoder is not None) == embeds
    assert model.split_ is None or model.split_["kind"] == "listed_conditions"
    accepted = set(TahoeRun.from_yaml(written).start.accept)
    new = {"other_control_encoder", "new_batch_encoder", "new_gene_decoder", "other_set_size"}
    assert new <= accepted if day == "0826" else day == "0905" or not accepted
