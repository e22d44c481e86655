"""From data to a saved model and back, and no surprises on the way."""

from __future__ import annotations

import inspect
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import scvi_tahoe
from scvi_tahoe import TahoeST
from scvi_tahoe.datasets import papalexi_few_shot

EMBEDDINGS = {"perturbation_embedding_key": "perturbation_embedding", "cell_embedding_key": "X_embedding"}


def predict(model, *args, **options):
    return model.predict(*args, n_cells=9, progress=False, **options)


def equal(a, b):
    pd.testing.assert_frame_equal(a.obs, b.obs)
    np.testing.assert_array_equal(a.X, b.X)


KINDS = {
    "expression": {},
    "embedding": {"representation": "embedding"},
    "expression+embedding": {"representation": "expression+embedding"},
    "batch encoder": {"batch_encoder": True},
    "confidence": {"network": {"confidence_token": True}},
    "one-hot": {"setup": {}},
    "prior of means": {"prior": "transfer"},
    "prior of cells": {"prior": "cells"},
    "response model": {"prior": "response"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_predicts_what_it_predicted_before(kind, make_model, train, tmp_path, simulated):
    options = {"setup": EMBEDDINGS, **KINDS[kind]}
    model = train(make_model(**options))
    expected = predict(model)
    model.save(tmp_path / "model")
    equal(predict(TahoeST.load(tmp_path / "model", simulated.copy())), expected)
    without_data = TahoeST.load(tmp_path / "model", adata=False)
    equal(predict(without_data, simulated.copy()), expected)
    model.save(tmp_path / "with data", save_anndata=True)
    equal(predict(TahoeST.load(tmp_path / "with data")), expected)


def test_a_model_is_loaded_with_genes_in_another_order_without_a_warning(make_model, train, tmp_path, screen, recwarn):
    model = train(make_model(setup=EMBEDDINGS))
    expected = predict(model)
    model.save(tmp_path / "model")
    shuffled = screen[:, np.random.default_rng(0).permutation(60)].copy()
    recwarn.clear()
    loaded = TahoeST.load(tmp_path / "model", shuffled)
    assert not [w for w in recwarn if "var_names" in str(w.message)]
    equal(predict(loaded), expected)
    train(loaded, recipe="full")  # and it trains on them
    second = train(TahoeST.load(tmp_path / "model", screen), recipe="full")
    equal(predict(loaded), predict(second))


def test_a_model_is_loaded_with_data_that_lack_the_table(make_model, train, tmp_path, screen):
    model = train(make_model(setup=EMBEDDINGS))
    model.save(tmp_path / "model")
    del screen.uns["perturbation_embedding"]
    loaded = TahoeST.load(tmp_path / "model", screen)
    equal(predict(loaded), predict(model))
    train(loaded)


def test_a_loaded_model_knows_what_it_was_trained_with(make_model, train, tmp_path):
    model = train(make_model(objective={"terms": {"energy": 1.0}, "energy_diagonal": "zero"}), seed=3)
    model.save(tmp_path / "model")
    loaded = TahoeST.load(tmp_path / "model", adata=False)
    assert loaded.training_config_ == model.training_config_
    assert loaded.training_config_["plan"]["seed"] == 3
    assert loaded.module.objective.config == model.module.objective.config
    assert loaded.module.config == model.module.config
    assert loaded.pretrained_parameters_ == [n for n, _ in model.module.named_parameters()]
    assert loaded.is_trained
    assert not loaded.module.training


def test_a_model_without_data_says_what_is_missing(make_model, train, tmp_path):
    train(make_model()).save(tmp_path / "model")
    loaded = TahoeST.load(tmp_path / "model", adata=False)
    with pytest.raises(ValueError, match=r"has no data of its own; pass the control cells, e.g. predict\(adata, ...\)"):
        loaded.predict()
    with pytest.raises(ValueError, match=r"loaded without data; load it with TahoeST.load\(path, adata\) to train it"):
        loaded.train()


def test_training_refuses_labels_that_a_one_hot_model_does_not_know(make_model, train, tmp_path, screen):
    known = screen[screen.obs["perturbation"] != "perturbation_6"].copy()
    train(make_model(known)).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"no embedding row for these perturbations of the data: \['perturbation_6'\]"):
        train(TahoeST.load(tmp_path / "model", screen))


def test_everything_that_is_saved_has_a_plain_type(make_model, train, tmp_path):
    """DataFrames of one pandas cannot be read by another."""
    model = train(make_model(setup=EMBEDDINGS))
    model.save(tmp_path / "model")
    saved = torch.load(tmp_path / "model" / "model.pt", weights_only=False)
    frames = []

    def visit(value, path):
        if type(value).__module__.split(".")[0] in ("pandas", "scvi_tahoe"):
            frames.append((path, type(value)))
        for key, entry in value.items() if isinstance(value, dict) else ():
            visit(entry, f"{path}/{key}")

    visit(saved["attr_dict"], "")
    assert frames == []
    assert isinstance(model.history["train_loss"], pd.DataFrame)


def test_training_leaves_the_data_as_they_were(make_model, train, screen, simulated):
    train(make_model(screen, setup=EMBEDDINGS, representation="expression+embedding"))
    pd.testing.assert_frame_equal(screen.obs, simulated.obs)
    pd.testing.assert_frame_equal(screen.var, simulated.var)
    assert {k for k in screen.uns if not k.startswith("_scvi")} == set(simulated.uns)
    assert (screen.X != simulated.X).nnz == 0
    np.testing.assert_array_equal(screen.obsm["X_embedding"], simulated.obsm["X_embedding"])


def test_backed_data_train_the_same_model(make_model, train, screen, tmp_path):
    expected = predict(train(make_model()))
    screen.write_h5ad(tmp_path / "screen.h5ad")
    model = make_model(ad.read_h5ad(tmp_path / "screen.h5ad", backed="r"))
    equal(predict(train(model)), expected)


@pytest.mark.parametrize("form", ["dense", "csc", "layer"])
def test_storage_does_not_decide_what_is_learnt(form, make_model, train, screen):
    expected = predict(train(make_model()))
    if form == "layer":
        screen.layers["lognorm"], screen.X = screen.X, screen.layers["counts"]
        model = make_model(screen, setup={"layer": "lognorm"})
    else:
        screen.X = screen.X.toarray() if form == "dense" else screen.X.tocsc()
        model = make_model(screen)
    equal(predict(train(model)), expected)


def test_two_models_of_one_session_do_not_influence_each_other(make_model, train, screen):
    expected = predict(train(make_model()))
    first = make_model()
    other = screen[:, :40].copy()
    second = make_model(other, setup={"batch_key": None}, set_size=4)
    train(second, max_steps=2)
    train(first)
    second.predict(n_cells=2, progress=False)
    equal(predict(first), expected)


def test_an_untrained_model_predicts_its_controls(make_model, recwarn, screen):
    predicted = predict(make_model(), control_layer=True)
    np.testing.assert_allclose(predicted.X, predicted.layers["control"], atol=1e-6)


def test_training_gets_closer_to_the_truth(simulated, make_model, train):
    model = make_model(simulated.copy(), size="mini", set_size=16, setup=EMBEDDINGS)
    with pytest.warns(UserWarning, match="not trained"):
        before = error_of_deltas(model, simulated)
    train(model, max_steps=150, validate_every=50, batch_size=8)
    assert error_of_deltas(model, simulated) < 0.5 * before


def error_of_deltas(model, simulated):
    predicted = model.predict(output="delta", progress=False)
    errors = []
    conditions = predicted.obs.groupby(["context", "perturbation"], observed=True).indices
    for (context, perturbation), rows in conditions.items():
        truth = simulated.uns["true_delta"][context].loc[perturbation].to_numpy()
        errors.append(np.square(predicted.X[rows].mean(0) - truth).mean())
    return float(np.mean(errors))


def test_the_real_screen_goes_the_whole_way(tmp_path):
    task = papalexi_few_shot()
    TahoeST.setup_anndata(task.train, task.perturbation_key, task.control, context_key=task.context_key)
    model = TahoeST(task.train, size={"hidden": 16, "n_layers": 1, "intermediate": 32, "n_heads": 2}, set_size=16)
    model.train(3, validate_every=3, batch_size=2, progress=False)
    question = {"perturbations": list(task.targets), "contexts": [task.context], "n_cells": 5, "progress": False}
    predicted = model.predict(**question)
    assert predicted.shape == (60, task.train.n_vars)
    assert np.isfinite(predicted.X).all()
    model.save(tmp_path / "model")
    again = TahoeST.load(tmp_path / "model", task.train)
    np.testing.assert_array_equal(again.predict(**question).X, predicted.X)


# ---------------------------------------------------------------- documentation


def test_no_public_docstring_has_a_placeholder_left():
    missing, left = [], []
    for name, member in inspect.getmembers(TahoeST):
        owner = getattr(member, "__func__", member)
        if name.startswith("_") or not getattr(owner, "__module__", "").startswith("scvi_tahoe"):
            continue
        text = inspect.getdoc(member) or ""
        missing += [] if text else [name]
        left += [name] if "%(" in text else []
    assert (missing, left) == ([], [])


def test_no_file_holds_a_placeholder_outside_the_decorated_docstrings():
    package = Path(scvi_tahoe.__file__).parent
    holders = {path.name for path in package.rglob("*.py") if "%(param" in path.read_text()}
    assert holders == {"_setup.py"}
