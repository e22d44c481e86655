"""The folder as ST-Tahoe was published, and what users type first: a model, or one message that says what to do."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from typer.testing import CliRunner

from scvi_tahoe import FractionSplit, TahoeST
from scvi_tahoe.cli._app import app
from scvi_tahoe.pretrained import LicenceNotAcceptedError, inspect_folder, read_pretrained

DMSO = "[('DMSO_TF', 0.0, 'uM')]"
CONFIG = """
data:
  kwargs: {pert_col: drugname_drugconc, cell_type_key: cell_name, embed_key: X_hvg, output_space: gene,
           control_pert: DMSO_TF}
model: {name: state}
"""


@pytest.fixture
def published(arc, tmp_path):
    """The first generation: flat, maps as pickles, 62 measured genes listed and not the 24 of the network."""
    folder = arc(flag=None)
    folder.hyper |= {"gene_names": [f"GENE{i}" for i in range(62)], "control_pert": "DMSO_TF"}
    labels = [DMSO, *(f"[('Drug{i}', 0.5, 'uM')]" for i in range(4))]
    folder.perturbations = {np.str_(label): row for label, row in zip(labels, torch.eye(5), strict=True)}
    folder.contexts = {np.str_("CVCL_0023"): torch.eye(2)[0], np.str_("CVCL_0480"): torch.eye(2)[1]}
    path = folder.write(tmp_path / "ST-Tahoe", checkpoint="final.ckpt", maps="pkl")
    (path / "config.yaml").write_text(CONFIG)
    return path


@pytest.fixture
def adata():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"drug": rng.choice([DMSO, "[('Drug1', 0.5, 'uM')]"], 120), "cell": "CVCL_0023"})
    obs.index = obs.index.astype(str)
    genes = [f"GENE{i}" for i in range(24)]
    data = AnnData(rng.random((120, 24), dtype=np.float32), obs=obs, var=pd.DataFrame(index=genes))
    TahoeST.setup_anndata(data, perturbation_key="drug", control=DMSO, context_key="cell")
    return data


def test_without_data_the_genes_are_numbered_and_that_is_said(published):
    for source in (published, published / "final.ckpt"):
        model = TahoeST.from_pretrained(source)
        assert model.genes[:2].tolist() == ["gene_0", "gene_1"]
        assert any("numbered" in note for note in model.loading_report_.notes)
    assert any("does not name the genes" in note for note in read_pretrained(published).notes)


def test_with_data_the_message_says_what_is_missing_and_both_ways_on(published, adata):
    with pytest.raises(
        ValueError, match=r"ST-Tahoe does not name the 24 genes.*with your 24.*genes=\[.*accept="
    ) as caught:
        TahoeST.from_pretrained(published, adata)
    assert "\n" not in str(caught.value)
    model = TahoeST.from_pretrained(published, adata, genes=list(adata.var_names), check_scale=False)
    assert not model.loading_report_.must_train
    assert not any("does not name" in note for note in model.loading_report_.notes)
    anew = TahoeST.from_pretrained(published, adata, accept=("new_input", "new_output"))
    assert "control_encoder.layers.0.weight" in anew.loading_report_.must_train


@pytest.mark.parametrize("change", ["none", "a new perturbation", "a new gene", "a gene less"])
def test_a_wrong_scale_or_order_is_noticed_whatever_labels_are_new(published, adata, change):
    genes = list(adata.var_names)
    if change == "a new perturbation":
        adata.obs["drug"] = np.where(np.arange(120) < 20, "[('New', 0.5, 'uM')]", adata.obs["drug"])
    elif change == "a new gene":
        adata.var_names = ["NEW", *genes[1:]]
    elif change == "a gene less":
        adata = adata[:, 1:].copy()
    TahoeST.setup_anndata(adata, perturbation_key="drug", control=DMSO, context_key="cell")
    message = "Controls predicted from controls do not look like them.*genes are in another order.*check_scale=False"
    with pytest.raises(ValueError, match=message):
        TahoeST.from_pretrained(published, adata, genes=genes)
    model = TahoeST.from_pretrained(published, adata, genes=genes, check_scale=False)
    assert bool(model.loading_report_.must_train) == (change in ("a new perturbation", "a new gene"))


@pytest.mark.filterwarnings("ignore:no cell validates", "ignore:Found", "ignore:Total length")
def test_an_attention_is_warned_about_until_it_is_given_or_trained(published, adata, tmp_path):
    with pytest.warns(UserWarning, match="Attention of ST-Tahoe: the folder does not say.*full is assumed"):
        model = TahoeST.from_pretrained(published, adata, genes=list(adata.var_names), check_scale=False)
    model.export(tmp_path / "before")
    with pytest.warns(UserWarning, match="full is assumed"):
        TahoeST.from_pretrained(tmp_path / "before")
    model.train(max_steps=1, progress=False, logger=None, split=FractionSplit(validation=0.0, test=0.0))
    model.export(tmp_path / "after")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        TahoeST.from_pretrained(published, attention="causal")
        TahoeST.from_pretrained(tmp_path / "after")
    assert "full: fine-tuned with it; before: the folder does not say" in inspect_folder(tmp_path / "after")


def test_the_control_is_the_label_that_the_peer_puts_in_its_place(published, adata):
    weights = read_pretrained(published)
    assert weights.control == DMSO
    assert any("'DMSO_TF' that the folder states" in note for note in weights.notes)
    model = TahoeST.from_pretrained(published, adata, genes=list(adata.var_names), check_scale=False)
    match = next(m for m in model.loading_report_.matches if m.axis == "perturbations")
    assert (match.missing, match.surplus) == ((), ())


def test_a_folder_without_gene_names_can_be_inspected_and_converted(published, tmp_path):
    assert "genes           not named" in inspect_folder(published)
    for source, target, form in ((published, "ours", "scvi-tahoe"), (tmp_path / "ours", "theirs", "arc")):
        done = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / target), "--to", form])
        assert done.exit_code == 0, done.output
    first, last = read_pretrained(published), read_pretrained(tmp_path / "theirs")
    assert first.genes is None
    assert last.genes is None
    assert all(torch.equal(first.state_dict[name], last.state_dict[name]) for name in first.state_dict)


def test_a_name_on_the_hub_asks_for_the_licence_before_anything_else(monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.delenv("SCVI_TAHOE_ACCEPT_LICENSE", raising=False)
    with pytest.raises(LicenceNotAcceptedError, match=r"(?i)non-commercial.*accept_license=True"):
        TahoeST.from_pretrained("arcinstitute/ST-Tahoe")
