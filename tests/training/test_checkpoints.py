"""What a model has after training is its best validation, and what a folder has is complete at every moment."""

from __future__ import annotations

import logging
import sys
import tracemalloc
from pathlib import Path

import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback

from scvi_tahoe import FractionSplit, HeldOutConditions, HeldOutPerturbations
from scvi_tahoe.training._checkpoints import KeepBest, StreamedCheckpointIO


def checkpoint(folder, name):
    loaded = torch.load(folder / name, weights_only=True)
    return loaded["global_step"], {k.removeprefix("module."): v for k, v in loaded["state_dict"].items()}


def equal(a, b):
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("monitor", ["validation_loss", "validation_pearson_delta"])
def test_the_best_validation_is_restored_not_the_last(monitor, make_model, train, weights, tmp_path):
    """At a high rate a loss gets better, then worse; of a score more is better."""
    less = monitor == "validation_loss"
    options = {"lr": 0.1, "validate_every": 2, "monitor": monitor, "max_steps": 12}
    options |= {"max_steps": 10, "plan_kwargs": {"schedule": "constant"}} if less else {}
    model = train(make_model(), save_dir=tmp_path, **options)
    values, config = model.history[monitor][monitor], model.training_config_
    best_step, best = checkpoint(tmp_path, "best.ckpt")
    last_step, last = checkpoint(tmp_path, "last.ckpt")
    assert best_step == config["best_step"] == (values.idxmin() if less else values.idxmax()) + 1
    assert config["best_value"] == pytest.approx(values.min() if less else values.max())
    assert values.nunique() > 1
    assert equal(weights(model), best)
    if less:
        assert best_step < last_step == 10
        assert not equal(weights(model), last)
    assert equal(weights(train(make_model(), **options)), best)  # kept in memory


def test_training_that_only_makes_it_worse_leaves_what_it_started_from(make_model, train, weights, tmp_path):
    options = {"lr": 1.0, "validate_every": 2, "plan_kwargs": {"warmup": 0.0}}
    start = weights(make_model())
    model = train(make_model(), save_dir=tmp_path, **options)
    assert model.training_config_["best_step"] == 0
    assert model.training_config_["best_value"] < model.history["validation_loss"]["validation_loss"].min()
    assert equal(weights(model), start)
    assert checkpoint(tmp_path, "best.ckpt")[0] == 0


def test_the_last_steps_are_validated_where_they_do_not_fill_an_interval(make_model, train):
    model = train(make_model(), max_steps=10, validate_every=4)
    losses = model.history["validation_loss"]["validation_loss"]
    assert losses.index.tolist() == [3, 7, 9]
    # steps are counted from 0, and `best_step` is the number of them
    assert model.training_config_["best_step"] == losses.idxmin() + 1
    short = train(make_model(), max_steps=3, validate_every=100)
    assert short.history["validation_loss"].index.tolist() == [2]
    assert short.training_config_["best_step"] == 3


@pytest.mark.parametrize("monitor", ["validation_loss", "validation_pearson_delta"])
def test_patience_stops_a_run_that_does_not_improve(monitor, make_model, train):
    options = {"lr": 1.0, "max_steps": 60, "validate_every": 1, "patience": 3, "recipe": "full"}
    model = train(make_model(), **options, monitor=monitor)
    assert len(model.history[monitor]) == max(model.training_config_["best_step"], 1) + 3 < 60


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
    model = make_model()
    with pytest.raises(ValueError, match=r"monitor='validation_mmd' is not computed in this run; there are"):
        train(model, monitor="validation_mmd")
    names = r"\['validation_loss', .*'validation_pds', 'validation_pearson_delta', 'validation_overlap'\]"
    near = r"\(did you mean 'validation_pds'\?\)"
    with pytest.raises(ValueError, match=rf"'validation_pdss' is not computed in this run {near}; there are {names}"):
        train(model, monitor="validation_pdss")
    assert model.split_ is None  # nothing of a training has begun


def test_the_monitored_metric_decides_also_one_of_the_users_own(make_model, train):
    class Own(Callback):
        def on_validation_epoch_end(self, trainer, plan):
            plan.log("validation_own", float(-trainer.global_step))

    model = train(make_model(), monitor="validation_delta_mse", validate_every=2)
    assert model.training_config_["best_value"] == model.history["validation_delta_mse"].min().item()
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


def test_checkpoints_between_two_validations_are_refused(make_model, train, tmp_path):
    for steps, message in ((3, "=3 must be a multiple of validate_every, which is 4"), (0, "=0 must be 1 or more")):
        with pytest.raises(ValueError, match=f"save_steps{message}"):
            train(make_model(), save_steps=steps, save_dir=tmp_path / "run")
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


class BestWeights(Callback):
    """Names of what is kept as the best at the end of a training, and whether that is a file in the folder."""

    def on_train_end(self, trainer, plan):
        best = next(c for c in trainer.callbacks if isinstance(c, KeepBest))._best_weights
        self.names, maps = set(best), Path("/proc/self/maps")
        self.is_file = maps.exists() and "best.ckpt" in maps.read_text()


@pytest.mark.parametrize("in_folder", [False, True], ids=["in memory", "in a folder"])
@pytest.mark.parametrize("recipe", ["heads", "full"])
def test_memory_holds_the_best_of_what_trains_and_nothing_once_it_is_over(
    recipe, in_folder, pretrained, train, tmp_path
):
    best = BestWeights()
    model = train(pretrained(), recipe=recipe, callbacks=[best], save_dir=tmp_path if in_folder else None)
    has_backbone = any(name.startswith("module.network.backbone.") for name in best.names)
    assert has_backbone == (in_folder or recipe == "full")
    if sys.platform == "linux":
        assert best.is_file == in_folder
    assert all(p.grad is None for p in model.module.parameters())
    assert not any(optimizer.state for optimizer in model.trainer.optimizers)
    assert next(c for c in model.trainer.callbacks if isinstance(c, KeepBest))._best_weights is None


def test_a_checkpoint_is_written_without_a_copy_in_memory(tmp_path):
    content = {"state_dict": {"weight": torch.arange(1_000_000)}}
    tracemalloc.start()
    StreamedCheckpointIO().save_checkpoint(content, tmp_path / "best.ckpt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000 < (tmp_path / "best.ckpt").stat().st_size
    loaded = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert torch.equal(loaded["state_dict"]["weight"], content["state_dict"]["weight"])
