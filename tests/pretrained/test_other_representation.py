"""`from_pretrained` on data whose cells are something else than those of the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_tahoe import TahoeST
from scvi_tahoe.pretrained import read_pretrained

ENDS = ("new_input", "new_output", "other_head")
EMBEDDING = {"cell_embedding_key": "X_pca"}


@pytest.fixture
def embedded(screen, register):
    """The simulated screen with a cell embedding, registered."""
    screen.obsm["X_pca"] = np.random.default_rng(0).normal(size=(screen.n_obs, 5)).astype(np.float32)
    return register(screen, **EMBEDDING)


@pytest.fixture
def expression(make_model, train):
    return train(make_model(), max_steps=1)


def test_the_backbone_of_an_expression_model_starts_one_on_embeddings(expression, embedded, tmp_path):
    expression.export(tmp_path / "weights")
    with pytest.raises(ValueError, match="'new_input': cells are expression in the weights and embeddings"):
        TahoeST.from_pretrained(tmp_path / "weights", embedded, representation="embedding")
    model = TahoeST.from_pretrained(
        tmp_path / "weights", embedded, representation="embedding", accept=(*ENDS, "new_gene_decoder")
    )
    assert (model.representation, model.module.config.n_input, model.module.config.gene_decoder.n_genes) == (
        "embedding", 5, embedded.n_vars
    )  # fmt: skip
    name = "network.backbone.norm.weight"
    assert name in model.pretrained_parameters_
    assert torch.equal(model.module.state_dict()[name], expression.module.state_dict()[name])


def test_the_backbone_of_an_embedding_model_starts_one_on_expression(make_model, embedded, train, tmp_path):
    model = make_model(embedded, setup=EMBEDDING, representation="embedding")
    train(model, max_steps=1).export(tmp_path / "weights")
    again = TahoeST.from_pretrained(
        tmp_path / "weights", embedded, representation="expression", accept=(*ENDS, "drop_gene_decoder")
    )
    assert (again.representation, again.module.config.rectify, again.module.config.gene_decoder) == (
        "expression", True, None
    )  # fmt: skip
    assert again.module.config.n_output == embedded.n_vars


def test_an_embedding_as_a_signal_of_training_gets_a_new_projection_that_the_report_names(
    expression, embedded, tmp_path
):
    expression.export(tmp_path / "weights")
    alone, both = (
        TahoeST.from_pretrained(tmp_path / "weights", embedded, representation=kind, check_scale=False)
        for kind in ("expression", "expression+embedding")
    )
    assert both.module.embedding_head.out_features == 5
    assert "projection of hidden cells to the cell embedding" in both.loading_report_.text()
    assert "projection of hidden" not in alone.loading_report_.text()


def test_a_batch_encoder_is_added_or_left_out_by_argument(expression, screen, register, train, tmp_path):
    expression.export(tmp_path / "without")
    register(screen)
    options = {"batch_encoder": True, "check_scale": False}
    with pytest.raises(ValueError, match="'new_batch_encoder': the weights have no batch encoder"):
        TahoeST.from_pretrained(tmp_path / "without", screen, **options)
    model = TahoeST.from_pretrained(tmp_path / "without", screen, accept=["new_batch_encoder"], **options)
    assert model.module.config.n_batches == 2
    train(model, max_steps=1).export(tmp_path / "with")
    again = TahoeST.from_pretrained(
        tmp_path / "with", screen, batch_encoder=False, accept=["drop_batch_encoder"], check_scale=False
    )
    assert again.module.config.n_batches == 0


def test_weights_that_were_read_before_are_copied_not_trained_on(expression, screen, register, train, tmp_path):
    expression.export(tmp_path / "weights")
    weights = read_pretrained(tmp_path / "weights")
    before = {name: tensor.clone() for name, tensor in weights.state_dict.items()}
    model = TahoeST.from_pretrained(weights, register(screen), check_scale=False)
    train(model, max_steps=2, recipe="full")
    assert all(torch.equal(weights.state_dict[name], before[name]) for name in before)
    with pytest.raises(ValueError, match="these were read before"):
        TahoeST.from_pretrained(weights, screen, revision="main")


def test_options_of_a_model_for_data_are_refused_without_data(expression, tmp_path):
    expression.export(tmp_path / "weights")
    with pytest.raises(ValueError, match="pass adata"):
        TahoeST.from_pretrained(tmp_path / "weights", representation="expression")
