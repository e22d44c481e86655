"""Losses of cells against geomloss, arc-state's numbers and known answers; those of other outputs by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from geomloss import SamplesLoss

from scvi_tahoe.nn import (
    SET_LOSSES,
    batch_classification,
    confidence_error,
    control_shift,
    de_weighted_mse,
    decoder_loss,
    delta_mse,
    distillation,
    energy_distance,
    kernel_mmd,
    mse,
    sinkhorn_divergence,
)

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.npz"))


def cells(n, *, seed, dtype=torch.float64, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, n, 40, generator=generator, dtype=torch.float64).mul(3).add(shift).to(dtype)


def gradient(loss, x, y):
    x = x.clone().requires_grad_()
    loss(x, y).sum().backward()
    return x.grad


GEOMLOSS_ENERGY = SamplesLoss("energy", backend="tensorized")


@pytest.mark.parametrize(("n", "m"), [(8, 8), (5, 11), (1, 4)])
def test_the_energy_distance_is_that_of_geomloss(n, m):
    """geomloss takes 1e-4 for the distance of a cell to itself, as 'rounded' does; its gradient there is zero."""
    x, y = cells(n, seed=0), cells(m, seed=1, shift=0.5)
    theirs, slope, close = GEOMLOSS_ENERGY(x, y), gradient(GEOMLOSS_ENERGY, x, y), {"atol": 1e-10, "rtol": 1e-10}
    torch.testing.assert_close(energy_distance(x, y, diagonal="rounded"), theirs, **close)
    rounded = gradient(lambda a, b: energy_distance(a, b, diagonal="rounded"), x, y)
    torch.testing.assert_close(rounded, slope, **close)
    torch.testing.assert_close(energy_distance(x, y), theirs + 0.5 * (1e-4 / n + 1e-4 / m), **close)
    torch.testing.assert_close(gradient(energy_distance, x, y), slope, **close)


@pytest.mark.parametrize("diagonal", ["zero", "excluded"])
def test_the_written_gradient_is_the_true_one(diagonal):
    x, y = cells(4, seed=0).requires_grad_(), cells(6, seed=1)
    assert torch.autograd.gradcheck(lambda a: energy_distance(a, y, diagonal=diagonal), x)


@pytest.mark.parametrize("diagonal", ["zero", "excluded", "rounded"])
def test_float32_is_close_to_float64_and_its_gradient_finite(diagonal):
    x, y = cells(16, seed=0), cells(16, seed=1, shift=0.2)
    wide = energy_distance(x, y, diagonal=diagonal if diagonal != "rounded" else "zero")
    narrow = energy_distance(x.float(), y.float(), diagonal=diagonal)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, atol=2e-3 if diagonal == "rounded" else 1e-5, rtol=1e-5)
    same = x[:, :1].float().expand(3, 6, 40).clone()
    assert torch.isfinite(gradient(lambda a, b: energy_distance(a, b, diagonal=diagonal), same, same)).all()
    x, y = x.requires_grad_(), y.requires_grad_()
    energy_distance(x, y, diagonal=diagonal).sum().backward()
    assert x.grad.abs().sum() > 0
    assert y.grad is None or diagonal == "rounded"  # no gradient flows into observed cells


def test_known_answers():
    """Two cells at distance 3 from two cells, which are 0 and 2 apart: 3.08 - 0/4 - 2/4 by hand."""
    x = torch.zeros(1, 2, 2, dtype=torch.float64)
    y = torch.tensor([[[3.0, 1.0], [3.0, -1.0]]], dtype=torch.float64)
    across = np.sqrt(10.0)
    assert energy_distance(x, y).item() == pytest.approx(across - 2 * 2 / (2 * 4))
    assert energy_distance(x, y, diagonal="excluded").item() == pytest.approx(across - 2 * 2 / (2 * 2))
    assert mse(x, y).item() == pytest.approx((9 + 1) / 2)
    assert delta_mse(x, y).item() == pytest.approx((9 + 0) / 2)
    assert de_weighted_mse(x, y, torch.tensor([[0.25, 0.75]])).item() == pytest.approx(0.25 * 9)
    assert distillation(torch.zeros(1, 2, 2), torch.tensor([[[3.0, 4.0]] * 2])).item() == pytest.approx(5, rel=1e-3)


def test_a_perfect_generator_has_no_distance_on_average():
    x = cells(8, seed=0)
    torch.testing.assert_close(energy_distance(x, x), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    many = torch.Generator().manual_seed(0)
    a, b = (torch.randn(400, 8, 10, generator=many, dtype=torch.float64) for _ in range(2))
    unbiased, biased = (energy_distance(a, b, diagonal=d).mean().item() for d in ("excluded", "zero"))
    assert abs(unbiased) < 0.01
    assert biased > 0.4  # about the mean distance over N


def test_the_order_of_cells_does_not_matter_except_for_paired_ones():
    x, y = cells(8, seed=0), cells(8, seed=1)
    for name, loss in SET_LOSSES.items():
        moved = loss(x.flip(1), y)
        assert torch.allclose(moved, loss(x, y)) == (name != "mse"), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_cells_are_computed_in_float32(dtype):
    x, y = cells(8, seed=0).to(dtype), cells(8, seed=1).to(dtype)
    for name, loss in SET_LOSSES.items():
        value = loss(x, y)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, loss(x.float(), y.float()), atol=1e-4, rtol=1e-4, msg=name)


def test_sinkhorn_and_mmd_are_those_of_geomloss():
    x, y = cells(8, seed=0), cells(8, seed=1, shift=0.3)
    theirs = SamplesLoss("sinkhorn", p=2, blur=0.1, scaling=0.5, backend="tensorized")(x, y)
    torch.testing.assert_close(sinkhorn_divergence(x, y, blur=0.1), theirs, rtol=1e-10, atol=0)
    for kernel in ("gaussian", "laplacian"):
        theirs = SamplesLoss(kernel, blur=2.0, backend="tensorized")(x, y)
        torch.testing.assert_close(kernel_mmd(x, y, kernel=kernel, blur=2.0), theirs, rtol=1e-10, atol=0)


def test_the_error_of_the_mean_change_sees_means_only():
    x, y, equal = cells(8, seed=0), cells(5, seed=1), torch.full((3, 40), 1 / 40)
    spread = x + 7 * torch.linspace(-1, 1, 8, dtype=x.dtype)[None, :, None]
    torch.testing.assert_close(delta_mse(spread, y), delta_mse(x, y))
    torch.testing.assert_close(delta_mse(x, y), (x.mean(1) - y.mean(1)).square().mean(1))
    torch.testing.assert_close(de_weighted_mse(x, y, equal), delta_mse(x, y))
    assert de_weighted_mse(x.half(), y.half(), equal).dtype == torch.float32


def test_given_weights_do_not_exaggerate_a_small_effect():
    """An effect of 0.5 under noise of 1: squared errors weighted by the noise itself are least near 3 x 0.5."""
    draws = 0.5 + torch.randn(200_000, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = torch.linspace(0, 2, 81, dtype=torch.float64)

    def best(weight_SG):
        losses = [de_weighted_mse(torch.full_like(draws, x), draws, weight_SG).mean() for x in grid]
        return grid[torch.stack(losses).argmin()].item()

    assert best(torch.ones(1, 1)) == pytest.approx(0.5, abs=0.03)
    assert best(draws[:, 0].square()) == pytest.approx((0.5**3 + 3 * 0.5) / (0.5**2 + 1), abs=0.04)


@pytest.fixture(params=NAMES)
def golden(request):
    arrays = np.load(GOLDEN / f"{request.param}.npz")
    return arrays, json.loads((GOLDEN / f"{request.param}.json").read_text())


def sets(array, size=16):
    return torch.from_numpy(array.reshape(-1, size, array.shape[-1]))


def test_the_rounded_energy_distance_is_that_of_published_logs(golden):
    arrays, settings = golden
    size = settings["hyper_parameters"].get("cell_set_len", 16)
    predicted, observed = (sets(arrays[f"padded/{k}"], size) for k in ("out/preds", "in/pert_cell_emb"))
    loss = energy_distance(predicted, observed, diagonal="rounded").mean().item()
    logged = arrays.get("padded/loss/train_loss")
    if "padded/loss/train/actual_loss" in arrays:
        assert 10 * loss == pytest.approx(float(arrays["padded/loss/train/actual_loss"]), rel=1e-5)
    assert loss == pytest.approx(float(logged), rel=1e-5)


def random_cells(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_decoder_has_the_loss_of_cells_and_a_shift_their_change():
    x, y = random_cells(0, 3, 5, 4), random_cells(1, 3, 6, 4)
    torch.testing.assert_close(decoder_loss(x, y, distance=delta_mse), delta_mse(x, y))
    assert decoder_loss(x, x, distance=delta_mse).tolist() == [0, 0, 0]
    change = torch.tensor([1.0, -2.0, 0.0])[:, None, None]
    torch.testing.assert_close(control_shift(x + change, x), torch.tensor([1.0, 2.0, 0.0]))


def test_the_distillation_leaves_the_teacher_alone():
    x, y = random_cells(0, 3, 5, 4).requires_grad_(), random_cells(1, 3, 6, 4).requires_grad_()
    found = distillation(x, y)
    torch.testing.assert_close(found, energy_distance(x, y, diagonal="excluded"))
    found.sum().backward()
    assert x.grad.abs().sum() > 0
    assert y.grad is None


def test_batches_that_cannot_be_told_apart_cost_the_log_of_their_number():
    found = batch_classification(torch.zeros(2, 4), torch.tensor([0, 3]))
    torch.testing.assert_close(found, torch.full((2,), math.log(4)))
    assert batch_classification(torch.tensor([[50.0, 0.0]]), torch.tensor([0])).item() == pytest.approx(0, abs=1e-6)


def test_a_confidence_is_judged_by_a_loss_that_it_does_not_pull_on():
    confidence, loss = torch.tensor([1.0, 20.0], requires_grad=True), torch.tensor([0.5, 2.0], requires_grad=True)
    found = confidence_error(confidence, loss, scale=10)
    assert found.tolist() == [16, 0]
    found.sum().backward()
    assert confidence.grad.tolist() == [-8, 0]
    assert loss.grad is None


def test_the_gradient_of_the_mean_goes_along_with_that_of_the_energy_distance():
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)
    start, observed = draw(2, 5, 7).requires_grad_(), draw(2, 6, 7)

    def gradient(cells, *terms):
        total = sum((term(cells, observed) * weight for term, weight in terms), torch.zeros(2)).sum()
        return torch.autograd.grad(total, start)[0]

    energy, mean = (energy_distance, 1.0), (delta_mse, 100.0)
    expected = gradient(start * 2, energy) + gradient(start * 2, mean)
    for terms in ((energy, mean), (mean, energy)):
        torch.testing.assert_close(gradient(start * 2, *terms), expected)
    cells = start * 2
    energy_distance(cells, observed)
    torch.testing.assert_close(gradient(cells, mean), gradient(start * 2, mean))  # of the mean alone
    cells.detach().add_(1)  # the mean that was kept is not that of changed cells
    torch.testing.assert_close(delta_mse(cells, observed), delta_mse(cells.detach(), observed))
