"""The sum that is minimised: terms, weights, and arc-state's totals."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from scvi_tahoe.nn import (
    EMBEDDING_TERMS,
    SET_LOSSES,
    SIZES,
    TERMS,
    NetworkConfig,
    NetworkOptions,
    NetworkOutput,
    Objective,
    ObjectiveConfig,
    ObjectiveOptions,
    SetReference,
    SizeName,
    contrastive_alignment,
    contrastive_delta,
    de_weighted_mse,
    delta_mse,
    energy_distance,
    register_term,
)

GOLDEN = Path(__file__).parent.parent / "golden"


def output(prediction, **others):
    nothing = dict.fromkeys(("genes_SNG", "confidence_S", "batch_logits_SB"))
    return NetworkOutput(prediction_SNG=prediction, hidden_SND=prediction, **{**nothing, **others})


def cells(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


X, Y = cells(0, 4, 6, 20), cells(1, 4, 6, 20)
WEIGHTS = cells(6, 4, 20)
REFERENCE = SetReference(torch.eye(4), cells(8, 4, 6, 20), cells(7, 4, 20), WEIGHTS / WEIGHTS.sum(1, keepdim=True))


def test_the_total_is_the_weighted_sum_of_the_terms():
    objective = Objective(ObjectiveConfig(terms={"energy": 2.0, "delta_mse": 5.0}))
    total, main_S, parts = objective(output(X), Y)
    energy_S, delta_S = energy_distance(X, Y, diagonal="excluded"), delta_mse(X, Y)
    torch.testing.assert_close(main_S, 2 * energy_S + 5 * delta_S)
    torch.testing.assert_close(total, main_S.mean())
    torch.testing.assert_close(parts["energy"], energy_S.mean())
    torch.testing.assert_close(parts["delta_mse"], delta_S.mean())
    assert set(parts) == {"energy", "delta_mse"}
    assert all(p.ndim == 0 and not p.requires_grad for p in parts.values())


def test_optional_terms_come_with_their_part_of_the_network():
    config = ObjectiveConfig(
        terms={"energy": 1.0}, decoder_weight=0.5, batch_weight=0.25, confidence_weight=0.125, shift_weight=3.0
    )
    genes, observed_genes, logits = cells(2, 4, 6, 9), cells(3, 4, 6, 9), cells(4, 4, 3)
    batch, confidence = torch.tensor([0, 2, 1, 0]), cells(5, 4)
    total, main_S, parts = Objective(config)(
        output(X, genes_SNG=genes, batch_logits_SB=logits, confidence_S=confidence), Y,
        reference=SetReference(torch.eye(4), X + 1), genes_SNG=observed_genes, batch_S=batch,
    )  # fmt: skip
    expected = {
        "decoder": energy_distance(genes, observed_genes, diagonal="excluded").mean(),
        "batch": torch.nn.functional.cross_entropy(logits, batch),
        "confidence": (confidence - 10 * main_S).square().mean(),
        "shift": torch.tensor(1.0),
    }
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value)
    weights = {"decoder": 0.5, "batch": 0.25, "confidence": 0.125, "shift": 3.0}
    torch.testing.assert_close(total, main_S.mean() + sum(weights[k] * v for k, v in expected.items()))


def test_every_term_can_be_combined_with_every_other_by_name_and_weight():
    weights = {name: 0.5 + i for i, name in enumerate(TERMS)}
    x = X.clone().requires_grad_()
    total, main_S, parts = Objective(ObjectiveConfig(terms=weights, blur=1.0))(output(x), Y, reference=REFERENCE)
    assert list(parts) == list(TERMS)
    torch.testing.assert_close(total, sum(weights[name] * value for name, value in parts.items()))
    torch.testing.assert_close(total, main_S.mean())
    torch.testing.assert_close(parts["de_weighted"], de_weighted_mse(X, Y, REFERENCE.gene_weight_SG).mean())
    contrast = contrastive_delta(X, Y, REFERENCE.control_SNG, REFERENCE.control_mean_SG, REFERENCE.perturbation_SP)
    torch.testing.assert_close(parts["contrastive"], contrast.mean())
    total.backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", [n for n in TERMS if n not in SET_LOSSES])
def test_a_term_that_lacks_what_it_compares_with_says_so(name):
    objective = Objective(ObjectiveConfig(terms={"energy": 1.0, name: 1.0}))
    with pytest.raises(ValueError, match=f"the term '{name}' needs .* which minibatches of training bring"):
        objective(output(X), Y, reference=SetReference(torch.eye(4), X))
    assert set(objective.main_loss(X, Y)[1]) == {"energy"}  # asked for the distances between sets alone


def test_the_temperature_is_that_of_the_contrast():
    warm = Objective(ObjectiveConfig(terms={"energy": 0.0, "mse": 1e-9, "contrastive": 1.0}, temperature=2.0))
    expected = contrastive_delta(X, Y, *REFERENCE[1:3], REFERENCE[0], temperature=2.0).mean()
    torch.testing.assert_close(warm(output(X), Y, reference=REFERENCE)[2]["contrastive"], expected)


def test_auxiliary_terms_are_combined_by_name_and_weight():
    config = ObjectiveConfig(embedding_terms={"alignment": 3.0, "distillation": 0.5})
    total, parts = Objective(config).embedding_loss(X, Y, SetReference(torch.eye(4), X))
    distance = energy_distance(X, Y, diagonal="excluded").mean()
    alignment = contrastive_alignment(X, Y, torch.eye(4)).mean()
    assert set(parts) == set(EMBEDDING_TERMS)
    torch.testing.assert_close(total, 3 * alignment + 0.5 * distance)
    none, no_parts = Objective(ObjectiveConfig(embedding_terms={})).embedding_loss(X, Y, SetReference(torch.eye(4), X))
    assert none.item() == 0
    assert not no_parts


def test_the_confidence_does_not_pull_on_what_it_judges():
    confidence, pulled = cells(5, 4).requires_grad_(), []
    for read in (confidence, None):
        x = X.clone().requires_grad_()
        config = ObjectiveConfig(terms={"energy": 1.0}, confidence_weight=1e3)
        Objective(config)(output(x, confidence_S=read), Y)[0].backward()
        pulled.append(x.grad)
    torch.testing.assert_close(*pulled)
    assert confidence.grad.abs().sum() > 0


def test_chunks_of_genes_are_averaged():
    chunked = Objective(ObjectiveConfig(terms={"energy": 1.0}, chunks=2)).set_loss("energy", X, Y)
    halves = [energy_distance(X[..., s], Y[..., s], diagonal="excluded") for s in (slice(0, 10), slice(10, 20))]
    torch.testing.assert_close(chunked, torch.stack(halves).mean(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": {"enrgy": 1.0}}, r"terms \['enrgy'\] are unknown; allowed are \['contrastive', 'de_weighted'"),
        ({"embedding_terms": {"contrast": 1.0}}, r"embedding_terms \['contrast'\] are unknown; .* \['alignment'"),
        ({"embedding_terms": {"alignment": -1.0}}, "must not be negative or infinite; got {'alignment': -1.0}"),
        ({"terms": {"contrastive": 1.0, "de_weighted": 1.0}}, "at least one of the terms .*energy"),
        ({"terms": {"energy": float("nan"), "mse": 1.0}}, r"terms\['energy'\] is nan; allowed is a number"),
        ({"decoder_weight": "balanced"}, "decoder_weight='balanced' is unknown; allowed are 'auto' or a number"),
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"terms": {}}, "at least one of the terms"),
        ({"terms": {"energy": 0.0}}, "at least one of the terms"),
        ({"terms": {"energy": 1.0, "mse": -1.0}}, "must not be negative or infinite; got {'mse': -1.0}"),
        ({"decoder_weight": -1.0}, "must not be negative or infinite; got {'decoder_weight': -1.0}"),
        ({"energy_diagonal": "none"}, "energy_diagonal='none' is unknown; allowed are 'zero', 'excluded', 'rounded'"),
        ({"kernel": "cosine"}, "kernel='cosine' is unknown; allowed are 'gaussian', 'laplacian'"),
        ({"blur": 0.0}, "blur=0.0 must be positive"),
        ({"chunks": 0}, "chunks=0 must be 1 or more"),
        ({"weights": {}}, r"objective options \['weights'\] are unknown; there are \['terms', 'energy_diagonal'"),
    ],
)
def test_impossible_objectives_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig.from_kwargs(options)


def arrays(name):
    loaded = np.load(GOLDEN / f"{name}.npz")
    sets = {
        k.rsplit("/", 1)[1]: torch.from_numpy(loaded[k].reshape(2, 16, -1)) for k in loaded if k.startswith("padded/")
        and loaded[k].ndim == 2 and len(loaded[k]) == 32
    }  # fmt: skip
    return loaded, sets


def published(**options):
    return Objective(ObjectiveConfig(terms={"energy": 1.0}, energy_diagonal="rounded", **options))


@pytest.mark.parametrize(
    "name",
    ["expr_all_feat", "expr_all_lora", "hvg_causal", "hvg_gene_onehot", "state_emb_only", "state_all_feat",
     "hvg_gene_conf", "expr_all_batchtoken"],
)  # fmt: skip
def test_totals_are_those_of_published_models(name):
    loaded, sets = arrays(name)
    decodes, judges = name == "state_all_feat", name == "hvg_gene_conf"
    genes = (sets["pert_cell_counts_preds"], sets["pert_cell_counts"]) if decodes else (None, None)
    confidence = torch.from_numpy(loaded["padded/out/confidence_pred"]).squeeze(1) if judges else None
    total, _, parts = published(**({"decoder_weight": 0.5} if decodes else {}))(
        output(sets["preds"], genes_SNG=genes[0], confidence_S=confidence), sets["pert_cell_emb"], genes_SNG=genes[1]
    )
    total = total.item()
    if decodes:
        assert parts["decoder"].item() == pytest.approx(float(loaded["padded/loss/decoder_loss"]), rel=1e-5)
    if judges:  # logged with its weight
        logged = float(loaded["padded/loss/train/confidence_loss"])
        assert 0.01 * parts["confidence"].item() == pytest.approx(logged, rel=1e-5)
    if name == "expr_all_batchtoken":
        total += ObjectiveConfig().batch_weight * float(loaded["padded/loss/train/batch_token_loss"])
    assert total == pytest.approx(float(loaded["padded/loss/total"]), rel=1e-5)


@pytest.fixture
def registered():
    """Forget the terms that a test registers."""
    before = [(terms, dict(terms)) for terms in (TERMS, EMBEDDING_TERMS, SET_LOSSES)]
    yield
    for terms, known in before:
        terms.clear()
        terms.update(known)


@pytest.mark.usefixtures("registered")
def test_a_term_is_added_by_registering_a_function():
    @register_term("variance_mse")
    def variance_mse(x_SNG, y_SMG):
        return (x_SNG.var(1) - y_SMG.var(1)).square().mean(-1)

    @register_term("shifted", options={"by": "blur"}, needs=("control_SNG",))
    def shifted(x_SNG, y_SMG, control_SNG, *, by):
        return by * (x_SNG - control_SNG).mean((1, 2))

    config = ObjectiveConfig.from_kwargs({"terms": {"variance_mse": 2.0, "shifted": 1.0}, "blur": 3.0})
    parts = Objective(config)(output(X), Y, reference=REFERENCE)[2]
    torch.testing.assert_close(parts["variance_mse"], variance_mse(X, Y).mean())
    torch.testing.assert_close(parts["shifted"], 3.0 * (X - REFERENCE.control_SNG).mean())
    assert "variance_mse" in SET_LOSSES
    assert "shifted" not in SET_LOSSES
    with pytest.raises(ValueError, match="a term 'energy' is registered already"):
        register_term("energy")
    with pytest.raises(ValueError, match=r"'new' needs \['weather'\]; a set"):
        register_term("new", needs=("weather",))


@pytest.mark.parametrize(
    ("options", "config"),
    [(NetworkOptions, NetworkConfig), (ObjectiveOptions, ObjectiveConfig)],
    ids=["network", "loss"],
)
def test_type_checkers_know_every_option(options, config):
    assert list(options.__annotations__) == [field.name for field in fields(config)]
    for field in fields(config):
        if field.name != "gene_decoder":  # a dataclass there, and a mapping here
            assert options.__annotations__[field.name].__forward_arg__ == field.type


def test_type_checkers_know_every_size():
    assert get_args(SizeName) == tuple(SIZES)
