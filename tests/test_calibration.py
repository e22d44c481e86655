"""Calibration of a model and the alarm on collapsed predictions: applied, kept, taken away, and what is refused."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

from scvi_tahoe import FractionSplit, HeldOutPerturbations, TahoeST
from scvi_tahoe.datasets import simulate_screen
from scvi_tahoe.evaluate import EvaluationWarning, mean_cosine

SPLIT = HeldOutPerturbations(validation=["perturbation_1", "perturbation_2", "perturbation_3"])
#: asks for other factors than 1 of a model that was trained so briefly
LONGER = {"criterion": "effect_size", "allow_worse_mae": True}
DOSES = {"perturbation_key": "drug", "control": "DMSO", "dose_key": "dose"}
EMBEDDINGS = {"perturbation_embedding_key": "perturbation_embedding", "cell_embedding_key": "X_embedding"}


@pytest.fixture(scope="module")
def saved(simulated, tmp_path_factory):
    """Folder of a trained model whose predictions differ between perturbations; not calibrated."""
    adata = simulated.copy()
    TahoeST.setup_anndata(adata, "perturbation", "control", context_key="context", batch_key="batch", **EMBEDDINGS)
    model = TahoeST(
        adata, size={"hidden": 16, "n_layers": 2, "intermediate": 32, "n_heads": 2}, set_size=8, prior="none"
    )
    model.train(60, validate_every=10, batch_size=4, progress=False, lr=3e-3, split=SPLIT)
    assert model.training_config_["best_step"] > 0
    folder = tmp_path_factory.mktemp("calibration") / "model"
    model.save(folder)
    return folder


@pytest.fixture
def model(saved, screen):
    return TahoeST.load(saved, screen)


def predict(model, *args, **options):
    return model.predict(*args, progress=False, **options)


def calibrate(model, **options):
    return model.calibrate(progress=False, **options)


def halve_effects(model):
    """Calibrate, with a factor that can be seen."""
    model.calibration_ = replace(calibrate(model), factors=(0.5,))


def perturbation_doses(name):
    return [f"{name}@{dose}" for dose in (1, 10, 100)]


def deltas(predicted, screen):
    """Mean delta of each condition against the cells that it started from, and those cells' names."""
    groups = predicted.obs.groupby(["context", "perturbation"], observed=True).indices
    start = screen[predicted.obs["origin"]].X.toarray()
    return {name: predicted.X[rows].mean(axis=0) - start[rows].mean(axis=0) for name, rows in groups.items()}


def test_predicted_effects_are_scaled_by_what_was_fitted(model, screen):
    before = predict(model)
    result = calibrate(model)
    assert model.calibration_ is result
    assert result.n_conditions == 6
    halve_effects(model)
    after = predict(model)
    np.testing.assert_array_equal(after.X > 0, before.X > 0)
    expected, got = (deltas(p, screen) for p in (before, after))
    for name, delta in expected.items():
        np.testing.assert_allclose(got[name], 0.5 * delta, atol=1e-5)
    assert after.uns["scvi_tahoe_prediction"]["effect_factors"] == [0.5]


def test_each_dose_is_compared_with_its_own_cells(doses, make_model, train):
    """The error before calibration, computed from cells by hand."""
    asked = ["P@1", "P@100", "Q@10"]
    model = train(make_model(doses, setup=DOSES), split=HeldOutPerturbations(validation=asked))
    result = calibrate(model)
    model.calibration_ = None
    predicted, errors = predict(model, perturbations=asked, control_layer=True), []
    conditions = predicted.obs.groupby(["context", "drug", "dose"], observed=True).indices
    for (context, drug, dose), rows in conditions.items():
        delta = predicted.X[rows].mean(axis=0) - predicted.layers["control"][rows].mean(axis=0)
        here = doses.obs["context"] == context
        seen = doses[here & (doses.obs["drug"] == drug) & (doses.obs["dose"] == dose)].X.mean(axis=0)
        control = doses[here & (doses.obs["drug"] == "DMSO")].X.mean(axis=0)
        errors.append(np.abs(delta - np.asarray(seen - control).ravel()).mean())
    assert len(errors) == result.n_conditions == 6
    assert result.before["mae"] == pytest.approx(np.mean(errors), rel=1e-4)


def test_what_the_table_says_is_what_predictions_then_have(model, screen):
    """The error after calibration, computed from cells by hand."""
    result = calibrate(model, **LONGER, mode="strength")
    assert 1 not in result.factors
    predicted = deltas(predict(model, perturbations=list(SPLIT.validation)), screen)
    errors = []
    for (context, perturbation), delta in predicted.items():
        here = screen.obs["context"] == context
        seen, control = (
            screen[here & (screen.obs["perturbation"] == p)].X.mean(axis=0) for p in (perturbation, "control")
        )
        errors.append(np.abs(delta - np.asarray(seen - control).ravel()).mean())
    assert np.mean(errors) == pytest.approx(result.after["mae"], rel=1e-4)
    assert np.mean(errors) != pytest.approx(result.before["mae"], rel=1e-2)


def test_it_is_saved_with_the_model_and_can_be_taken_away(model, screen, tmp_path):
    plain = predict(model).X
    halve_effects(model)
    calibrated = predict(model).X
    model.save(tmp_path / "calibrated")
    loaded = TahoeST.load(tmp_path / "calibrated", screen.copy())
    assert repr(loaded.calibration_) == repr(model.calibration_)
    np.testing.assert_array_equal(predict(loaded).X, calibrated)
    loaded.calibration_ = None
    np.testing.assert_array_equal(predict(loaded).X, plain)
    assert not np.array_equal(plain, calibrated)


def test_a_delta_is_that_of_the_calibrated_cells(model):
    halve_effects(model)
    cells, delta = (predict(model, output=o, control_layer=True) for o in ("expression", "delta"))
    np.testing.assert_allclose(delta.X, cells.X - cells.layers["control"], atol=1e-5)


def test_calibrating_again_starts_from_what_the_network_says(model):
    first = calibrate(model, **LONGER)
    assert 1 not in first.factors
    assert repr(calibrate(model, **LONGER)) == repr(first)


def test_further_training_takes_the_calibration_away(model, train):
    calibrate(model)
    train(model, recipe="full")
    assert model.calibration_ is None


def test_a_training_that_is_refused_takes_nothing_away(model):
    calibration, split = calibrate(model), model.split_
    with pytest.raises(ValueError, match="layer_decay=0.5 has no effect"):
        model.train(2, recipe="heads", split=FractionSplit(validation=0.2), plan_kwargs={"layer_decay": 0.5})
    assert model.calibration_ is calibration
    assert model.split_ is split


def test_a_calibrated_model_is_not_exported_in_silence(model, tmp_path):
    calibrate(model)
    with pytest.raises(ValueError, match="this model is calibrated; keep it with save"):
        model.export(tmp_path / "export")


@pytest.mark.parametrize("options", [{"prior": "cells"}, {"representation": "embedding"}], ids=["prior", "embedding"])
def test_every_kind_of_model_can_be_calibrated(options, make_model, train):
    model = train(make_model(setup=EMBEDDINGS, **options), split=SPLIT)
    result = calibrate(model)
    assert result.after["mae"] <= result.before["mae"]
    assert np.isfinite(predict(model, n_cells=3).X).all()


def test_an_effect_on_a_prior_of_cells_is_not_measured_from_a_draw_of_controls(make_model, train, screen):
    """Cells of a prior owe nothing to the control cells of a prediction, of which few would pass for strong effects."""
    model = train(make_model(prior="cells"), split=SPLIT)
    halve_effects(model)
    model.calibration_ = replace(model.calibration_, limits=(), factors=(0.5,))
    calibrated = predict(model, n_cells=8)
    model.calibration_ = None
    plain = predict(model, n_cells=8)
    for (context, _), rows in plain.obs.groupby(["context", "perturbation"], observed=True).indices.items():
        controls = screen[(screen.obs["context"] == context) & (screen.obs["perturbation"] == "control")]
        control = controls.X.toarray().mean(axis=0)
        before, after = (p.X[rows].mean(axis=0) for p in (plain, calibrated))
        wanted = np.clip(control + 0.5 * (before - control), 0, 2 * before)
        np.testing.assert_allclose(after, wanted, atol=1e-4)


def test_effects_on_a_prior_of_cells_are_fitted_as_they_are_then_measured(make_model, train, screen):
    model = train(make_model(prior="cells"), split=SPLIT)
    before = calibrate(model, n_cells=8).before
    model.calibration_ = None
    predicted = predict(model, perturbations=list(SPLIT.validation), n_cells=8)
    groups = predicted.obs.groupby(["context", "perturbation"], observed=True).indices
    seen = screen.obs.groupby(["context", "perturbation"], observed=True).indices
    # the same mean control cell is subtracted from both
    errors = [
        np.abs(predicted.X[rows].mean(0) - screen.X[seen[name]].toarray().mean(0)) for name, rows in groups.items()
    ]
    assert np.mean(errors) == pytest.approx(before["mae"], rel=1e-4)


def test_few_conditions_are_not_taken_for_all(model, make_model, train):
    with pytest.warns(
        EvaluationWarning, match=r"6 conditions validate \(perturbation_1 in context_1, .*Train with a split"
    ):
        calibrate(model)
    names = [f"perturbation_{i}" for i in range(1, 6)]
    many = train(make_model(prior="none"), split=HeldOutPerturbations(validation=names))
    with warnings.catch_warnings():
        warnings.simplefilter("error", EvaluationWarning)
        assert calibrate(many).n_conditions == 10


def test_the_split_is_drawn_as_it_was_in_training(make_model, train):
    """Fitted on the validation cells of the training's own seed: another seed would hold out others."""
    model = train(make_model(), split=FractionSplit(validation=0.3), seed=3)
    expected = calibrate(model).before
    model.training_config_["plan"]["seed"] = 4
    assert calibrate(model).before["mae"] != pytest.approx(expected["mae"], rel=1e-9)


def test_what_cannot_be_calibrated_is_refused(make_model, train, model, saved):
    with pytest.raises(ValueError, match=r"needs the validation part of a training; call model.train\(\) first"):
        calibrate(make_model())
    with pytest.warns(UserWarning, match="no cell validates"):
        unvalidated = train(make_model(), split=FractionSplit(validation=0))
    with pytest.raises(ValueError, match="no cell validates with the split of the training"):
        calibrate(unvalidated)
    with pytest.raises(ValueError, match="loaded without data"):
        calibrate(TahoeST.load(saved, adata=False))
    with pytest.raises(ValueError, match="n_cells=0 must be 1 or more"):
        calibrate(model, n_cells=0)
    embedding = {"setup": EMBEDDINGS, "representation": "embedding", "objective": {"decoder_weight": 0.0}}
    with pytest.raises(ValueError, match="decoder that was not trained, so they have no effects to calibrate"):
        calibrate(train(make_model(**embedding), split=SPLIT))
    calibrate(model, factors=[0.5])
    kept = model.calibration_
    with warnings.catch_warnings():
        warnings.simplefilter("error", EvaluationWarning)  # a refusal comes alone
        for options, message in (
            ({"mode": "local"}, "mode='local' is unknown"),
            ({"criterion": "pds"}, "criterion='pds' is unknown"),
            ({"factors": [3]}, r"factors=\[3\] must lie between 0 and 2"),
            ({"n_cells": 0}, "n_cells=0 must be 1 or more"),
        ):
            with pytest.raises(ValueError, match=message):
                calibrate(model, **options)
            with pytest.raises(ValueError, match=message):
                calibrate(make_model(), **options)
    assert model.calibration_ is kept


def test_the_alarm_measures_effects_on_a_prior_of_cells_from_all_controls(make_model):
    data = simulate_screen(1, 6, n_genes=60, n_cells=40, n_control_cells=60)
    model = make_model(data, prior="cells")
    model.train(4, validate_every=2, batch_size=4, progress=False)
    with pytest.warns(EvaluationWarning, match="mode collapse") as warned:
        predicted = predict(model, n_cells=4)
    control = data[data.obs["perturbation"] == "control"].X.toarray().mean(axis=0)
    groups = predicted.obs.groupby("perturbation", observed=True).indices
    cosine = mean_cosine(np.stack([predicted.X[rows].mean(axis=0) - control for rows in groups.values()]))
    assert f"have a mean cosine of {cosine:.2f} " in str(warned[0].message)


def test_too_few_conditions_are_refused_before_anything_is_predicted(make_model, train):
    split = HeldOutPerturbations(validation=["perturbation_1", "perturbation_2"])
    model = train(make_model(), split=split)
    with warnings.catch_warnings():
        warnings.simplefilter("error", EvaluationWarning)
        with pytest.raises(ValueError, match="4 validation conditions are too few for mode='strength', which needs 6"):
            calibrate(model, mode="strength")


def test_a_model_that_predicts_one_change_for_all_sets_off_the_alarm(make_model):
    model = make_model(simulate_screen(1, 6, n_genes=60, n_cells=40, n_control_cells=60))
    model.train(4, validate_every=2, batch_size=4, progress=False, lr=0.01)
    assert set(model.observed_cosine_) == {"context_1"}
    with pytest.warns(
        EvaluationWarning, match="mode collapse in 'context_1'.*observed in training: 0.*nearly the same"
    ):
        predict(model)
    with pytest.warns(EvaluationWarning, match="mode collapse in 'context_1'"):
        predict(model, output="delta", n_cells=20)


def test_a_model_that_tells_perturbations_apart_does_not(make_model):
    """What each perturbation did in the other context, hardly changed by a step of training."""
    model = make_model(simulate_screen(2, 6, n_genes=60, n_cells=40, n_control_cells=60), prior="transfer")
    model.train(1, validate_every=1, batch_size=4, progress=False)
    assert set(model.observed_cosine_) == {"context_1", "context_2"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", EvaluationWarning)
        predict(model)


@pytest.fixture
def alike_doses():
    """Two drugs whose doses do the same."""
    adata = simulate_screen(1, 2, n_genes=60, n_cells=120, n_control_cells=60)
    adata.obs["drug"] = adata.obs["perturbation"].astype(str).replace("control", "DMSO")
    place = adata.obs.groupby("drug").cumcount() % 3
    adata.obs["dose"] = np.where(adata.obs["drug"] == "DMSO", np.nan, 10.0**place)
    return adata


def test_doses_of_one_drug_may_be_alike(alike_doses, make_model):
    model = make_model(alike_doses, setup=DOSES)
    model.train(4, validate_every=2, batch_size=4, progress=False, lr=0.01, split=FractionSplit(validation=0.1))
    one, other = (perturbation_doses(f"perturbation_{i}") for i in (1, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error", EvaluationWarning)
        predict(model, perturbations=one)
    with pytest.warns(EvaluationWarning, match="mode collapse in 'context_1'"):
        predict(model, perturbations=[one[0], other[2]])


def test_observed_drugs_are_compared_and_not_their_doses(alike_doses, make_model):
    brief = {"validate_every": 1, "progress": False, "split": FractionSplit(validation=0.1)}
    dosed = make_model(alike_doses.copy(), setup=DOSES)
    plain = make_model(alike_doses.copy(), setup={**DOSES, "dose_key": None})
    for model in (dosed, plain):
        model.train(1, **brief)
    assert dosed.observed_cosine_["context_1"] == pytest.approx(plain.observed_cosine_["context_1"], abs=0.05)
    one_drug = alike_doses[alike_doses.obs["drug"] != "perturbation_2"].copy()
    alone = make_model(one_drug, setup=DOSES)
    alone.train(1, **brief)
    assert alone.observed_cosine_ == {}


def test_too_few_observed_cells_say_nothing_about_collapse(model):
    """24 cells a condition: their deltas are mostly noise, next to which every prediction looks collapsed."""
    assert model.observed_cosine_ == {}
