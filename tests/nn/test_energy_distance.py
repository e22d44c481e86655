"""The energy distance in products of 16-bit numbers, and of cells that are copies of each other."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from scvi_tahoe.nn import energy_distance
from scvi_tahoe.nn._layers import AlignedLinear

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def sets(n=40, m=48, g=500, seed=0):
    """Cells as log1p expression has them: mostly alike, a third zero, a shift in mean."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.rand(g, generator=generator) * 1.5
    x = (torch.randn(3, n, g, generator=generator) * 0.5 + mean).relu()
    y = (torch.randn(3, m, g, generator=generator) * 0.5 + 1.1 * mean).relu()
    return x, y


def value_and_gradient(x, y, **options):
    x = x.clone().requires_grad_()
    value = energy_distance(x, y, **options)
    (value * torch.arange(1, 4, device=x.device)).sum().backward()
    return value.detach().double(), x.grad.double()


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("diagonal", ["zero", "excluded"])
@pytest.mark.parametrize(("products", "limit"), [(torch.float32, 1e-5), (torch.float16, 1e-3)])
def test_value_and_gradient_agree_with_float64(diagonal, products, limit):
    x, y = sets()
    exact = value_and_gradient(x.double(), y.double(), diagonal=diagonal)
    fast = value_and_gradient(x, y, diagonal=diagonal, products=products)
    assert relative(fast[0], exact[0]) < limit
    assert relative(fast[1], exact[1]) < limit


def test_the_means_keep_their_precision_where_they_nearly_cancel():
    # the distance is a hundredth of the means that it is the difference of
    x, y = sets(256, 256, 18_080)
    exact = energy_distance(x.double(), y.double())
    for products, limit in ((torch.float32, 1e-6), (torch.float16, 1e-4)):
        assert relative(energy_distance(x, y, products=products).double(), exact) < limit


def test_the_gradient_has_the_type_of_the_cells():
    x, y = sets()
    for dtype in (torch.bfloat16, torch.float32):
        cells = x.to(dtype).requires_grad_()
        energy_distance(cells, y, products=torch.float16).sum().backward()
        assert cells.grad.dtype == dtype


@pytest.mark.parametrize("products", [torch.float32, torch.float16])
def test_copies_of_a_cell_are_at_distance_zero_and_do_not_pull(products):
    x, y = sets()
    x[:, 20:] = x[:, :20]  # a set drawn with repetition
    exact = value_and_gradient(x.double(), y.double(), diagonal="excluded")
    fast = value_and_gradient(x, y, diagonal="excluded", products=products)
    assert relative(fast[0], exact[0]) < 1e-3
    assert relative(fast[1], exact[1]) < 2e-3


def test_values_beyond_float16_stay_finite():
    x, y = sets()
    x[0, 0, 0] = 1e6
    for part in value_and_gradient(x, y, products=torch.float16):
        assert torch.isfinite(part).all()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton, whose interpreter runs anywhere")
def test_the_kernels_compute_what_float64_computes():
    # the interpreter has to be chosen before Triton is imported
    code = """
import contextlib, torch
torch.cuda.device = lambda device: contextlib.nullcontext()
from scvi_tahoe.nn import energy_distance
from scvi_tahoe.nn._energy_kernels import centred_cells, distances, pull_weights, scaled_rows

def by_kernels(x, y, gradient, of_mean, excluded):
    n, m = x.shape[1], y.shape[1]
    pairs_x, pairs_y = (k * (k - 1) if excluded else k * k for k in (n, m))
    cells, square = centred_cells(x, y, 6e4)
    product, within = cells[:, m:].float() @ cells.mT.float(), cells[:, :m].float() @ cells[:, :m].mT.float()
    across, inside = distances(product, square, first=m, split=m, rounding=4e-6, keep=True).sum(1).unbind(-1)
    other = distances(within, square, first=0, split=m, rounding=4e-6, keep=False)[..., 0].sum(1)
    weight, scale = pull_weights(product, n_observed=m, across=1 / (n * m), within=1 / pairs_x)
    pulled = (weight.float() @ cells.float()).half()
    value = across / (n * m) - inside / pairs_x / 2 - other / pairs_y / 2
    return value, scaled_rows(pulled, scale * gradient[:, None], x.shape[2], x.dtype, shift_SG=of_mean / n)

torch.manual_seed(0)
for n, m, genes in ((20, 24, 101), (33, 17, 64), (4, 5, 2500)):
    mean = torch.rand(genes) * 1.5
    x, y = ((torch.randn(3, k, genes) * 0.5 + mean).relu() for k in (n, m))
    y, gradient = 1.1 * y, torch.arange(1, 4).float()
    x[:, 5] = x[:, 4]
    of_mean = 0.01 * torch.randn(3, genes)
    for diagonal, dtype in (("zero", torch.float32), ("excluded", torch.float32), ("excluded", torch.bfloat16)):
        cells = x.to(dtype)
        exact = cells.double().requires_grad_()
        expected = energy_distance(exact, y.double(), diagonal=diagonal)
        ((expected * gradient).sum() + (of_mean * exact.mean(1)).sum()).backward()
        found = by_kernels(cells, y, gradient, of_mean, diagonal == "excluded")
        for a, b in zip(found, (expected.detach(), exact.grad)):
            if (a - b).norm() > (1e-3 if dtype == torch.float32 else 5e-3) * b.norm():
                raise SystemExit(f"{n}, {m}, {genes}, {diagonal}, {dtype}: {float((a - b).norm() / b.norm())}")
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, check=True, timeout=300)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("diagonal", ["zero", "excluded"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_gpu_16_bit_products_agree_with_float64(diagonal, dtype):
    x, y = (cells.to(dtype).float().cuda() for cells in sets(512, 512, 18_080))
    exact = value_and_gradient(x.double(), y.double(), diagonal=diagonal)
    for products, limit in ((torch.float32, 1e-5), (torch.float16, 1e-3)):
        fast = value_and_gradient(x, y, diagonal=diagonal, products=products)
        assert relative(fast[0], exact[0]) < limit
        assert relative(fast[1], exact[1]) < limit


@pytest.mark.parametrize("widths", [(7, 5), (8, 16), (2260, 3)])
def test_an_aligned_layer_is_a_linear_layer(widths):
    torch.manual_seed(0)
    ours, plain = AlignedLinear(*widths), nn.Linear(*widths)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3, widths[0])
    assert torch.equal(ours(x), plain(x))


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("widths", [(2261, 1001), (2264, 1001), (2261, 1000)])
def test_on_a_gpu_an_aligned_layer_agrees_with_a_linear_layer(widths):
    torch.manual_seed(0)
    ours, plain = AlignedLinear(*widths).cuda(), nn.Linear(*widths).cuda()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(64, widths[0], device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found, expected = ours(x), plain(x)
    for layer, out in ((ours, found), (plain, expected)):
        out.float().square().sum().backward()
        assert layer.weight.grad.shape == (widths[1], widths[0])
    assert relative(found.double(), expected.double()) < 5e-3
    assert relative(ours.weight.grad.double(), plain.weight.grad.double()) < 5e-3
