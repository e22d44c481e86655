"""The published logs and configurations of the case study, where they are at hand: what they show is found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scvi_tahoe.study import check_config, diagnose, logs_figure, read_training_logs

FOLDER = os.environ.get("SCVI_TAHOE_CASE_STUDY", "")

pytestmark = pytest.mark.skipif(not FOLDER, reason="SCVI_TAHOE_CASE_STUDY names no folder with the published files")


@pytest.fixture(scope="module")
def logs():
    return read_training_logs(FOLDER)


@pytest.fixture(scope="module")
def found(logs):
    return {d.log.name[-4:]: d for d in diagnose(logs)}


def test_all_seven_logs_are_read(found):
    assert sorted(found) == ["0826", "0901", "0905", "0906", "0907", "0908", "0911"]


@pytest.mark.parametrize(
    ("run", "rule", "texts"),
    [
        pytest.param("0826", "flat_validation", ["0.515 and 0.5158", "falls from 0.475 to 0.00918"], id="flat round 1"),
        pytest.param("0826", "loss_not_logged", ["27 times less"], id="decoder of round 1"),
        pytest.param("0905", "best_step", ["11.18 at step 499"], id="round 3 begins at 11.2"),
        pytest.param("0907", "start_not_best", ["step 9,999, validation 9.902", "step 7,999 with 9.76"], id="round 4a"),
        pytest.param("0908", "start_not_best", ["step 9,999, validation 9.902", "step 7,999 with 9.76"], id="round 4b"),
        pytest.param("0908", "best_step", ["9.532 at step 17,999"], id="best of round 4"),
        pytest.param("0908", "rising_validation", ["+4.2%"], id="rise after it"),
        pytest.param("0911", "rate_shape", ["to 5.32e-05."], id="rate of the last run"),
        pytest.param("0901", "repeated_epochs", ["the period of the epoch, 38 steps"], id="period of round 2"),
        pytest.param("0906", "repeated_epochs", ["the period of the epoch, 93 steps"], id="period of round 3"),
        pytest.param("0907", "repeated_epochs", ["the period of the epoch, 185 steps"], id="period of round 4a"),
        pytest.param("0908", "repeated_epochs", ["the period of the epoch, 185 steps"], id="period of round 4b"),
        pytest.param("0911", "repeated_epochs", ["the period of the epoch, 185 steps"], id="period of the last run"),
    ],
)
def test_what_a_published_log_gives_away(found, run, rule, texts):
    finding = found[run].by_rule(rule)
    assert all(text in finding.message for text in texts)
    if (run, rule) == ("0908", "best_step"):
        assert "step=18000.ckpt" in finding.instead


@pytest.mark.parametrize(("run", "sets"), [("0906", "3.5"), ("0907", "3.6"), ("0908", "3.5")])
def test_the_loader_was_the_limit(found, run, sets):
    message = found[run].by_rule("throughput").message
    assert f"{sets} sets per second (median)" in message
    assert "the loader was the limit" in message
    assert any(f"{share}% of the time was spent outside" in message for share in (90, 91))


def test_only_the_last_run_logged_its_rate_and_named_its_loss(found):
    for rule in ("rate_not_logged", "loss_named_not_trained"):
        assert {run for run in found if found[run].by_rule(rule)} >= set(found) - {"0911"}
    assert found["0911"].by_rule("rate_not_logged") is None


def test_accumulation_never_happened(found):
    for run in ("0905", "0906", "0907", "0908"):
        assert found[run].by_rule("accumulation_without_effect")


def test_all_logs_fit_into_one_figure(logs):
    panels = [ax.get_ylabel() for ax in logs_figure(logs).axes]
    assert panels[:2] == ["training loss", "validation loss"], "seven runs on the same axes"
    assert all(len(ax.lines) > 1 for ax in logs_figure(logs).axes[:2])


@pytest.mark.parametrize("run", ["0826", "0901", "0905", "0906", "0907", "0908"])
def test_a_published_configuration_is_read_and_explained(run):
    checked = check_config(Path(FOLDER) / f"tahoe-finetune-{run}_config.yaml")
    found = {f.where for f in checked.findings}
    assert found >= {
        "training.loss_fn", "training.weight_decay", "training.precision", "training.accumulate_grad_batches",
        "model.kwargs.softplus", "model.kwargs.init_from",
        "model.kwargs.transformer_backbone_kwargs.bidirectional_attention",
    }  # fmt: skip
    rules = {f.rule for f in checked.findings}
    assert ("scored_space" in rules) == (run in ("0826", "0901"))
    assert ("clipping" in rules) == (run == "0826")
    assert ("shorter_sets" in rules) == (run == "0826")
    assert ("starts_from_last" in rules) == (run in ("0906", "0907", "0908"))
    assert ("training.lr_scheduler" in found) == (run != "0826")
    assert checked.exit_code() == (run in ("0826", "0901"))
    assert checked.exit_code(allow_mismatch=True) == 0
    assert checked.exit_code(strict=True) == 1
    assert checked.run.model.size["hidden"] == 1488
