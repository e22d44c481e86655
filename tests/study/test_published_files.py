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


def test_the_validation_of_round_1_is_flat_while_its_training_loss_falls(found):
    message = found["0826"].by_rule("flat_validation").message
    assert "0.515 and 0.5158" in message
    assert "falls from 0.475 to 0.00918" in message


def test_the_decoder_of_round_1_lies_an_order_of_magnitude_above_the_embedding(found):
    assert "27 times less" in found["0826"].by_rule("loss_not_logged").message


def test_round_3_begins_at_11_2_on_genes(found):
    assert "11.18 at step 499" in found["0905"].by_rule("best_step").message


@pytest.mark.parametrize("run", ["0907", "0908"])
def test_round_4_started_from_the_last_and_not_the_best_step_of_round_3(found, run):
    message = found[run].by_rule("start_not_best").message
    assert "step 9,999, validation 9.902" in message
    assert "step 7,999 with 9.76" in message


def test_the_best_of_round_4_and_the_rise_after_it(found):
    assert "9.532 at step 17,999" in found["0908"].by_rule("best_step").message
    assert "step=18000.ckpt" in found["0908"].by_rule("best_step").instead
    assert "+4.2%" in found["0908"].by_rule("rising_validation").message


def test_no_rate_was_logged_before_the_last_run(found):
    assert all(found[run].by_rule("rate_not_logged") for run in found if run != "0911")
    assert found["0911"].by_rule("rate_not_logged") is None
    assert found["0911"].by_rule("rate_shape").message.endswith("to 5.32e-05.")


@pytest.mark.parametrize(("run", "sets"), [("0906", "3.5"), ("0907", "3.6"), ("0908", "3.5")])
def test_the_loader_was_the_limit(found, run, sets):
    message = found[run].by_rule("throughput").message
    assert f"{sets} cell sets a second" in message
    assert "the loader was the limit" in message
    assert any(f"{share}% of the time was spent outside" in message for share in (90, 91))


def test_the_fluctuation_of_round_4_has_the_period_of_the_epoch_and_outlives_the_schedule_that_was_blamed(found):
    for run, period in (("0907", 185), ("0908", 185), ("0911", 185), ("0906", 93), ("0901", 38)):
        assert f"the period of the epoch, {period} steps" in found[run].by_rule("repeated_epochs").message


def test_accumulation_never_happened(found):
    for run in ("0905", "0906", "0907", "0908"):
        assert found[run].by_rule("accumulation_without_effect")


def test_the_named_loss_was_not_trained(found):
    assert all(found[run].by_rule("loss_named_not_trained") for run in found if run != "0911")


def test_all_logs_fit_into_one_figure(logs):
    assert len(logs_figure(logs).axes) == 7 * 5


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
    assert checked.exit_code() == 0
    assert checked.exit_code(strict=True) == 1
    assert checked.run.model.size["hidden"] == 1488
