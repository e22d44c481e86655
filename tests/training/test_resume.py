"""An interrupted run can be continued as if nothing had happened."""

from __future__ import annotations

import signal

import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback

from scvi_tahoe import HeldOutPerturbations

LONG = {"max_steps": 12, "validate_every": 3, "plan_kwargs": {"log_every": 2}}


def metrics(folder):
    # the throughput is a matter of the clock
    return pd.read_csv(folder / "metrics.csv").drop(columns=["sets_per_second", "mfu"])


def interrupted(model, train, interrupt, folder, step=8, **options):
    with pytest.raises(KeyboardInterrupt) as caught:
        train(model, **{**LONG, **options}, save_dir=folder, callbacks=[interrupt(step)])
    return str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 2},
        {"freeze_backbone": 5},
        {"validate_every": 5},
        {"plan_kwargs": {"log_every": 2, "ema": 0.9, "dropout": 0.4}},
        {"monitor": "validation_pearson_delta", "patience": 9},
        {"recipe": "lora", "lr": 0.01},
    ],
    ids=["plain", "accumulating", "unfreezing", "uneven", "averaging", "scoring", "adapters"],
)
def test_a_resumed_run_is_bit_identical(options, make_model, pretrained, train, interrupt, weights, tmp_path):
    """With dropout, which the tiny model has."""
    if options.get("recipe") == "lora":
        pytest.importorskip("peft")
    make = pretrained if {"freeze_backbone", "recipe"} & set(options) else make_model
    whole = train(make(), **{**LONG, **options}, save_dir=tmp_path / "whole")
    interrupted(make(), train, interrupt, tmp_path / "cut", **options)
    resumed = make()
    folder = tmp_path / "cut"
    train(resumed, **{**LONG, **options}, save_dir=folder, resume_from=folder / "last.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(resumed).values(), strict=True))
    first, second = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "cut"))
    assert first["global_step"] == second["global_step"] == 12
    assert all(torch.equal(v, second["state_dict"][k]) for k, v in first["state_dict"].items())
    pd.testing.assert_frame_equal(metrics(tmp_path / "whole"), metrics(folder))
    for name in ("best_step", "best_value"):
        assert whole.training_config_[name] == resumed.training_config_[name]
    for name, frame in whole.history.items():
        if name not in ("sets_per_second", "mfu"):
            pd.testing.assert_frame_equal(frame.sort_index(), resumed.history[name].sort_index())


def test_a_run_goes_on_from_a_checkpoint_of_a_fixed_step_too(make_model, train, weights, tmp_path):
    whole = train(make_model(), **LONG, save_dir=tmp_path, save_steps=6)
    assert {f.name for f in tmp_path.glob("step=*")} == {"step=000006.ckpt", "step=000012.ckpt"}
    again = train(make_model(), **LONG, save_dir=tmp_path, save_steps=6, resume_from=tmp_path / "step=000006.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(again).values(), strict=True))
    assert whole.training_config_["best_step"] == again.training_config_["best_step"]


def test_an_interruption_leaves_complete_files_and_says_how_to_go_on(make_model, train, interrupt, tmp_path):
    message = interrupted(make_model(), train, interrupt, tmp_path)
    assert message == (
        f"training was interrupted: continue with model.train(..., save_dir={str(tmp_path)!r}, "
        f"resume_from={str(tmp_path / 'last.ckpt')!r})"
    )
    assert {f.name for f in tmp_path.iterdir()} == {"best.ckpt", "last.ckpt", "metrics.csv"}
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 6
    assert metrics(tmp_path)["step"].max() >= 5


def test_an_interruption_says_no_more_and_ctrl_c_still_works(make_model, train, interrupt, capsys):
    """Lightning ignores the signal from the first interruption on."""

    class Speaks(Callback):
        def on_train_batch_start(self, *_):
            print("a callback of the user", "speaks")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"nothing was saved; with save_dir=... a run can be continued"):
        train(make_model(), callbacks=[Speaks(), interrupt(2)])
    assert signal.getsignal(signal.SIGINT) is before
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert set(lines) == {"a callback of the user speaks"}


def test_a_short_run_is_told_nothing_about_intervals_of_logging(make_model, train, recwarn):
    train(make_model(), max_steps=2, validate_every=1)
    assert [str(w.message) for w in recwarn if "lightning" in str(w.filename)] == []


def test_a_folder_with_a_checkpoint_of_an_earlier_run_is_refused(make_model, train, tmp_path):
    train(make_model(), max_steps=2, validate_every=1, save_steps=1, save_dir=tmp_path)
    kept = (tmp_path / "best.ckpt").read_bytes()
    with pytest.raises(ValueError, match=r"holds the checkpoint last.ckpt of an earlier run: continue .*resume_from=."):
        train(make_model(), save_dir=tmp_path)
    assert (tmp_path / "best.ckpt").read_bytes() == kept
    for name in ("best.ckpt", "last.ckpt"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"holds the checkpoint step=000002.ckpt of an earlier run"):
        train(make_model(), save_dir=tmp_path)


def test_a_run_resumed_with_other_options_or_another_model_is_refused(make_model, train, interrupt, tmp_path):
    interrupted(make_model(), train, interrupt, tmp_path)
    for change, message in (
        ({"lr": 0.5}, "lr was 0.001, now 0.5"),
        ({"max_steps": 24}, "max_steps was 12, now 24"),
        ({"seed": 3}, "seed was 0, now 3"),
        ({"batch_size": 4}, "batch_size was 2, now 4"),
        ({"validate_every": 4}, "validate_every was 3, now 4"),
        ({"monitor": "validation_pds"}, "monitor was 'validation_loss', now 'validation_pds'"),
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches was 1, now 2"),
        ({"split": HeldOutPerturbations(validation=["perturbation_1"])}, "split was .*fraction.*, now .*held_out_pert"),
        ({"set_size": 4}, "set_size was 8, now 4"),
        ({"objective": {"chunks": 2}}, "objective was"),
    ):
        model = make_model(**{k: change.pop(k) for k in ("set_size", "objective") if k in change})
        with pytest.raises(
            ValueError, match=f"continues with the options it started with, and these differ: {message}"
        ):
            train(model, **{**LONG, **change}, save_dir=tmp_path, resume_from=tmp_path / "last.ckpt")


def test_what_is_no_checkpoint_of_a_run_is_refused(make_model, train, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"resume_from=.* does not exist; a run writes last.ckpt into its"):
        train(make_model(), resume_from=tmp_path / "last.ckpt")
    (tmp_path / "last.ckpt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match=r"is not a checkpoint of an interrupted run .*TahoeST.load or"):
        train(make_model(), resume_from=tmp_path / "last.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="is not a checkpoint of an interrupted run"):
        train(make_model(), resume_from=tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    "options",
    [{}, {"plan_kwargs": {"ema": 0.9}}, {"plan_kwargs": {"ema": 0.9}, "split": HeldOutPerturbations()}],
    ids=["plain", "averaging", "averaging, unvalidated"],
)
@pytest.mark.filterwarnings("ignore:no cell validates")
def test_the_result_of_a_run_at_its_end_is_taken(options, make_model, train, weights, tmp_path):
    whole = train(make_model(prior="mean"), **options, save_dir=tmp_path)
    again = train(make_model(prior="mean"), **options, save_dir=tmp_path, resume_from=tmp_path / "last.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(again).values(), strict=True))
    assert whole.training_config_ == again.training_config_
    assert whole.split_ == again.split_
    for name, frame in whole.history.items():
        pd.testing.assert_frame_equal(frame.sort_index(), again.history[name].sort_index())
    assert all(p.requires_grad for p in again.module.parameters())


def test_the_best_so_far_must_lie_beside_the_checkpoint(make_model, train, interrupt, tmp_path):
    interrupted(make_model(), train, interrupt, tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"resuming needs best.ckpt beside the checkpoint.*folder of the run"):
        train(make_model(), **LONG, save_dir=tmp_path / "other", resume_from=tmp_path / "run" / "last.ckpt")


def test_only_resume_from_restores_an_optimizer(make_model, train, spy, weights):
    """A second training starts its schedule and its moments anew."""
    steps = spy(lambda trainer, plan: {int(s["step"]) for s in trainer.optimizers[0].state.values()})
    model = train(make_model(), recipe="full")
    train(model, recipe="full", callbacks=[steps])
    assert steps.seen[0] == {1}


def test_the_best_of_another_run_is_not_taken_for_ones_own(make_model, train, interrupt, tmp_path):
    interrupted(make_model(), train, interrupt, tmp_path / "run", step=11)
    short = {**LONG, "max_steps": 2, "validate_every": 1}
    train(make_model(), **short, save_dir=tmp_path / "other")
    with pytest.raises(ValueError, match=r"is from step [12] and the best so far was at step \d .*: it belongs"):
        train(make_model(), **LONG, save_dir=tmp_path / "other", resume_from=tmp_path / "run" / "last.ckpt")
    # nor one that is from a later step, and worse
    train(make_model(), **LONG, lr=1e-7, save_dir=tmp_path / "slow")
    assert torch.load(tmp_path / "slow" / "best.ckpt", weights_only=True)["global_step"] > 10
    with pytest.raises(ValueError, match=r"validation_loss .* and .*it belongs to another run"):
        train(make_model(), **LONG, save_dir=tmp_path / "slow", resume_from=tmp_path / "run" / "last.ckpt")
