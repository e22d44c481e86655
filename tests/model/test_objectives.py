"""Objectives of a whole model: every term trains, is logged, and changes what is predicted."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_tahoe import FractionSplit, TahoeST, suggest_decoder_weight
from scvi_tahoe._constants import TENSORS
from scvi_tahoe.evaluate import PREDICTION_RECORD
from scvi_tahoe.nn import EMBEDDING_TERMS, TERMS
from scvi_tahoe.pretrained import read_pretrained

EMBEDDING = {"cell_embedding_key": "X_embedding"}
BOTH = {"setup": EMBEDDING, "representation": "expression+embedding"}
DECODER = {"setup": EMBEDDING, "representation": "embedding"}


@pytest.mark.parametrize("name", TERMS)
def test_every_term_trains_by_name_and_is_logged_under_it(make_model, train, name):
    terms = {"energy": 1.0, name: 2.0}
    scale = {"blur": 1.0} if name in ("sinkhorn", "mmd") else {}
    model = train(make_model(objective={"terms": terms, **scale}))
    for part in ("train", "validation"):
        values = {n: model.history[f"{part}_{n}"].to_numpy(dtype=float) for n in (*terms, "loss")}
        assert all(np.isfinite(v).all() for v in values.values())
        np.testing.assert_allclose(values["loss"], sum(w * values[n] for n, w in terms.items()), rtol=1e-4)


def test_weights_and_control_means_reach_the_loss_by_condition(make_model, train, screen):
    model = make_model(screen, objective={"terms": {"energy": 1.0, "de_weighted": 1.0, "contrastive": 1.0}})
    seen = {}
    loss = model.module.loss

    def recording(tensors, *args, **kwargs):
        for s, condition in enumerate(tensors[TENSORS.CONDITION].tolist()):
            seen[condition] = {k: tensors[k][s].numpy() for k in (TENSORS.GENE_WEIGHT, TENSORS.CONTROL_MEAN)}
        return loss(tensors, *args, **kwargs)

    model.module.loss = recording
    train(model, max_steps=20, batch_size=4, split=FractionSplit(validation=0.1))
    x, obs = screen.X.toarray(), screen.obs
    conditions = sorted({(c, p) for c, p in zip(obs["context"], obs["perturbation"], strict=True) if p != "control"})
    assert len(seen) == len(conditions) == 12
    for condition, found in seen.items():
        context, perturbation = conditions[condition]
        control = x[(obs["context"] == context) & (obs["perturbation"] == "control")].mean(0)
        np.testing.assert_allclose(found[TENSORS.CONTROL_MEAN], control, rtol=1e-4, atol=1e-6)
        truth = screen.uns["true_delta"][context].loc[perturbation].abs()
        assert found[TENSORS.GENE_WEIGHT] @ truth > truth.mean(), "genes that respond weigh more"


def test_the_contrast_between_perturbations_falls_in_training(make_model, screen):
    setup = {"perturbation_embedding_key": "perturbation_embedding"}
    options = {"max_steps": 120, "validate_every": 30, "batch_size": 6, "lr": 3e-3, "progress": False}
    with_it = make_model(screen, setup=setup, objective={"terms": {"energy": 1.0, "contrastive": 3.0}})
    with_it.train(**options)
    values = with_it.history["validation_contrastive"].to_numpy(dtype=float).ravel()
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize("name", EMBEDDING_TERMS)
def test_auxiliary_terms_are_logged_and_fall_in_training(make_model, train, name):
    model = make_model(objective={"embedding_terms": {name: 1.0}}, **BOTH)
    train(model, max_steps=80, validate_every=20, batch_size=4, lr=3e-3)
    assert {n for n in EMBEDDING_TERMS if f"train_{n}" in model.history} == {name}
    values = model.history[f"train_{name}"].to_numpy(dtype=float).ravel()
    assert values[-1] < 0.8 * values[0]


def test_the_auxiliary_terms_teach_the_hidden_cells(make_model, train):
    """The same training with and without: the backbone's weights differ, not only the reading head's."""
    without = train(make_model(objective={"embedding_terms": {}}, **BOTH))
    weighted = train(make_model(objective={"embedding_terms": {"alignment": 1.0, "distillation": 1.0}}, **BOTH))
    a, b = (dict(m.module.network.backbone.named_parameters()) for m in (without, weighted))
    assert any(not np.array_equal(a[n].detach(), b[n].detach()) for n in a)
    assert "train_distillation" not in without.history


def test_no_prediction_looks_at_the_cell_embedding(make_model, train, screen):
    model = train(make_model(objective={"embedding_terms": {"alignment": 1.0, "distillation": 1.0}}, **BOTH))
    before = model.predict(screen, n_cells=4, progress=False)
    screen.obsm["X_embedding"] = np.random.default_rng(0).permutation(screen.obsm["X_embedding"])
    after = model.predict(screen, n_cells=4, progress=False)
    np.testing.assert_array_equal(before.X, after.X)


def scaled(screen, ratio):
    """The screen with an embedding that is its expression, rotated and made this much smaller."""
    genes = screen.n_vars
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(genes, genes)))
    screen.obsm["X_embedding"] = (ratio * screen.X.toarray() @ rotation + 3).astype(np.float32)
    return screen


def test_the_suggested_weight_is_the_ratio_of_distances_between_cells(screen, register):
    register(scaled(screen, 0.0055), **EMBEDDING)
    assert suggest_decoder_weight(screen, n_cells=100) == pytest.approx(0.0055, rel=1e-3)
    assert suggest_decoder_weight(screen) == suggest_decoder_weight(screen, seed=0)
    screen.obsm["X_embedding"][3] *= 1e4  # one cell far away
    assert suggest_decoder_weight(register(screen, **EMBEDDING)) == pytest.approx(0.0055, rel=0.02)


def test_the_decoder_weighs_itself_and_both_spaces_then_count_alike(make_model, train, screen, tmp_path):
    automatic = {"terms": {"energy": 1.0}, "decoder_weight": "auto"}
    model = train(make_model(scaled(screen, 0.01), objective=automatic, **DECODER))
    assert model.decoder_weight_ == pytest.approx(0.01, rel=1e-3)
    history = {k: model.history[f"train_{k}"].to_numpy(dtype=float) for k in ("loss", "energy", "decoder")}
    weighted = model.decoder_weight_ * history["decoder"]
    assert 0.1 < np.median(weighted / history["energy"]) < 10  # with a weight of 1 it is a hundred times this
    np.testing.assert_allclose(history["loss"], history["energy"] + weighted, rtol=1e-4)

    assert model.predict(n_cells=2, progress=False).uns[PREDICTION_RECORD]["decoder_weight"] == model.decoder_weight_
    model.save(tmp_path / "model")
    loaded = TahoeST.load(tmp_path / "model", model.adata)
    assert loaded.module.objective.decoder_weight == model.decoder_weight_
    assert loaded.module.objective.config.decoder_weight == "auto"
    model.export(tmp_path / "export")
    exported = read_pretrained(str(tmp_path / "export"))
    assert exported.loss.decoder_weight == pytest.approx(model.decoder_weight_)
    assert exported.extra["objective"]["decoder_weight"] == "auto"


def constant(screen):
    screen.obsm["X_embedding"] = np.ones_like(screen.obsm["X_embedding"])
    return screen


def test_contrasts_without_anything_to_tell_apart_are_refused(make_model, train, screen):
    contrast = {"objective": {"terms": {"energy": 1.0, "contrastive": 1.0}}}
    with pytest.raises(ValueError, match=r"\['contrastive'\] tell the sets of a minibatch apart, and batch_size=1"):
        train(make_model(**contrast), batch_size=1)
    with pytest.raises(ValueError, match=r"\['alignment'\] tell"):
        train(make_model(objective={"embedding_terms": {"alignment": 1.0}}, **BOTH), batch_size=1)
    one = screen[screen.obs["perturbation"].isin(["control", "perturbation_1"])].copy()
    with pytest.raises(ValueError, match="tell perturbations apart, and there is but one"):
        train(make_model(one, **contrast))


def test_gene_weights_are_refused_where_embeddings_are_trained(make_model):
    with pytest.raises(ValueError, match="'de_weighted' weighs genes"):
        make_model(objective={"terms": {"energy": 1.0, "de_weighted": 1.0}}, **DECODER)


def test_a_scale_that_cannot_be_read_is_refused(screen, register):
    with pytest.raises(ValueError, match="compares genes with a cell embedding; register one: cell_embedding_key"):
        suggest_decoder_weight(register(screen.copy()))
    with pytest.raises(ValueError, match="have the same cell embedding"):
        suggest_decoder_weight(register(constant(screen), **EMBEDDING))
    with pytest.raises(ValueError, match="n_cells=1 must be 2 or more"):
        suggest_decoder_weight(screen, n_cells=1)
