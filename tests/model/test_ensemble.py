"""Ensembles: the mean of the members, their spread, evaluation, files, and what is refused."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from scvi_tahoe import HeldOutPerturbations, TahoeEnsemble, TahoeST
from scvi_tahoe.evaluate import EvaluationReference

SIZE = {"hidden": 16, "n_layers": 2, "intermediate": 32, "n_heads": 2}
BRIEF = {"max_steps": 8, "validate_every": 4, "batch_size": 2, "progress": False, "lr": 0.01}


@pytest.fixture(scope="module")
def registered(simulated):
    adata = simulated.copy()
    TahoeST.setup_anndata(adata, "perturbation", "control", context_key="context", batch_key="batch")
    return adata


@pytest.fixture(scope="module")
def ensemble(registered):
    split = HeldOutPerturbations(validation=["perturbation_1"])
    return TahoeEnsemble.train(
        registered, seeds=(3, 5, 7), model_kwargs={"size": SIZE, "set_size": 8}, split=split, **BRIEF
    )


def predict(model, *args, **options):
    return model.predict(*args, progress=False, **options)


def test_one_model_is_trained_for_each_seed(ensemble):
    assert [m.training_config_["plan"]["seed"] for m in ensemble.models] == [3, 5, 7]
    assert len({float(predict(m, n_cells=4).X.sum()) for m in ensemble.models}) == 3
    assert "TahoeEnsemble of 3 models" in repr(ensemble)


def test_the_mean_of_a_condition_is_the_mean_over_members(ensemble, screen):
    predicted = predict(ensemble)
    members = [predict(m) for m in ensemble.models]
    start = screen[predicted.obs["origin"]].X.toarray()
    table = predicted.uns["scvi_tahoe_ensemble"]
    assert list(table.columns) == ["perturbation", "context", "effect_size", "uncertainty"]
    assert len(table) == 12
    for k, row in enumerate(table.itertuples()):
        rows = (
            (predicted.obs["perturbation"] == row.perturbation) & (predicted.obs["context"] == row.context)
        ).to_numpy()
        means = np.stack([m.X[rows].mean(axis=0) for m in members])
        delta = means.mean(axis=0) - start[rows].mean(axis=0)
        np.testing.assert_allclose(predicted.X[rows].mean(axis=0), np.minimum(means.mean(0), 2 * means[0]), atol=1e-5)
        np.testing.assert_allclose(predicted.varm["ensemble_delta"][:, k], delta, atol=1e-5)
        np.testing.assert_allclose(predicted.varm["ensemble_sd"][:, k], means.std(axis=0, ddof=1), atol=1e-5)
        uncertainty = np.linalg.norm(means.std(axis=0, ddof=1)) / np.linalg.norm(delta)
        assert row.uncertainty == pytest.approx(uncertainty, rel=1e-3)


@pytest.mark.parametrize(("context_key", "prior"), [("context", "cells"), (None, "cells"), ("context", "response")])
def test_effects_on_a_prior_of_cells_are_those_against_all_controls(context_key, prior, simulated):
    adata = simulated.copy()
    TahoeST.setup_anndata(adata, "perturbation", "control", context_key=context_key)
    options = {"size": SIZE, "set_size": 8, "prior": prior}
    ensemble = TahoeEnsemble.train(adata, seeds=(3, 5), model_kwargs=options, **{**BRIEF, "max_steps": 4})
    context = adata.obs["context"].to_numpy() == "context_1" if context_key else np.ones(adata.n_obs, dtype=bool)
    asked = {"contexts": ["context_1"]} if context_key else {}
    asked |= {"perturbations": ["perturbation_1"], "n_cells": 4}
    predicted = predict(ensemble, **asked)
    control = adata[context & (adata.obs["perturbation"] == "control").to_numpy()].X.toarray().mean(axis=0)
    mean = np.mean([predict(m, **asked).X.mean(axis=0) for m in ensemble.models], axis=0)
    np.testing.assert_allclose(predicted.varm["ensemble_delta"][:, 0], mean - control, atol=1e-5)
    # the agreement of seeds says nothing about the error of a response model, which has its own expectation
    assert ("uncertainty" in predicted.obs) == (prior == "cells")
    assert ("expected_error" in predicted.obs) == (prior != "cells")
    among = predict(ensemble, n_cells=4).uns["scvi_tahoe_ensemble"]
    assert among["effect_size"].iloc[0] == predicted.uns["scvi_tahoe_ensemble"]["effect_size"].item()


def test_each_dose_has_its_own_effect_and_uncertainty(doses, tmp_path):
    TahoeST.setup_anndata(doses, "drug", "DMSO", context_key="context", dose_key="dose")
    options = {"size": SIZE, "set_size": 8, "prior": "none"}
    ensemble = TahoeEnsemble.train(doses, seeds=(0, 1), model_kwargs=options, **BRIEF)
    asked = {"perturbations": ["Q@10", "P@3", "P@100"], "contexts": ["context_2", "context_1"], "n_cells": 6}
    predicted = predict(ensemble, **asked, control_layer=True)
    members = [predict(m, **asked).X for m in ensemble.models]
    table = predicted.uns["scvi_tahoe_ensemble"]
    assert list(table.columns) == ["drug", "dose", "context", "effect_size", "uncertainty"]
    doses_of_drugs = [("Q", 10.0), ("P", 3.0), ("P", 100.0)]
    expected = [(*pair, context) for context in asked["contexts"] for pair in doses_of_drugs]
    assert list(table[["drug", "dose", "context"]].itertuples(index=False, name=None)) == expected
    assert predicted.varm["ensemble_delta"].shape == (60, 6)
    assert table["uncertainty"].nunique() == 6
    for k, uncertainty in enumerate(table["uncertainty"]):
        rows = slice(6 * k, 6 * k + 6)  # one condition after the other
        means = np.stack([m[rows].mean(axis=0) for m in members])
        delta = means.mean(axis=0) - predicted.layers["control"][rows].mean(axis=0)
        np.testing.assert_allclose(predicted.varm["ensemble_delta"][:, k], delta, atol=1e-5)
        np.testing.assert_array_equal(predicted.obs["uncertainty"].iloc[rows], uncertainty)
    predicted.write_h5ad(tmp_path / "predicted.h5ad")
    assert ad.read_h5ad(tmp_path / "predicted.h5ad").uns["scvi_tahoe_ensemble"]["dose"].dtype == float


def test_zeros_and_columns_are_those_of_the_first_member(ensemble, tmp_path):
    predicted, first = predict(ensemble), predict(ensemble.models[0])
    np.testing.assert_array_equal(predicted.X > 0, first.X > 0)
    assert predicted.obs.equals(first.obs)
    assert "control" not in predicted.layers
    assert "control" in predict(ensemble, control_layer=True).layers
    predicted.write_h5ad(tmp_path / "predicted.h5ad")
    np.testing.assert_array_equal(
        ad.read_h5ad(tmp_path / "predicted.h5ad").varm["ensemble_sd"], predicted.varm["ensemble_sd"]
    )


def test_equal_members_are_certain_and_predict_what_each_predicts(ensemble):
    same = TahoeEnsemble([ensemble.models[0]] * 2)
    predicted = predict(same)
    np.testing.assert_allclose(predicted.X, predict(ensemble.models[0]).X, atol=1e-6)
    np.testing.assert_array_equal(predicted.uns["scvi_tahoe_ensemble"]["uncertainty"], 0)


def test_a_prediction_is_scored_like_that_of_a_model(ensemble, screen):
    options = {"preset": "quick", "baseline": None, "representation_check": "off", "progress": False}
    result = ensemble.evaluate(screen, **options)
    sizes = (
        screen.obs.loc[screen.obs["perturbation"] != "control"]
        .groupby(["context", "perturbation"], observed=True)
        .size()
    )
    prediction = predict(ensemble, screen, n_cells={k: int(v) for k, v in sizes.items()})
    again = ensemble.evaluate(screen, prediction, **options)
    assert result.summary["value"].equals(again.summary["value"])
    keys = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}
    ready = ensemble.evaluate(EvaluationReference.from_adata(screen, **keys), allow_train=True, **options)
    assert result.summary["value"].equals(ready.summary["value"])
    with pytest.raises(ValueError, match=r"preset='vcc2026' scores counts, .* ensemble.models\[0\].evaluate"):
        ensemble.evaluate(screen, preset="vcc2026")
    assert (
        result.summary.loc["mae", "value"] != ensemble.models[0].evaluate(screen, **options).summary.loc["mae", "value"]
    )


def test_a_saved_ensemble_predicts_what_it_predicted_before(ensemble, screen, tmp_path):
    expected = predict(ensemble).X
    ensemble.save(tmp_path / "ensemble")
    np.testing.assert_array_equal(predict(TahoeEnsemble.load(tmp_path / "ensemble", screen.copy())).X, expected)
    without = TahoeEnsemble.load(tmp_path / "ensemble", adata=False)
    np.testing.assert_array_equal(predict(without, screen).X, expected)
    with pytest.raises(FileExistsError, match="exists; give overwrite=True"):
        ensemble.save(tmp_path / "ensemble")
    TahoeEnsemble(ensemble.models[:2]).save(tmp_path / "ensemble", overwrite=True)
    names = sorted(p.name for p in (tmp_path / "ensemble").iterdir())
    assert names == ["checksums.json", "ensemble.json", "member_0", "member_1"]
    assert [p.name for p in tmp_path.iterdir()] == ["ensemble"]


def test_a_folder_that_holds_no_ensemble_is_left_alone_and_not_loaded(ensemble, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="is no ensemble; it is not replaced"):
        ensemble.save(tmp_path / "notes", overwrite=True)
    with pytest.raises(FileNotFoundError, match="holds no ensemble"):
        TahoeEnsemble.load(tmp_path / "notes")


def test_a_function_makes_each_member_and_folders_are_named_by_seed(registered, tmp_path):
    made = []

    def make(seed):
        made.append(seed)
        return TahoeST(registered, size=SIZE, set_size=8, prior="none", seed=seed)

    TahoeEnsemble.train(make, seeds=[1, 2], save_dir=tmp_path, **{**BRIEF, "max_steps": 2, "validate_every": 1})
    assert made == [1, 2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["seed_1", "seed_2"]
    assert (tmp_path / "seed_2" / "best.ckpt").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": [0]}, r"seeds=\[0\] must be two or more different numbers"),
        ({"seeds": [1, 1]}, "must be two or more different numbers"),
        ({"seed": 0}, "an ensemble does not take seed"),
        ({"resume_from": "last.ckpt"}, "an ensemble does not take resume_from"),
        ({"data": lambda seed: seed, "model_kwargs": {"size": "mini"}}, "the function that was given makes its own"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_any_training(options, message, registered):
    with pytest.raises(ValueError, match=message):
        TahoeEnsemble.train(**{"data": registered, **options})


def test_one_model_an_untrained_one_and_something_else_are_refused(ensemble, make_model):
    first = ensemble.models[0]
    with pytest.raises(ValueError, match="an ensemble needs two or more models; got 1"):
        TahoeEnsemble([first])
    with pytest.raises(ValueError, match="member 1 is not trained"):
        TahoeEnsemble([first, make_model()])
    with pytest.raises(TypeError, match=r"models is \[scvi_tahoe.TahoeST, 1\]; allowed is a list of TahoeST"):
        TahoeEnsemble([first, 1])


OTHER_MEMBERS = {
    "genes": (lambda a: a[:, :50], {}),
    "perturbations": (lambda a: a[a.obs["perturbation"] != "perturbation_6"], {}),
    "columns": (lambda a: a, {"setup": {"batch_key": None}}),
    "representation: expression\\+embedding and expression": (
        lambda a: a, {"setup": {"cell_embedding_key": "X_embedding"}, "representation": "expression+embedding"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHER_MEMBERS)
def test_members_that_differ_are_refused(what, ensemble, make_model, train, screen):
    change, options = OTHER_MEMBERS[what]
    other = train(make_model(change(screen).copy(), **options), max_steps=1, validate_every=1)
    with pytest.raises(ValueError, match=f"members 0 and 1 differ in their {what}"):
        TahoeEnsemble([ensemble.models[0], other])


def test_other_outputs_are_refused_with_where_to_find_them(ensemble):
    with pytest.raises(ValueError, match=r"output='delta': .*mean deltas are in varm\['ensemble_delta'\]"):
        predict(ensemble, output="delta")
