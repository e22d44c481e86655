"""A training run: its options, its repeatability, its devices."""

from __future__ import annotations

import inspect
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch

from scvi_tahoe import HeldOutContexts, TahoeST
from scvi_tahoe.training import TrainOptions
from scvi_tahoe.training._run import _say_that_there_is_no_gpu


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def test_one_seed_gives_the_same_losses_and_weights_twice(make_model, train, weights):
    first = train(make_model(), seed=1)
    torch.manual_seed(99)  # numbers drawn elsewhere do not matter
    np.random.default_rng(0).random(3)
    second, third = (train(make_model(), seed=seed) for seed in (1, 2))
    for name, frame in first.history.items():
        if name not in ("sets_per_second", "mfu"):
            np.testing.assert_array_equal(frame, second.history[name])
    assert same(weights(first), weights(second))
    assert not same(weights(first), weights(third))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_epochs": 3}, ValueError, r"train\(\) does not take max_epochs; say it with max_steps"),
        ({"gradient_clip_val": 1.0}, ValueError, r"say it with plan_kwargs={'gradient_clip': ...}"),
        ({"early_stopping": True}, ValueError, "say it with patience"),
        ({"ckpt_path": "x"}, ValueError, "say it with resume_from"),
        ({"train_size": 0.9}, ValueError, r"say it with split=FractionSplit\(validation=...\)"),
        ({"epochs": 3}, ValueError, r"train\(\) does not take epochs; say it with max_steps"),
        ({"plan_kwargs": {"optimizer": "Adam"}}, ValueError, r"training options \['optimizer'\] are unknown"),
        ({"monitor": "train_loss"}, ValueError, "monitor='train_loss' must be a validation metric: 'validation_loss'"),
        ({"check_val_every_n_epoch": 2}, ValueError, "does not take check_val_every_n_epoch; say it with validate_ev"),
        ({"enable_progress_bar": True}, ValueError, "does not take enable_progress_bar; say it with progress"),
        ({"batch_size": 0}, ValueError, "batch_size=0 must be 1 or more"),
        ({"validate_every": 0}, ValueError, "validate_every=0 must be 1 or more"),
        ({"patience": 0}, ValueError, "patience=0 must be 1 or more"),
        ({"max_steps": 0}, ValueError, "max_steps=0 must be .*1 or more"),
        ({"lr": -1.0}, ValueError, "lr=-1.0 must be (positive|0 or more)"),
        ({"seed": -1}, ValueError, "seed=-1 must be 0 or more"),
        ({"split": 0.1}, TypeError, r"split(=0.1 must be one of the splits| is 0.1; allowed is Split)"),
        ({"split": HeldOutContexts(validation=["K562"])}, ValueError, r"names contexts .*\['K562'\]"),
        ({"store": "ram"}, ValueError, "store='ram' is unknown"),
        ({"logger": "mlflow"}, ValueError, "logger='mlflow' is unknown; allowed are 'csv', 'tensorboard', 'wandb'"),
        ({"logger": "tensorboard"}, ValueError, "logger='tensorboard' writes files; give a save_dir"),
    ],
)
def test_options_are_used_or_refused_by_name(options, error, message, make_model, train, weights):
    model = make_model()
    before = weights(model)
    if not {"store"} & set(options) and not isinstance(options.get("split"), HeldOutContexts):
        with pytest.raises(error, match=message):
            model.plan_training(**options)
    with pytest.raises(error, match=message):
        train(model, **options)
    assert same(before, weights(model))
    assert not model.is_trained


def test_bf16_with_clipping_runs_and_the_loss_stays_in_float32(make_model, train, spy):
    dtypes = spy(lambda trainer, plan: {p.dtype for p in plan.module.parameters()})
    mine = [dtypes]
    model = train(make_model(), precision="bf16-mixed", callbacks=mine, plan_kwargs={"gradient_clip": 0.5})
    assert dtypes.seen[-1] == {torch.float32}
    assert len(mine) == 1  # the user's list is left as it is
    wide = train(make_model())
    loss, wide_loss = (m.history["validation_loss"].iloc[-1, 0] for m in (model, wide))
    assert loss == pytest.approx(wide_loss, rel=0.02)
    assert loss != wide_loss


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_says_so_once(make_model, train, capsys):
    _say_that_there_is_no_gpu.cache_clear()
    for _ in range(2):
        train(make_model(), progress=True)
    assert capsys.readouterr().err.count("No GPU was found") == 1
    _say_that_there_is_no_gpu.cache_clear()
    train(make_model(), progress=True, accelerator="cpu")  # asked for, so no surprise
    assert "No GPU" not in capsys.readouterr().err


def test_what_is_not_there_or_said_elsewhere_is_refused(make_model, train, tmp_path, monkeypatch):
    model = make_model()
    with pytest.raises(ValueError, match=r"plan_kwargs does not take max_steps; say it with train\(max_steps"):
        train(model, plan_kwargs={"max_steps": 100})
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"pip install 'scvi-tahoe\[tensorboard\]'"):
        train(model, logger="tensorboard", save_dir=tmp_path / "new")
    (tmp_path / "run").write_text("notes")
    with pytest.raises(ValueError, match="is a file; a folder is needed"):
        train(model, save_dir=tmp_path / "run")
    assert (tmp_path / "run").read_text() == "notes"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="accelerator='gpu' was requested, but this machine has no CUDA device"):
        train(model, accelerator="gpu")


@pytest.mark.parametrize(
    ("options", "strategy"),
    [
        ({}, "auto"),
        ({"devices": 1}, "auto"),
        ({"devices": "auto"}, "auto"),
        ({"devices": 2}, "ddp_sharded"),
        ({"devices": [0, 1]}, "ddp_sharded"),
        ({"devices": 1, "num_nodes": 2}, "ddp_sharded"),
        ({"devices": 2, "precision": "16-mixed"}, "ddp"),
        ({"devices": 2, "strategy": "ddp"}, "ddp"),
        ({"devices": "2"}, "ddp_sharded"),
        ({"devices": "0,1"}, "ddp_sharded"),
        ({"devices": "1"}, "auto"),
        ({"devices": 1, "strategy": "ddp_sharded"}, "auto"),
        ({"strategy": "ddp_sharded"}, "auto"),
    ],
)
def test_several_devices_share_the_optimizer_unless_told_otherwise(options, strategy, make_model):
    assert make_model().plan_training(1, **{"precision": "32-true", **options}).strategy == strategy


def test_every_option_of_train_has_one_default():
    arguments = inspect.signature(TahoeST.train).parameters.values()
    defaults = {p.name: p.default for p in arguments if p.name != "self"}
    assert defaults.pop("trainer_kwargs") is inspect.Parameter.empty
    known = {f.name: f.default for f in fields(TrainOptions) if f.name != "trainer_kwargs"}
    assert defaults == known


def test_a_planned_training_is_the_one_that_train_does_and_writes_nothing(make_model, train, tmp_path):
    model = make_model()
    run = model.plan_training(4, validate_every=2, batch_size=2, lr=0.1, save_dir=tmp_path / "run")
    assert (run.plan.lr, run.n_epochs, run.batch_size) == (0.1, 2, 2)
    assert not (tmp_path / "run").exists()
    assert not model.is_trained
    train(model, max_steps=4, validate_every=2, batch_size=2, lr=0.1)
    assert model.training_config_["plan"] == run.plan.to_kwargs()
