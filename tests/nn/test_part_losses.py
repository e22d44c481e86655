"""Losses of the parts beside the prediction, on numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from scvi_tahoe.nn import (
    batch_classification,
    confidence_error,
    control_shift,
    decoder_loss,
    delta_mse,
    distillation,
    energy_distance,
)


def cells(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_loss_of_a_decoder_is_that_of_the_cells():
    x, y = cells(0, 3, 5, 4), cells(1, 3, 6, 4)
    torch.testing.assert_close(decoder_loss(x, y, distance=delta_mse), delta_mse(x, y))
    assert decoder_loss(x, x, distance=delta_mse).tolist() == [0, 0, 0]


def test_the_distillation_is_an_energy_distance_that_leaves_the_teacher_alone():
    x, y = cells(0, 3, 5, 4).requires_grad_(), cells(1, 3, 6, 4).requires_grad_()
    found = distillation(x, y)
    torch.testing.assert_close(found, energy_distance(x, y, diagonal="excluded"))
    found.sum().backward()
    assert x.grad.abs().sum() > 0
    assert y.grad is None


def test_two_points_are_distilled_as_far_as_they_are_apart():
    x, y = torch.zeros(1, 2, 2), torch.tensor([[[3.0, 4.0], [3.0, 4.0]]])
    assert distillation(x, y).item() == pytest.approx(5, rel=1e-3)


def test_batches_that_cannot_be_told_apart_cost_the_logarithm_of_their_number():
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


def test_a_shift_is_the_mean_absolute_change_of_each_cell():
    control = cells(0, 2, 3, 4)
    change = torch.tensor([1.0, -2.0])[:, None, None]
    torch.testing.assert_close(control_shift(control + change, control), torch.tensor([1.0, 2.0]))
