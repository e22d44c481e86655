"""An option that somebody gives is used, or it is an error; what comes along with weights is nobody's."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_tahoe import TahoeST
from scvi_tahoe.nn import ObjectiveConfig, non_default

EMBEDDING = {"setup": {"cell_embedding_key": "X_embedding"}, "representation": "embedding"}
BOTH = {"setup": {"cell_embedding_key": "X_embedding"}, "representation": "expression+embedding"}
BATCHES = {"network": {"batch_token": True, "n_batch_classes": 2}}
CONFIDENCE = {"network": {"confidence_token": True}}
DECODER = {"hidden": (8,), "n_genes": 60}

#: options of the objective, the model they mean nothing to, and what the message says
OBJECTIVES = {
    "a weight of no decoder": (
        {"decoder_weight": 0.5}, {},
        r"decoder_weight=0.5 has no effect: no gene decoder.* Leave it out; it applies with representation='embedding'",
    ),
    "a default written down": ({"decoder_weight": 1.0}, {}, "decoder_weight=1.0 has no effect"),
    "an automatic weight of no decoder": ({"decoder_weight": "auto"}, BOTH, "decoder_weight='auto' has no effect"),
    "a weight of a decoder left out": (
        {"decoder_weight": 0.0}, {**EMBEDDING, "network": {"gene_decoder": None}},
        "decoder_weight=0.0 has no effect.*it applies with network={'gene_decoder'",
    ),
    "terms of no embedding": (
        {"embedding_terms": {"alignment": 1.0}}, {},
        "embedding_terms=.*has no effect: representation is 'expression'.*applies with .*'expression.embedding'",
    ),
    "terms of an embedding that is the cell": ({"embedding_terms": {}}, EMBEDDING, "embedding_terms={} has no effect"),
    "a weight of no batches": (
        {"batch_weight": 0.2}, {"batch_encoder": True}, "batch_weight=0.2 .*: the network has no batch token",
    ),
    "a weight of no confidence": (
        {"confidence_weight": 0.2}, {}, "confidence_weight=0.2.*no confidence token.*'confidence_token': True",
    ),
    "a scale of no confidence": ({"confidence_scale": 2.0}, BATCHES, "confidence_scale=2.0 has no effect"),
    "a kernel of no discrepancy": (
        {"terms": {"sinkhorn": 1.0}, "kernel": "laplacian"}, {},
        r"kernel='laplacian' has no effect: terms are \['sinkhorn'\].*it applies with 'mmd' in terms",
    ),
    "a blur of plain distances": ({"blur": 1.0}, {}, "blur=1.0.*it applies with 'sinkhorn' or 'mmd' in terms"),
    "a temperature of nothing": ({"temperature": 0.2}, {}, "temperature=0.2.*it applies with 'contrastive' in terms"),
    "a temperature of a distillation": ({"temperature": 0.2}, BOTH, "temperature=0.2 has no effect"),
    "a diagonal of no energy": (
        {"terms": {"delta_mse": 1.0}, "energy_diagonal": "zero"}, {},
        "energy_diagonal='zero' has no effect.*it applies with 'energy' in terms",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OBJECTIVES)
def test_an_option_of_an_objective_that_would_do_nothing_is_refused(case, make_model):
    objective, options, message = OBJECTIVES[case]
    with pytest.raises(ValueError, match=f"objective option {message}"):
        make_model(objective=objective, **options)


NETWORKS = {
    "dropout of weights that are 1": (
        {"attention": "self_only", "attention_dropout": 0.1}, {}, "attention_dropout=0.1.*with another attention",
    ),
    "dropout of a backbone that has none": (
        {"backbone_dropout": 0.1}, {}, "backbone_dropout=0.1 has no effect.*it applies with backbone='gpt2'",
    ),
    "dropout between one layer": (
        {"dropout": 0.3, "n_encoder_layers": 1, "n_decoder_layers": 1}, {}, "dropout=0.3.*between two layers",
    ),
    "an activation between one layer": (
        {"activation": "relu"}, {"size": {"hidden": 8, "n_layers": 1, "intermediate": 8, "n_heads": 2,
                                          "n_encoder_layers": 1, "n_decoder_layers": 1}},
        "activation='relu' has no effect",
    ),
    "a decoder that nobody would train": (
        {"gene_decoder": DECODER}, {}, "gene_decoder=.*representation='expression' predicts genes without it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NETWORKS)
def test_an_option_of_a_network_that_would_do_nothing_is_refused(case, make_model):
    network, options, message = NETWORKS[case]
    with pytest.raises(ValueError, match=f"network option {message}"):
        make_model(network=network, **options)


def test_all_that_would_do_nothing_is_named_at_once(make_model):
    with pytest.raises(ValueError, match="blur=1.0 has no effect.*\n.*temperature=0.2 has no effect"):
        make_model(objective={"blur": 1.0, "temperature": 0.2})


#: options that do something, and the model they do it to
USED = {
    "a weight of a decoder": ({"decoder_weight": 0.5}, EMBEDDING),
    "an automatic weight of a decoder of one's own": (
        {"decoder_weight": "auto"}, {**EMBEDDING, "network": {"gene_decoder": DECODER}},
    ),
    "terms of an embedding beside expression": ({"embedding_terms": {}}, BOTH),
    "a weight of batches": ({"batch_weight": 0.2}, BATCHES),
    "a scale of the confidence": ({"confidence_weight": 0.0, "confidence_scale": 2.0}, CONFIDENCE),
    "kernel and blur": ({"terms": {"energy": 1.0, "mmd": 0.0}, "kernel": "laplacian", "blur": 2.0}, {}),
    "blur of sinkhorn": ({"terms": {"sinkhorn": 1.0}, "blur": 2.0}, {}),
    "temperature of a contrast": ({"terms": {"energy": 1.0, "contrastive": 1.0}, "temperature": 0.2}, {}),
    "temperature of an alignment": ({"embedding_terms": {"alignment": 1.0}, "temperature": 0.2}, BOTH),
    "the diagonal": ({"energy_diagonal": "zero"}, {}),
    "what every objective has": ({"chunks": 2, "shift_weight": 0.1}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", USED)
def test_options_that_do_something_are_taken(case, make_model):
    objective, options = USED[case]
    config = make_model(objective=objective, **options).module.objective.config
    assert {name: getattr(config, name) for name in objective} == objective


def test_a_term_of_weight_0_is_logged_with_its_options(make_model, train):
    logged = [
        train(make_model(objective={"terms": {"energy": 1.0, "mmd": 0.0}, "blur": blur})).history["train_mmd"]
        for blur in (1.0, 4.0)
    ]
    assert not np.allclose(*logged)


@pytest.fixture
def export(make_model, train, tmp_path):
    """An export of a model whose objective has options of tokens, of an embedding and of a contrast."""
    tokens = {**BATCHES["network"], **CONFIDENCE["network"], "attention_dropout": 0.1}
    objective = {
        "terms": {"energy": 1.0, "contrastive": 0.1}, "temperature": 0.3, "embedding_terms": {"alignment": 0.7},
        "batch_weight": 0.6, "confidence_weight": 0.5, "confidence_scale": 2.0,
    }  # fmt: skip
    train(make_model(objective=objective, **BOTH, network=tokens)).export(tmp_path / "export")
    return tmp_path / "export"


def test_options_that_come_with_weights_and_mean_nothing_are_dropped(export, screen, register, train):
    register(screen, batch_key=None)  # neither batches nor a cell embedding
    accept = ["drop_tokens", "other_attention"]
    network = {"confidence_token": False, "attention": "self_only"}
    model = TahoeST.from_pretrained(export, screen, accept=accept, network=network, check_scale=False)
    config = model.module.objective.config
    assert model.representation == "expression"
    assert (config.terms, config.temperature) == ({"energy": 1.0, "contrastive": 0.1}, 0.3)
    # what says nothing about this model does not stay in its record
    whole = ObjectiveConfig(terms=config.terms, temperature=0.3)
    assert config == whole
    train(model)


def test_weights_bring_options_that_still_mean_something(export, screen, register):
    model = TahoeST.from_pretrained(export, register(screen, cell_embedding_key="X_embedding"), check_scale=False)
    config = model.module.objective.config
    assert (config.batch_weight, config.confidence_scale, config.embedding_terms) == (0.6, 2.0, {"alignment": 0.7})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"blur": 1.0}}, "objective option blur=1.0 has no effect"),
        ({"network": {"backbone_dropout": 0.1}}, "network option backbone_dropout=0.1 has no effect"),
    ],
)
def test_options_given_beside_weights_are_refused_where_they_mean_nothing(changes, message, export, screen, register):
    register(screen, cell_embedding_key="X_embedding")
    with pytest.raises(ValueError, match=message):
        TahoeST.from_pretrained(export, screen, check_scale=False, **changes)


def test_a_saved_model_is_loaded_whatever_it_was_made_with(make_model, train, screen, tmp_path):
    given = {"objective": {"blur": 1.0, "decoder_weight": 1.0}, "network": {"backbone_dropout": 0.1}}
    model = TahoeST(screen, make_model(screen).registry_, size="mini", **given)  # as an earlier release made it
    train(model).save(tmp_path / "model")
    for data in (screen, False):
        loaded = TahoeST.load(tmp_path / "model", data)
        assert loaded.module.objective.config == ObjectiveConfig()
    with pytest.raises(ValueError, match="blur=1.0 has no effect"):  # and after it the next one is the user's again
        make_model(objective={"blur": 1.0})


def test_an_objective_written_out_whole_says_what_it_was_given():
    given = {"terms": {"energy": 1.0}, "blur": 1.0}
    assert non_default(ObjectiveConfig(**given).to_dict()) == given
    assert non_default(ObjectiveConfig().to_dict()) == {"terms": ObjectiveConfig().terms}
    assert non_default({}) == {}
