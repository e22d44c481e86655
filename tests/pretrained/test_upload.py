"""Uploads through the real client of the hub, to a server on this machine; what may not be passed on stays here."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hub_server import Repository, serve

from scvi_tahoe import TahoeST
from scvi_tahoe.pretrained import (
    LicenceNotAcceptedError,
    export_model,
    push_model,
    read_arc_folder,
    read_pretrained,
)
from scvi_tahoe.pretrained._hub import verify_uploadable

pytest.importorskip("huggingface_hub")


@pytest.fixture
def model(golden, tmp_path):
    return read_arc_folder(golden("hvg_gene_onehot").folder.write(tmp_path / "arc"))


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "repository").mkdir()
    return Repository(tmp_path / "repository", exists=False)


@pytest.fixture
def address(hub, use_hub):
    """Where the hub's client of this process finds the repository."""
    with serve(hub) as address:
        use_hub(address)
        yield address


@pytest.mark.usefixtures("address")
@pytest.mark.filterwarnings("ignore::scvi_tahoe.pretrained.LicenceWarning")
def test_what_is_pushed_is_pulled_again_bit_by_bit(model, hub, tmp_path):
    (tmp_path / "terms.txt").write_text("the text of the licence")
    mine = TahoeST.from_pretrained(tmp_path / "arc")
    commit = mine.push_to_hub("someone/st-model", accept_license=True, license_file=str(tmp_path / "terms.txt"))
    again = read_pretrained("someone/st-model", accept_license=True, cache_dir=tmp_path / "hub")
    assert commit == again.provenance.revision == hub.commit
    expected = mine.module.network.state_dict()
    assert set(again.state_dict) == set(expected)
    assert all(torch.equal(again.state_dict[name], tensor) for name, tensor in expected.items())
    assert hub.private
    files = {path.name for path in hub.folder.iterdir()}
    assert files == {"config.json", "model.safetensors", "README.md", "LICENSE_NOTICE.md", "LICENSE"}
    assert (hub.folder / "LICENSE").read_text() == "the text of the licence"
    assert "Adduri" in (hub.folder / "LICENSE_NOTICE.md").read_text()
    assert "Non-Commercial" in (hub.folder / "README.md").read_text()


@pytest.mark.usefixtures("address")
@pytest.mark.filterwarnings("ignore::scvi_tahoe.pretrained.LicenceWarning")
def test_nothing_is_pushed_that_nobody_allowed(model, hub, tmp_path):
    hub.exists, hub.private = True, False
    mine = TahoeST.from_pretrained(tmp_path / "arc")
    with pytest.raises(LicenceNotAcceptedError, match="accept_license=True"):
        mine.push_to_hub("someone/st-model")
    with pytest.raises(LicenceNotAcceptedError, match="license_file="):
        mine.push_to_hub("someone/st-model", accept_license=True, private=False)
    with pytest.raises(PermissionError, match="is public; nothing was uploaded"):
        mine.push_to_hub("someone/st-model", accept_license=True)
    assert not list(hub.folder.iterdir())


def test_neither_cells_nor_weights_are_passed_on_unasked(model):
    ours = replace(model.provenance, non_commercial=False, format="scratch")
    with pytest.raises(PermissionError, match="3 cells of the training data"):
        push_model(replace(model, provenance=ours, prior={"donor_condition": [0, 0, 1]}), "someone/st-model")
    with pytest.raises(FileNotFoundError, match="no file nowhere.txt"), pytest.warns():
        push_model(model, "someone/st-model", accept_license=True, license_file="nowhere.txt")
    with pytest.raises(LicenceNotAcceptedError):
        push_model(model, "someone/st-model", accept_license=False)


def test_only_an_export_that_is_whole_can_be_uploaded(model, tmp_path):
    with pytest.raises(ValueError, match="not an export"):
        verify_uploadable(tmp_path / "arc")
    export_model(model, tmp_path / "export")
    (tmp_path / "export" / "model.pt").write_bytes(b"a pickle")
    with pytest.raises(ValueError, match=r"holds \['model.pt'\]"):
        verify_uploadable(tmp_path / "export")
    (tmp_path / "export" / "model.pt").unlink()
    assert "README.md" in verify_uploadable(tmp_path / "export")
    (tmp_path / "export" / "LICENSE_NOTICE.md").unlink()
    with pytest.raises((ValueError, FileNotFoundError), match="LICENSE_NOTICE"):
        verify_uploadable(tmp_path / "export")


HUB_MODEL = """
import json, sys, warnings
warnings.simplefilter("ignore")
import numpy as np
from huggingface_hub import ModelCard
from scvi.hub import HubMetadata, HubModel
from scvi_tahoe import TahoeST
from scvi_tahoe.datasets import simulate_screen
folder, cache = sys.argv[1:3]
adata = simulate_screen(seed=0)
TahoeST.setup_anndata(adata, perturbation_key="perturbation", control="control", context_key="context")
model = TahoeST(adata, size={"hidden": 16, "n_layers": 1, "n_heads": 2, "intermediate": 16}, prior="none")
model.is_trained_ = True
model.save(folder)
metadata = HubMetadata.from_dir(folder, anndata_version="0.12", model_parent_module="scvi_tahoe")
card = ModelCard("---\\nlibrary_name: scvi-tools\\n---\\n# A model of TahoeST\\n")
HubModel(folder, metadata=metadata, model_card=card).push_to_huggingface_hub(
    "someone/st-model", repo_token="hf_none", repo_create=True, repo_create_kwargs={"private": True}, push_anndata=False
)
pulled = HubModel.pull_from_huggingface_hub("someone/st-model", cache_dir=cache)
pulled.load_model(adata)
mine, theirs = (m.module.network.state_dict() for m in (model, pulled.model))
print(json.dumps([type(pulled.model).__name__, all((mine[k] == theirs[k]).all().item() for k in mine)]))
"""


@pytest.mark.slow
def test_the_hub_of_scvi_tools_carries_a_saved_model(hub, run_with_hub, tmp_path):
    pytest.importorskip("requests", reason="scvi.hub needs it")
    with serve(hub) as address:
        printed = run_with_hub(address, HUB_MODEL, tmp_path / "saved", tmp_path / "cache")
    assert json.loads(printed.splitlines()[-1]) == ["TahoeST", True]
    assert hub.private
