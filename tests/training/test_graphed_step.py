"""A replayed step has the losses and gradients of a usual one; these tests need a CUDA device."""

from __future__ import annotations

import pytest
import torch

from scvi_tahoe._constants import TENSORS
from scvi_tahoe.training._acceleration import Acceleration
from scvi_tahoe.training._graphed_step import GraphedStep
from scvi_tahoe.training._plan import TahoeTrainingPlan

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
GPU = torch.device("cuda", 0)
BRIEF = {"max_steps": 24, "validate_every": 12, "batch_size": 2, "progress": False}


def _batch(module, seed, n_cells=16):
    config, generator = module.config, torch.Generator(GPU).manual_seed(seed)
    draw = lambda *shape: torch.rand(*shape, generator=generator, device=GPU)
    return {
        TENSORS.CONTROL: draw(2, n_cells, config.n_input), TENSORS.OBSERVED: draw(2, n_cells, config.n_output),
        TENSORS.PERTURBATION: draw(2, config.n_perturbation),
        TENSORS.CONDITION: torch.zeros(2, dtype=torch.long, device=GPU),
    }  # fmt: skip


@pytest.fixture
def module(make_model):
    module = make_model(prior="none").module.to(GPU).train()
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    acceleration = Acceleration(module, compiles=False)
    acceleration.begin("bf16-mixed", GPU)
    yield module
    acceleration.end()


def _replayed(graphed, batch):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        return graphed(batch)


def _usual(module, batch):
    module.zero_grad()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        losses = module(batch)[-1]
    losses.loss.backward()
    return float(losses.loss.detach()), {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def _was_replayed(graphed, module, batch):
    """Take a step as training does: the usual one where none can be replayed."""
    module.zero_grad()
    if _replayed(graphed, batch) is not None:
        return True
    _usual(module, batch)
    return False


def test_a_recorded_step_is_the_usual_step_of_every_later_minibatch(module):
    graphed = GraphedStep(module)
    assert not any(_was_replayed(graphed, module, _batch(module, seed)) for seed in range(3))
    for seed in range(3, 7):
        module.zero_grad()
        losses = _replayed(graphed, _batch(module, seed))
        gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
        loss, expected = _usual(module, _batch(module, seed))
        assert float(losses.loss) == pytest.approx(loss, rel=1e-3)
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=2e-2, atol=1e-4)


def test_another_shape_and_other_frozen_weights_are_recorded_anew(module):
    graphed = GraphedStep(module)
    anew = [False, False, False, True, True]
    assert [_was_replayed(graphed, module, _batch(module, seed)) for seed in range(5)] == anew
    assert [_was_replayed(graphed, module, _batch(module, seed, n_cells=12)) for seed in range(5)] == anew
    module.network.head.project.layers[0].weight.requires_grad_(False)
    assert [_was_replayed(graphed, module, _batch(module, seed)) for seed in range(5)] == anew
    assert module.network.head.project.layers[0].weight.grad is None


def test_what_cannot_be_recorded_runs_as_usual_and_says_so_once(module, monkeypatch, caplog):
    forward = type(module).forward

    def reads(self, batch):
        result = forward(self, batch)
        float(result[-1].loss)  # makes the processor wait, which a recording cannot
        return result

    monkeypatch.setattr(type(module), "forward", reads)
    graphed = GraphedStep(module)
    assert not any(_was_replayed(graphed, module, _batch(module, seed)) for seed in range(6))
    assert sum("cannot be recorded" in record.message for record in caplog.records) == 1


def _replays(monkeypatch):
    """Count the minibatches that a run replays."""
    call, replayed = GraphedStep.__call__, []

    def counted(self, batch):
        losses = call(self, batch)
        replayed.append(losses is not None)
        return losses

    monkeypatch.setattr(GraphedStep, "__call__", counted)
    return replayed


@pytest.mark.parametrize("options", [{}, {"freeze_backbone": 6}], ids=["all trains", "unfrozen on the way"])
def test_a_run_with_no_option_replays_steps_and_ends_where_one_in_the_slow_way_ends(options, make_model, monkeypatch):
    replayed, found = _replays(monkeypatch), []
    for slow in (False, True):
        if slow:
            monkeypatch.setattr(TahoeTrainingPlan, "_rounds_on_one_gpu", lambda *_: False)
        model = make_model()
        if options:
            model.pretrained_parameters_ = [n for n, _ in model.module.named_parameters()]
        model.train(**BRIEF, **options)
        assert slow or all(p.grad is None for p in model.module.parameters())
        found.append(model.history["train_loss"].iloc[:, 0].to_numpy())
    assert replayed.count(False) == (6 if options else 3)
    assert replayed.count(True) == 24 - replayed.count(False)
    assert found[0] == pytest.approx(found[1], rel=0.03)


def test_a_loss_that_waits_for_the_gpu_trains_without_a_recording(make_model, caplog, monkeypatch):
    pytest.importorskip("geomloss")
    replayed = _replays(monkeypatch)
    model = make_model(objective={"terms": {"sinkhorn": 1.0}})
    model.train(**BRIEF)
    assert model.history["train_loss"].notna().all().all()
    messages = sum("cannot be recorded" in record.message for record in caplog.records)
    assert messages == (0 if any(replayed) else 1)


ON_TWO = """
import sys

import torch
from scvi_tahoe import TahoeST
from scvi_tahoe.datasets import simulate_screen
from scvi_tahoe.training._graphed_step import GraphedStep

call, replayed, losses = GraphedStep.__call__, [], []


def counted(self, batch):
    found = call(self, batch)
    replayed.append(found is not None)
    return found


GraphedStep.__call__ = counted
for compiles in ("record", False):
    adata = simulate_screen(2, 6, n_genes=200, n_cells=60, n_control_cells=80)
    TahoeST.setup_anndata(adata, "perturbation", "control", context_key="context")
    model = TahoeST(adata, size="mini", set_size=16, prior="none")
    model.train(
        24, batch_size=2, validate_every=12, devices=2, accelerator="gpu", strategy="ddp_sharded",
        precision="bf16-mixed", compile=compiles, progress=False,
    )
    losses.append(model.history["train_loss"].iloc[:, 0].tolist())
    assert all(p.grad is None for p in model.module.parameters())
if model.trainer.is_global_zero:
    torch.save({"losses": losses, "replayed": replayed}, f"{sys.argv[1]}/found.pt")
"""


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_processes_replay_steps_and_end_where_they_end_without(folder_of_script):
    found = torch.load(folder_of_script(ON_TWO) / "found.pt", weights_only=True)
    assert (found["replayed"].count(False), found["replayed"].count(True)) == (3, 21)
    assert found["losses"][0] == pytest.approx(found["losses"][1], rel=0.03)
