"""Clipping, AdamW and rounding in one pass: as torch does it in three; these tests need a CUDA device."""

from __future__ import annotations

import copy

import pytest
import torch

from scvi_tahoe import FractionSplit
from scvi_tahoe.training._rounded_optimizer import RoundedAdamW

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
GPU = torch.device("cuda", 0)
BRIEF = {"max_steps": 8, "validate_every": 4, "batch_size": 2, "progress": False}


def _weights():
    generator = torch.Generator().manual_seed(0)
    sizes = [(40, 30), (40,), (3000, 70), (50, 60)]
    weights = [torch.nn.Parameter(torch.randn(size, generator=generator).to(GPU)) for size in sizes]
    weights[3].requires_grad_(False)
    return weights


def _groups(weights):
    return [{"params": weights[:2], "lr": 0.1, "weight_decay": 0.1}, {"params": weights[2:], "weight_decay": 0.0}]


@pytest.mark.parametrize("limit", [0.5, float("inf")], ids=["clipped", "not clipped"])
def test_steps_are_those_of_torch_with_the_same_gradients(limit):
    ours, theirs = _weights(), _weights()
    start = [w.detach().clone() for w in ours]
    options = {"lr": 0.02, "betas": (0.9, 0.99), "fused": True}
    rounding = RoundedAdamW(_groups(ours), precision=torch.bfloat16, rounded=[ours[0], ours[2], ours[3]], **options)
    reference = torch.optim.AdamW(_groups(theirs), **options)
    generator = torch.Generator(GPU).manual_seed(1)
    for _ in range(5):
        rounding.compact()
        assert [w.dtype for w in ours] == [torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16]
        for a, b in zip(ours[:3], theirs[:3], strict=True):
            b.grad = torch.randn(b.shape, generator=generator, device=GPU).to(a.dtype).float()
            a.grad = b.grad.to(a.dtype, copy=True)
        exact = torch.stack([w.grad.double().square().sum() for w in theirs[:3]]).sum().sqrt()
        torch.nn.utils.clip_grad_norm_(theirs[:3], limit)
        reference.step()
        assert float(rounding.reduce_gradients(limit)) == pytest.approx(float(exact), rel=2e-5)
        rounding.step()
        assert all(w.grad is None for w in ours)
        rounded = [w.detach().clone() for w in ours]
        rounding.complete()
        assert all(torch.equal(r, w.to(r.dtype)) for r, w in zip(rounded, ours, strict=True))
    for a, b, before in zip(ours, theirs, start, strict=True):
        torch.testing.assert_close(a - before, b - before, rtol=1e-3, atol=1e-4)
    state, wanted = rounding.state_dict()["state"], reference.state_dict()["state"]
    assert state.keys() == wanted.keys()
    for number, values in wanted.items():
        for name, value in values.items():
            torch.testing.assert_close(state[number][name], value, rtol=1e-4, atol=1e-6)


def test_what_was_saved_goes_on_in_the_same_way():
    first = _weights()
    options = {"lr": 0.02, "fused": True, "precision": torch.bfloat16}
    optimizer = RoundedAdamW(_groups(first), rounded=[first[0], first[2]], **options)

    def step(weights, optimizer, seed):
        generator = torch.Generator(GPU).manual_seed(seed)
        optimizer.compact()
        for weight in weights[:3]:
            weight.grad = torch.randn(weight.shape, generator=generator, device=GPU).to(weight.dtype)
        optimizer.reduce_gradients(1.0)
        optimizer.step()
        optimizer.complete()

    step(first, optimizer, 0)
    second = [torch.nn.Parameter(w.detach().clone(), requires_grad=w.requires_grad) for w in first]
    again = RoundedAdamW(_groups(second), rounded=[second[0], second[2]], **options)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(first, optimizer, 1)
    step(second, again, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_checkpoints_hold_full_weights_also_where_nothing_validates(make_model, tmp_path):
    model = make_model()
    with pytest.warns(UserWarning, match="no cell validates"):
        model.train(**BRIEF, split=FractionSplit(validation=0.0), save_dir=tmp_path)
    state = torch.load(tmp_path / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    assert {value.dtype for value in state.values()} == {torch.float32}


def test_a_run_ends_with_full_weights_close_to_those_of_torchs_optimizer(make_model, monkeypatch):
    found = []
    for rounds in (True, False):
        if not rounds:
            monkeypatch.setattr("scvi_tahoe.training._plan.TahoeTrainingPlan._rounds_on_one_gpu", lambda *_: False)
        model = make_model()
        model.train(**{**BRIEF, "max_steps": 40, "validate_every": 20})
        kind = type(model.trainer.optimizers[0]) if model.trainer.optimizers else None
        assert kind is None or issubclass(kind, RoundedAdamW) == rounds
        assert {p.dtype for p in model.module.parameters()} == {torch.float32}
        found.append(float(model.history["validation_loss"].iloc[-1, 0]))
    assert found[0] == pytest.approx(found[1], rel=0.02)
