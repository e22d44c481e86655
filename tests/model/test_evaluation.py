"""`model.evaluate`: predicts what was observed and scores it, wherever the expression lies."""

from __future__ import annotations

import numpy as np
import pytest
from mudata import MuData

from scvi_tahoe import EvaluationReference, TahoeST
from scvi_tahoe.evaluate import RepresentationError

QUICK = {"preset": "quick", "baseline": None, "train": None, "progress": False}


@pytest.fixture
def model(make_model, train):
    return train(make_model())


@pytest.fixture
def held_out(screen):
    """Two perturbations and the controls, as observed cells."""
    wanted = [*screen.obs["perturbation"].unique()[:3], "control"]
    return screen[screen.obs["perturbation"].isin(wanted).to_numpy()].copy()


def observed_conditions(adata):
    perturbed = adata.obs[adata.obs["perturbation"] != "control"]
    return perturbed.groupby(["context", "perturbation"], observed=True).size()


def test_every_observed_condition_is_predicted_with_as_many_cells(model, held_out):
    scores = model.evaluate(held_out, **QUICK).per_perturbation
    sizes = observed_conditions(held_out)
    assert scores["n_cells"].to_dict() == scores["n_cells_predicted"].to_dict() == sizes.to_dict()


def test_held_out_conditions_of_the_training_data_are_refused_before_anything_is_predicted(
    model, held_out, monkeypatch
):
    monkeypatch.setattr(TahoeST, "predict", lambda *args, **kwargs: pytest.fail("predicted before it was checked"))
    with pytest.raises(ValueError, match="leakage"):
        model.evaluate(held_out, preset="quick", baseline=None, progress=False)
    with pytest.raises(ValueError, match="no baseline 'train_means'"):
        model.evaluate(held_out, preset="quick", baseline="train_means", progress=False, allow_train=True)


def test_control_cells_on_another_scale_are_refused_before_anything_is_predicted(model, held_out, monkeypatch):
    monkeypatch.setattr(TahoeST, "predict", lambda *args, **kwargs: pytest.fail("predicted before it was checked"))
    controls = (held_out.obs["perturbation"] == "control").to_numpy()
    expression = held_out.X.toarray() if hasattr(held_out.X, "toarray") else held_out.X.copy()
    expression[controls] = np.log1p(10 * np.expm1(expression[controls]))
    held_out.X = expression
    with pytest.raises(RepresentationError, match="control cells of the reference"):
        model.evaluate(held_out, preset="quick", baseline=None, progress=False, train=None)


def test_ridge_and_nearest_are_computed_from_the_tables_of_the_model(model, held_out):
    result = model.evaluate(held_out, preset="quick", progress=False, allow_train=True)
    names = set(result.baselines.index)
    tables = model._embedding_tables() or {}
    assert {"control", "train_mean"} <= names
    assert {f"{kind}:{table}" for kind in ("ridge", "nearest") for table in tables} <= names


def test_a_ready_reference_is_compared_with_what_the_model_has_seen(make_model, train, screen, held_out):
    keys = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}
    reference = EvaluationReference.from_adata(held_out, **keys)
    quick = {"preset": "quick", "baseline": None, "progress": False}
    seen = train(make_model())
    n = len(observed_conditions(held_out))
    with pytest.raises(RepresentationError, match=f"{n} of {n} held-out conditions are in the training data too"):
        seen.evaluate(reference, **quick)
    told = seen.evaluate(reference, **quick, representation_check="off").checks
    assert told.index[0] == "leakage of conditions"
    assert told["status"].iloc[0] == "error"
    assert seen.evaluate(reference, **quick, allow_train=True).per_perturbation.shape[0] == n
    held = screen.obs["perturbation"].isin(set(held_out.obs["perturbation"]) - {"control"})
    conditions = {(c, p) for c, p in observed_conditions(held_out).index}
    assert conditions <= set(seen._conditions(seen.adata))
    assert not conditions & set(seen._conditions(screen[~held].copy()))


@pytest.mark.parametrize(("weight", "status"), [(0.0, "error"), (1e-5, "warning"), (0.1, "warning")])
def test_genes_of_a_decoder_that_was_not_trained_are_refused(make_model, train, held_out, weight, status):
    model = make_model(
        representation="embedding", setup={"cell_embedding_key": "X_embedding"}, objective={"decoder_weight": weight}
    )
    result = train(model).evaluate(held_out, **QUICK, representation_check="off")
    assert result.checks.loc["space", "status"] == status
    if weight > 0:
        own = model.history["validation_decoder"].sort_index().loc[: model.training_config_["best_step"]].iloc[-1, 0]
        assert f"whose own validation error is {own:.4g}" in result.checks.loc["space", "message"]
    if status == "error":
        with pytest.raises(RepresentationError, match="gene decoder was not trained"):
            model.evaluate(held_out, **QUICK)


def test_expression_is_read_from_the_registered_layer(make_model, train, screen, held_out):
    for adata in (screen, held_out):
        adata.layers["lognorm"] = adata.X.copy()
        adata.X = adata.layers["counts"].copy()
    model = train(make_model(screen, setup={"layer": "lognorm"}))
    result = model.evaluate(held_out, **QUICK)
    assert result.checks.loc["scale", "status"] == "ok"


def test_a_mudata_scores_like_the_anndata_it_was_made_of(model, held_out):
    rna = held_out.copy()
    obs = rna.obs[["perturbation", "context", "batch"]].copy()
    rna.obs = rna.obs[[]]
    mdata = MuData({"rna": rna})
    mdata.obs = mdata.obs.join(obs)
    keys = {"perturbation_key": "perturbation", "control": "control", "context_key": "context", "batch_key": "batch"}
    TahoeST.setup_mudata(mdata, **keys, modalities={"expression": "rna"})
    from_mudata = TahoeST(mdata, **model_options())
    from_mudata.train(max_steps=2, validate_every=2, batch_size=2, progress=False)
    result = from_mudata.evaluate(mdata, **QUICK)
    assert result.per_perturbation["n_cells"].sum() == observed_conditions(held_out).sum()
    same = from_mudata.evaluate(held_out, **QUICK)
    assert same.summary["value"].to_dict() == pytest.approx(result.summary["value"].to_dict(), nan_ok=True)


def model_options():
    return {"size": {"hidden": 16, "n_layers": 2, "intermediate": 32, "n_heads": 2}, "set_size": 8}


def test_a_reference_that_was_not_read_needs_the_prediction(model, held_out):
    read = EvaluationReference.from_adata(
        held_out, perturbation_key="perturbation", control="control", context_key="context", ceiling=False
    )
    bare = EvaluationReference(
        read.cells, control="control", perturbation_key="perturbation", context_key="context", ceiling=False
    )
    options = {"preset": "quick", "baseline": None, "progress": False, "allow_train": True}
    with pytest.raises(ValueError, match="pass prediction="):
        model.evaluate(bare, **options)
    predicted = model.evaluate(read, **options)
    assert predicted.provenance["truth"] == read.fingerprint
