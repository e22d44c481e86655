"""What a model has after training is its best validation, and what a folder has is complete at every moment."""

from __future__ import annotations

import logging

import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback

from scvi_tahoe import FractionSplit, HeldOutConditions, HeldOutPerturbations


def checkpoint(folder, name):
    loaded = torch.load(folder / name, weights_only=True)
    return loaded["global_step"], {k.removeprefix("module."): v for k, v in loaded["state_dict"].items()}


def equal(a, b):
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


def test_the_best_validation_is_restored_not_the_last(make_model, train, weights, tmp_path):
    options = {"lr": 0.1, "max_steps": 10, "validate_every": 2, "plan_kwargs": {"schedule": "constant"}}
    model = train(make_model(), save_dir=tmp_path, **options)  # a high rate: it gets better, then worse
    losses = model.history["validation_loss"]["validation_loss"]
    best_step, best = checkpoint(tmp_path, "best.ckpt")
    last_step, last = checkpoint(tmp_path, "last.ckpt")
    assert best_step == losses.idxmin() + 1 < last_step == 10
    assert equal(weights(model), best)
    assert not equal(weights(model), last)
    assert model.training_config_["best_step"] == best_step
    assert model.training_config_["best_value"] == losses.min()
    in_memory = train(make_model(), **options)
    assert equal(weights(in_memory), best)


def test_training_that_only_makes_it_worse_leaves_what_it_started_from(make_model, train, weights, tmp_path):
    options = {"lr": 1.0, "validate_every": 2, "plan_kwargs": {"warmup": 0.0}}
    start = weights(make_model())
    model = train(make_model(), save_dir=tmp_path, **options)
    assert model.training_config_["best_step"] == 0
    assert model.training_config_["best_value"] < model.history["validation_loss"]["validation_loss"].min()
    assert equal(weights(model), start)
    assert checkpoint(tmp_path, "best.ckpt")[0] == 0


def test_the_monitored_metric_decides(make_model, train, tmp_path):
    model = train(make_model(), monitor="validation_delta_mse", validate_every=2)
    assert model.training_config_["best_value"] == model.history["validation_delta_mse"].min().item()


def test_the_last_steps_are_validated_where_they_do_not_fill_an_interval(make_model, train):
    history = train(make_model(), max_steps=10, validate_every=4).history
    assert history["validation_loss"].index.tolist() == [3, 7, 9]
    short = train(make_model(), max_steps=3, validate_every=100)
    assert short.history["validation_loss"].index.tolist() == [2]
    assert short.training_config_["best_step"] == 3


def test_patience_stops_a_run_that_does_not_improve(make_model, train):
    model = train(make_model(), lr=1.0, max_steps=60, validate_every=1, patience=3, recipe="full")
    steps = len(model.history["validation_loss"])
    assert steps < 60
    assert steps == max(model.training_config_["best_step"], 1) + 3


def test_without_validation_cells_a_warning_says_what_the_model_keeps(make_model, train):
    split = FractionSplit(validation=0.0)
    with pytest.warns(UserWarning, match=r"no cell validates with FractionSplit\(validation=0.0.*keep the last"):
        model = train(make_model(), split=split)
    assert model.training_config_["best_step"] is None
    assert "validation_loss" not in model.history
    with pytest.raises(ValueError, match="patience=2 needs validation cells, and FractionSplit.* leaves none"):
        train(make_model(), split=split, patience=2)
    with pytest.raises(ValueError, match="monitor=validation_pds needs validation cells, and FractionSplit.* leaves"):
        train(make_model(), split=split, monitor="validation_pds")


def test_an_unknown_metric_is_refused_with_those_there_are(make_model, train):
    with pytest.raises(ValueError, match=r"monitor='validation_mmd' is not computed in this run; there are"):
        train(make_model(), monitor="validation_mmd")
    model = make_model()
    names = r"\['validation_loss', .*'validation_pds', 'validation_pearson_delta', 'validation_overlap'\]"
    near = r"\(did you mean 'validation_pds'\?\)"
    with pytest.raises(ValueError, match=rf"'validation_pdss' is not computed in this run {near}; there are {names}"):
        train(model, monitor="validation_pdss")
    assert model.split_ is None  # nothing of a training has begun


def test_a_metric_of_the_users_own_decides(make_model, train):
    class Own(Callback):
        def on_validation_epoch_end(self, trainer, plan):
            plan.log("validation_own", float(-trainer.global_step))

    model = train(make_model(), monitor="validation_own", callbacks=[Own()])
    assert model.training_config_["best_step"] == 8
    with pytest.raises(ValueError, match="monitor='validation_other' is not computed in this run; there are .*_own"):
        train(make_model(), monitor="validation_other", callbacks=[Own()])


@pytest.mark.parametrize(
    ("prior", "warm", "kept"),
    [
        ("none", False, "those of the weights that training started from"),
        ("transfer", False, "the prior's"),
        ("transfer", True, "those of the weights that training started from"),
    ],
)
def test_a_run_that_improves_nothing_keeps_its_start_and_says_so(prior, warm, kept, make_model, train, weights, caplog):
    held_out = HeldOutConditions(validation=0.3)
    model = make_model(prior=prior)
    if warm:
        train(model, lr=0.01)
    start = weights(model)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="scvi_tahoe"):
        train(model, lr=10.0, split=held_out, validate_every=2, plan_kwargs={"warmup": 0.0})
    assert model.training_config_["best_step"] == 0
    assert f"predictions are {kept}." in caplog.text
    assert "of the network's correction" not in caplog.text
    assert model.training_config_["correction_share"] is None
    assert equal(weights(model), start)


def test_of_a_score_more_is_better(make_model, train, weights, tmp_path):
    options = {"lr": 0.1, "max_steps": 12, "validate_every": 2, "monitor": "validation_pearson_delta"}
    model = train(make_model(), save_dir=tmp_path, **options)
    scores = model.history["validation_pearson_delta"]["validation_pearson_delta"]
    assert scores.nunique() > 1
    assert model.training_config_["best_value"] == pytest.approx(scores.max())
    best_step, best = checkpoint(tmp_path, "best.ckpt")
    assert best_step == model.training_config_["best_step"] == scores.idxmax() + 1
    assert equal(weights(model), best)


def test_patience_waits_for_a_score(make_model, train):
    model = train(
        make_model(), lr=1.0, max_steps=60, validate_every=1, patience=3, monitor="validation_pearson_delta"
    )  # fmt: skip
    steps = len(model.history["validation_pearson_delta"])
    assert steps < 60
    assert steps == model.training_config_["best_step"] + 3


@pytest.mark.parametrize(
    ("save_steps", "message"),
    [(3, "save_steps=3 must be a multiple of validate_every, which is 4"), (0, "save_steps=0 must be a multiple")],
)
def test_checkpoints_between_two_validations_are_refused(save_steps, message, make_model, train, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(make_model(), save_steps=save_steps, save_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="save_steps=4 writes checkpoints; give a save_dir"):
        train(make_model(), save_steps=4)


def test_a_run_leaves_three_complete_files(make_model, train, tmp_path):
    folder, split = tmp_path / "new" / "run", HeldOutPerturbations(validation=["perturbation_1"])
    model = train(make_model(), save_dir=folder, split=split)
    assert {f.name for f in folder.iterdir()} == {"best.ckpt", "last.ckpt", "metrics.csv"}
    table = pd.read_csv(folder / "metrics.csv", index_col="step")
    for name, frame in model.history.items():
        pd.testing.assert_series_equal(table[name].dropna(), frame[name], check_names=False, check_dtype=False)
