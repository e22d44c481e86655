from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from study_samples import arc_log, expression_config, with_key, write_config

from scvi_tahoe.study import diagnose, inspect_path, log_figure, logs_figure, read_training_log, read_training_logs
from scvi_tahoe.study._log_diagnosis import epoch_length, repetition


def written(table, folder, name="metrics.csv"):
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / name, index=False)
    return folder / name


def findings(table, folder, **kwargs):
    log = read_training_log(written(table, folder), **kwargs)
    return {f.rule: f for f in diagnose([log])[0].findings}


RISING = [3, 2, 1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7]
COURSE = [3.0, 2.0, 2.5, 2.4, 2.2]


@pytest.mark.parametrize(
    ("log", "rule", "texts"),
    [
        pytest.param({"validation": COURSE}, "best_step", ["2 at step 1,599"], id="best validation"),
        pytest.param({"validation": [0.700, 0.699, 0.701, 0.7, 0.7]}, "flat_validation",
                     ["stays between 0.699 and 0.701"], id="flat validation"),
        pytest.param({"validation": RISING}, "rising_validation",
                     ["lowest at step 1,199 (1)", "70% of the run"], id="rising validation"),
        pytest.param({}, "no_validation", ["holds no validation loss"], id="no validation"),
        pytest.param({}, "rate_not_logged", ["holds no learning rate"], id="no rate"),
        pytest.param({"rate": lambda step: 1e-4}, "constant_rate", ["learning rate is constant"], id="constant rate"),
        pytest.param({"rate": lambda step: 1e-4 * (1.5 + np.cos(step / 200))}, "periodic_rate", ["rises again"],
                     id="periodic rate"),
        pytest.param({"rate": lambda step: 1e-4 * (1 - step / 5000)}, "rate_shape", ["the learning rate begins at"],
                     id="falling rate"),
        pytest.param({"epoch": 130, "n_steps": 8000}, "repeated_epochs", ["the period of the epoch, 130 steps"],
                     id="repeated sets"),
        pytest.param({"decoder": True, "validation": [0.5, 0.4, 0.4, 0.4, 0.4]}, "loss_not_logged",
                     ["30 times less"], id="decoder beside the loss"),
        pytest.param({"resumed_at": 6000}, "resumed", ["begins at step 6,049"], id="resumed"),
    ],
)  # fmt: skip
def test_what_a_log_gives_away_is_named(tmp_path, log, rule, texts):
    found = findings(arc_log(**log), tmp_path)
    for text in texts:
        assert text in found[rule].message
    assert ("rate_not_logged" in found) == ("rate" not in log)


@pytest.mark.parametrize(
    ("keys", "instead"),
    [({}, "step 1,600"), ({"training.ckpt_every_n_steps": 1500}, "step=1500.ckpt (the nearest to step 1,600")],
    ids=["every step kept", "some steps kept"],
)
def test_the_checkpoint_is_the_nearest_that_was_kept(tmp_path, keys, instead):
    for key, value in keys.items():
        write_config(with_key(expression_config(), key, value), tmp_path)
    assert instead in findings(arc_log(validation=COURSE), tmp_path)["best_step"].instead


def test_a_validation_that_follows_is_not_called_flat(tmp_path):
    assert "flat_validation" not in findings(arc_log(validation=[0.7, 0.6, 0.55, 0.5, 0.5]), tmp_path)


@pytest.mark.parametrize(
    ("values", "rule"), [([1, 1, 1, 3, 3, 3], "divergence"), ([1, 1, np.inf, 1, 1, 1], "not_finite")]
)
def test_losses_that_explode_are_an_error(tmp_path, values, rule):
    table = pd.DataFrame({"step": range(6), "train_loss": values})
    assert findings(table, tmp_path)[rule].level == "error"


def test_sets_drawn_anew_are_not_called_repeated(tmp_path):
    table = arc_log(n_steps=8000)
    table["epoch"] = table["step"] // 130
    assert "repeated_epochs" not in findings(table, tmp_path)


@pytest.mark.parametrize("length", [2, 38, 185, 1000])
def test_the_length_of_an_epoch_is_read_off_its_number(length):
    steps = np.arange(49, 40_000, 50)
    assert epoch_length(pd.Series(steps // length, index=steps)) == length


def test_a_log_of_one_epoch_does_not_fix_its_length():
    assert epoch_length(pd.Series(0, index=range(10))) is None
    assert repetition(pd.Series(1.0, index=range(100)), None)[0] == 0
    assert repetition(pd.Series(1.0, index=range(100)), 5)[0] == 0


def test_the_loader_is_named_as_the_limit_where_steps_are_short(tmp_path):
    write_config(expression_config(), tmp_path)
    message = findings(arc_log(), tmp_path)["throughput"].message
    assert "5.0 sets per second (median)" in message
    assert re.search("8[78]% of the time was spent outside the training step: the loader was the limit", message)


def test_a_loss_that_was_named_and_not_trained_is_found(tmp_path):
    write_config(with_key(expression_config(), "training.loss_fn", "mse"), tmp_path)
    assert "'mse', and 'energy' was trained" in findings(arc_log(), tmp_path)["loss_named_not_trained"].message


def two_runs(folder, checkpoint="last.ckpt", **second):
    config = expression_config() | {"name": "first"}
    write_config(config, folder, "a_config.yaml")
    written(arc_log(validation=[3, 2, 2.5], epoch=100), folder, "a_version_0_metrics.csv")
    config = with_key(expression_config(), "model.kwargs.init_from", f"/x/first/checkpoints/{checkpoint}")
    for key, value in second.items():
        config = with_key(config, f"training.{key}", value)
    write_config(config | {"name": "second"}, folder, "b_config.yaml")
    epoch = 100 * 4 // config["training"]["batch_size"]
    written(arc_log(validation=[2, 1.9, 1.8], epoch=epoch), folder, "b_version_0_metrics.csv")
    return {d.log.name: {f.rule: f for f in d.findings} for d in diagnose(read_training_logs(folder))}


@pytest.mark.parametrize("checkpoint", ["last.ckpt", "best.ckpt"])
def test_a_run_that_did_not_start_from_the_best_is_told_so(tmp_path, checkpoint):
    found = two_runs(tmp_path, checkpoint)["second"]
    assert ("start_not_best" in found) == (checkpoint == "last.ckpt")
    if checkpoint == "last.ckpt":
        assert "last.ckpt of first (step 3,999, validation 2.5)" in found["start_not_best"].message
        assert re.search(r"step 2,66[56] with 2\.", found["start_not_best"].message)


def test_accumulation_without_effect_shows_in_epochs(tmp_path):
    found = two_runs(tmp_path, accumulate_grad_batches=8, batch_size=2)
    assert "accumulation over 8 minibatches did not happen" in found["second"]["accumulation_without_effect"].message
    assert "accumulation_without_effect" not in found["first"]


def test_a_finished_run_is_inspected_with_its_checkpoints(finished):
    found = inspect_path(finished)
    assert "best.ckpt" in found.text
    assert found.content["logs"][0]["name"] == "tiny"
    assert not {"rate_not_logged", "repeated_epochs"} & {f["rule"] for f in found.content["logs"][0]["findings"]}
    assert found.figure is not None


def test_a_checkpoint_tells_what_it_would_carry_along(finished):
    found = inspect_path(finished / "last.ckpt")
    content = found.content["last.ckpt"]
    assert (content["step"], content["has_optimizer"], content["has_schedule"]) == (6, True, True)
    assert "continues with that" in found.text


def test_figures_have_a_column_per_run_and_a_row_per_quantity(tmp_path):
    logs = [read_training_log(written(arc_log(validation=[2, 1.5, 1]), tmp_path / n)) for n in ("a", "b")]
    assert len(logs_figure(logs).axes) == 2 * 3
    assert len(log_figure(logs[0]).axes) == 3
    with pytest.raises(ValueError, match="no log to draw"):
        logs_figure([])


def test_runs_of_one_validation_each_are_drawn_on_the_same_axes(tmp_path):
    logs = [read_training_log(written(arc_log(validation=[2], n_steps=400), tmp_path / n)) for n in "abcd"]
    logs = [replace(log, series={n: s.iloc[-1:] for n, s in log.series.items()}, rates={}) for log in logs]
    assert logs_figure(logs).axes


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        pytest.param("metrics.csv", "a,b\n1,2\n", "is not a training log", id="other columns"),
        pytest.param("metrics.csv", "", "metrics.csv is empty", id="empty"),
        pytest.param("metrics.csv", "step,train_loss\n1,2,3,4\n5,6,7,8,9,10\n", "is damaged", id="long rows"),
        pytest.param("metrics.csv", "step,train_loss,val_loss\n9,one,\n", "holds no number in train_loss, val_loss",
                     id="no number"),
        pytest.param("metrics.csv", "step,train_loss\ninf,1\n1e400,1\n1e30,2\n", "holds no number", id="endless steps"),
        pytest.param("a.ckpt", "no", "was refused", id="no checkpoint"),
    ],
)  # fmt: skip
def test_files_that_are_no_logs_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        inspect_path(tmp_path / name)


def test_a_log_whose_best_loss_is_zero_is_diagnosed(tmp_path):
    rows = "".join(f"{step},{1 / (step + 1)},{step % 7}\n" for step in range(12))
    (tmp_path / "metrics.csv").write_text("step,train_loss,val_loss\n" + rows)
    assert "the last, at step 11, is 4" in inspect_path(tmp_path / "metrics.csv").text


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        inspect_path(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"neither a metrics\.csv nor a folder with one"):
        read_training_log(tmp_path)


def test_the_best_of_our_run_is_that_of_the_metric_it_was_chosen_by(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "step,train_loss,validation_loss,validation_energy\n9,3.0,2.0,1.0\n19,2.0,3.0,0.5\n"
    )
    assert read_training_log(tmp_path).best_step == 10
    (tmp_path / "config.yaml").write_text("train: {monitor: validation_energy}\n")
    assert read_training_log(tmp_path).best_step == 20
