"""model.history, with any logger."""

from __future__ import annotations

import pandas as pd
import pytest
from lightning.pytorch.loggers import CSVLogger

from scvi_tahoe.training import MetricsHistory

METRICS = {"train_loss", "validation_loss", "train_energy", "validation_energy", "sets_per_second", "lr_new"}


@pytest.mark.parametrize("kind", ["csv", "none", "logger", "list"])
def test_the_history_is_filled_with_any_logger(kind, make_model, train, tmp_path):
    own = CSVLogger(tmp_path / "own")
    chosen = {"csv": "csv", "none": None, "logger": own, "list": [own]}[kind]
    model = train(make_model(), logger=chosen, save_dir=tmp_path / "run")
    assert set(model.history) >= METRICS
    assert model.history["train_loss"].index.tolist() == [3, 7]
    assert list(model.history["train_loss"].columns) == ["train_loss"]
    assert (tmp_path / "run" / "metrics.csv").exists() == (kind != "none")
    if kind in ("logger", "list"):
        table = pd.read_csv(next((tmp_path / "own").rglob("metrics.csv")))
        losses = table["validation_loss"].dropna().tolist()
        assert losses == pytest.approx(model.history["validation_loss"]["validation_loss"].tolist())


def test_steps_of_a_second_training_count_on(make_model, train):
    model = train(make_model())
    first = model.history
    second = train(model, recipe="full", max_steps=4, validate_every=2).history
    assert second["validation_loss"].index.tolist() == [3, 7, 9, 11]
    pd.testing.assert_frame_equal(second["validation_loss"].iloc[:2], first["validation_loss"])


def test_two_trainings_with_another_logger_are_joined_too(make_model, train, tmp_path):
    model = make_model()
    for i in range(2):
        train(model, logger=CSVLogger(tmp_path / str(i)), recipe="full")
    assert model.history["train_loss"].index.tolist() == [3, 7, 11, 15]


def test_the_history_survives_saving_and_a_further_training(make_model, train, tmp_path):
    model = train(make_model())
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", model.adata)
    for name, frame in model.history.items():
        pd.testing.assert_frame_equal(loaded.history[name], frame)
    train(loaded, recipe="full")
    assert loaded.history["train_loss"].index.tolist() == [3, 7, 11, 15]


def test_a_file_is_written_whole_and_read_up_to_a_step(tmp_path):
    log = MetricsHistory(tmp_path / "metrics.csv")
    for step in range(4):
        log.log_metrics({"loss": step / 2}, step=step)
    log.log_metrics({"late": 1.0}, step=1)
    log.save()
    assert [f.name for f in tmp_path.iterdir()] == ["metrics.csv"]
    resumed = MetricsHistory(tmp_path / "metrics.csv", resume_step=2)
    assert resumed.history["loss"]["loss"].to_dict() == {0: 0.0, 1: 0.5}
    assert resumed.history["late"]["late"].to_dict() == {1: 1.0}
    anew = MetricsHistory(tmp_path / "metrics.csv")
    assert anew.history == {}
