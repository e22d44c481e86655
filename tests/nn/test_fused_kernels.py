"""One kernel returns what several operations return, and its gradients theirs; these tests need a CUDA device."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scvi_tahoe.nn import NetworkConfig, SetTransformer, _layers
from scvi_tahoe.nn._layers import RMSNorm, changed_cells, gated_silu

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
GPU = torch.device("cuda", 0)


def relative(found, expected):
    return float((found.detach().double() - expected.detach().double()).norm() / expected.detach().double().norm())


def draw(*shape, seed=0):
    generator = torch.Generator(GPU).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=GPU)


@pytest.mark.parametrize("width", [32, 100, 1488])
@pytest.mark.parametrize("trains", [True, False], ids=["trained weight", "frozen weight"])
def test_the_norm_and_its_gradients_agree_with_float64(width, trains):
    layer = RMSNorm(width).to(GPU)
    layer.weight.data += 0.3 * draw(width, seed=1)
    layer.weight.requires_grad_(trains)
    x = draw(3, 700, width).bfloat16().requires_grad_()
    pull = draw(3, 700, width, seed=2).bfloat16()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.bfloat16
    found.backward(pull)
    wide, weight = x.detach().double().requires_grad_(), layer.weight.detach().double().requires_grad_()
    expected = weight * wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected.backward(pull.double())
    assert relative(found, expected) < 5e-3
    assert relative(x.grad, wide.grad) < 5e-3
    assert layer.weight.grad is None if not trains else relative(layer.weight.grad, weight.grad) < 5e-3


@pytest.mark.parametrize("width", [24, 1000, 5952])
def test_the_gated_silu_and_its_gradients_agree_with_float64(width):
    x, pull = draw(2, 300, 2 * width).bfloat16().requires_grad_(), draw(2, 300, width, seed=2).bfloat16()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = gated_silu(x)
    found.backward(pull)
    wide = x.detach().double().requires_grad_()
    gate, up = wide.chunk(2, dim=-1)
    expected = F.silu(gate) * up
    expected.backward(pull.double())
    assert relative(found, expected) < 8e-3
    assert relative(x.grad, wide.grad) < 8e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("options", [(True, True), (True, False), (False, True)], ids=str)
def test_changed_cells_and_their_gradient_are_those_of_float64(options, dtype):
    keeps, rectifies = options
    base, change = draw(2, 50, 333).relu().to(dtype), draw(2, 50, 333, seed=1).bfloat16().requires_grad_()
    with torch.no_grad():
        base[0, 0, :20], change[0, 0, :10] = 0, 0  # exactly zero: nothing holds such a gene back
    pull = draw(2, 50, 333, seed=2)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = changed_cells(base, change, keeps_zeros=keeps, rectifies=rectifies)
    assert found.dtype == torch.float32
    found.backward(pull)
    wide = change.detach().double().requires_grad_()
    expected = changed_cells(base.double(), wide, keeps_zeros=keeps, rectifies=rectifies)
    expected.backward(pull.double())
    assert relative(found.detach(), expected.detach()) < 1e-6
    assert relative(change.grad, wide.grad) < 3e-3


@pytest.mark.parametrize("head", ["delta", "down_up"])
def test_a_network_predicts_and_learns_the_same_without_the_kernels(head, monkeypatch):
    torch.manual_seed(0)
    config = NetworkConfig(
        n_input=200, n_output=200, n_perturbation=20, hidden=96, n_layers=2, intermediate=300, n_heads=4, dropout=0.0,
        head=head, keep_zeros=head == "delta",
    )  # fmt: skip
    network = SetTransformer(config).to(GPU)
    control, perturbation = draw(2, 64, 200).relu(), draw(2, 20, seed=1)
    found = []
    for by_kernels in (True, False):
        if not by_kernels:
            monkeypatch.setattr(_layers, "_by_kernels", lambda x: False)
        network.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            predicted = network(control, perturbation).prediction_SNG
        predicted.float().square().sum().backward()
        found.append([predicted.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)])
    assert all(relative(a, b) < 2e-2 for a, b in zip(*found, strict=True) if float(b.norm()))
