"""Runs of two processes, which a script starts once for all tests: what takes long is to import the package."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_tahoe import TahoeST
from scvi_tahoe.datasets import simulate_screen

TRAINING = """
import gc
import os
import sys

import torch
from lightning.pytorch import Callback
from scvi_tahoe import TahoeST
from scvi_tahoe.datasets import simulate_screen
from scvi_tahoe.training import TahoeTrainingPlan
from scvi_tahoe.training._recipe import part_of

folder = sys.argv[1]


def model_of(*, n_layers=1, screen=(2, 4), **options):
    adata = simulate_screen(*screen, n_genes=40, n_cells=16, n_control_cells=20)
    TahoeST.setup_anndata(adata, "perturbation", "control", context_key="context")
    size = {"hidden": 16, "n_layers": n_layers, "intermediate": 32, "n_heads": 2}
    return TahoeST(adata, size=size, set_size=8, **options)


def trained(name, *, resume_from=None, **options):
    model = model_of(prior="none")
    model.train(
        6, batch_size=2, progress=False, save_dir=f"{folder}/{name}", compile=False, accelerator="cpu", devices=2,
        resume_from=resume_from and f"{folder}/{name}/{resume_from}",
        **{"strategy": "ddp_sharded", "validate_every": 2, "save_steps": 2, **options},
    )
    return model, torch.load(f"{folder}/{name}/last.ckpt", weights_only=True)


def unfrozen(strategy, *, resume_from=None):
    # parts train from step 0, 1 and 2 on
    model, name = model_of(prior="none", network={"head": "absolute"}, n_layers=3), f"unfrozen_{strategy}"
    model.pretrained_parameters_ = [n for n, _ in model.module.named_parameters()]
    before = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    seen = {}

    class Look(Callback):
        def on_train_batch_end(self, trainer, plan, *args):
            kept = plan.kept_state()
            now = {n: bool((kept[f"module.{n}"] != p).any()) for n, p in before.items()}
            seen[trainer.global_step] = {part_of(n, 3) for n, moved in now.items() if moved}

    model.train(
        5, batch_size=2, progress=False, save_dir=f"{folder}/{name}", compile=False, accelerator="cpu", devices=2,
        strategy=strategy, validate_every=1, save_steps=1, callbacks=[Look()], lr=0.01,
        resume_from=resume_from and f"{folder}/{name}/{resume_from}",
    )
    return {"seen": seen, "weights": model.module.state_dict()}


def plain():  # with Lightning's own strategy
    model = model_of(prior="auto")
    options = {"max_steps": 6, "validate_every": 3, "batch_size": 2, "progress": False, "save_dir": f"{folder}/plain"}
    options |= {"strategy": "ddp", "devices": 2, "accelerator": "cpu"}
    asked, broadcast = [], torch.distributed.broadcast
    torch.distributed.broadcast = lambda x, *args, **kw: asked.append(tuple(x.shape)) or broadcast(x, *args, **kw)
    model.train(**options)
    torch.distributed.broadcast = broadcast
    history = {k: v[k].tolist() for k, v in model.history.items()}
    return {"history": history, "weights": model.module.state_dict(), "asked": asked}


def state_of(**options):
    options = {"validate_every": 3, "save_steps": 3, "plan_kwargs": {"ema": 0.9}, **options}
    return trained("run", **options)[1]["trained_state"]


def rounded(name, **options):
    model, last = trained(name, precision="bf16-mixed", **options)
    kept = {n: (p.detach().clone(), p.untyped_storage().nbytes()) for n, p in model.module.named_parameters()}
    return {"kept": kept, "last": last["state_dict"], "loss": model.history["train_loss"].to_numpy()[-1].item()}


def seven_sets(devices):  # are validated, by weights that do not train
    model = model_of(prior="none", screen=(1, 7))
    options = {"strategy": "ddp", "devices": devices, "accelerator": "cpu", "progress": False, "compile": False}
    model.train(1, batch_size=4, lr=1e-12, **options)
    return model.history["validation_loss"].to_numpy().ravel().tolist()


def left():
    gc.collect()
    return sum(type(value).__name__ == "DTensor" for value in gc.get_objects())


if __name__ == "__main__":
    results = {
        "plain": plain(),
        "whole": state_of(),
        "again": state_of(resume_from="step=000003.ckpt"),
        "other": state_of(resume_from="step=000003.ckpt", strategy="ddp"),
        "ddp": trained("half", strategy="ddp")[1]["state_dict"],
        "fsdp2": trained("half", strategy="fsdp2", resume_from="step=000002.ckpt")[1]["state_dict"],
        "ddp again": trained("half", strategy="ddp", resume_from="step=000004.ckpt")[1]["state_dict"],
        "left": left(),
        "seven sets": seven_sets(2),
        "rounded": rounded("rounded"),
        "resumed": rounded("rounded", resume_from="step=000002.ckpt"),
    }
    for strategy in ("ddp", "ddp_sharded", "fsdp2"):
        results[f"unfrozen {strategy}"] = unfrozen(strategy)
        for step in (2, 3):
            results[f"unfrozen {strategy} from {step}"] = unfrozen(strategy, resume_from=f"step={step:06d}.ckpt")
    TahoeTrainingPlan._only_in_products = lambda self: []
    results["exact"] = rounded("exact")
    torch.save(results, f"{folder}/rank{os.environ.get('LOCAL_RANK', '0')}.pt")
"""


@pytest.fixture(scope="module")
def runs(folder_of_script):
    """Results of the runs of both processes."""
    folder = folder_of_script(TRAINING)
    return [torch.load(folder / f"rank{i}.pt", weights_only=True) for i in range(2)]


@pytest.fixture(scope="module")
def last_of_plain(folder_of_script):
    """The last checkpoint of the run with Lightning's strategy."""
    return torch.load(folder_of_script(TRAINING) / "plain" / "last.ckpt", weights_only=True)


@pytest.mark.slow
def test_two_processes_train_one_model_for_as_many_steps_as_one(runs, last_of_plain):
    first, second = (rank["plain"] for rank in runs)
    assert all(torch.equal(weight, second["weights"][name]) for name, weight in first["weights"].items())
    assert first["history"]["validation_loss"] == second["history"]["validation_loss"]
    assert len(first["history"]["validation_loss"]) == 2
    assert last_of_plain["global_step"] == 6
    for rank in (first, second):
        # Lightning asks for a SIGTERM at every minibatch otherwise, and waits for the device each time
        assert rank["asked"].count((1,)) == 1


@pytest.mark.slow
def test_a_run_goes_on_as_if_it_had_not_stopped_with_either_strategy(runs):
    for name, value in runs[0]["whole"].items():
        assert torch.equal(runs[0]["again"][name], value)
        torch.testing.assert_close(runs[0]["other"][name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_handing_out_rounded_weights_changes_nothing(runs):
    exact = runs[0]["exact"]
    for rounded in (runs[0]["rounded"], runs[1]["rounded"], runs[0]["resumed"]):
        assert rounded["loss"] == exact["loss"]
        for name, (weight, n_bytes) in rounded["kept"].items():
            assert torch.equal(weight, exact["kept"][name][0])
            assert n_bytes == weight.numel() * 4
        assert all(torch.equal(weight, exact["last"][name]) for name, weight in rounded["last"].items())
    # and nothing that is kept is rounded
    weight = runs[0]["rounded"]["last"]["module.network.head.project.layers.0.weight"]
    assert (weight != weight.bfloat16()).float().mean() > 0.9


@pytest.mark.slow
def test_an_odd_number_of_validation_sets_has_the_loss_that_one_process_finds(runs):
    adata = simulate_screen(1, 7, n_genes=40, n_cells=16, n_control_cells=20)
    TahoeST.setup_anndata(adata, "perturbation", "control", context_key="context")
    size = {"hidden": 16, "n_layers": 1, "intermediate": 32, "n_heads": 2}
    model = TahoeST(adata, size=size, set_size=8, prior="none")
    model.train(1, batch_size=4, lr=1e-12, accelerator="cpu", progress=False)
    expected = model.history["validation_loss"].to_numpy().ravel()
    for rank in runs:
        np.testing.assert_allclose(rank["seven sets"], expected, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_sharded", "fsdp2"])
def test_parts_are_unfrozen_in_the_middle_of_a_run_and_resumed_across_it(runs, strategy):
    first, second = (rank[f"unfrozen {strategy}"] for rank in runs)
    parts = {1: {"heads"}, 2: {"heads", "upper"}, 3: {"heads", "upper", "lower"}}
    assert {step: first["seen"][step] for step in parts} == parts
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    for step in (2, 3):
        again = runs[0][f"unfrozen {strategy} from {step}"]["weights"]
        assert all(torch.equal(value, again[name]) for name, value in first["weights"].items())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_sharded", "fsdp2"])
def test_all_strategies_unfreeze_to_the_same_weights(runs, strategy):
    plain, sharded = (runs[0][f"unfrozen {name}"]["weights"] for name in ("ddp", strategy))
    for name, value in plain.items():
        torch.testing.assert_close(sharded[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run_changes_from_whole_weights_to_shards_and_back(runs):
    for name, value in runs[0]["ddp"].items():
        torch.testing.assert_close(runs[0]["fsdp2"][name], value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(runs[0]["ddp again"][name], value, rtol=1e-5, atol=1e-6)
    assert runs[0]["left"] == runs[1]["left"] == 0  # no shard outlives its run
