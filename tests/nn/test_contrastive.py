"""Contrastive losses: known answers, what is no negative, what the shared noise of controls would do."""

from __future__ import annotations

import math

import pytest
import torch

from scvi_tahoe.nn import contrastive_alignment, contrastive_delta, info_nce
from scvi_tahoe.nn._contrastive import same_perturbation

NONE_SAME = torch.eye(3, dtype=torch.bool)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def at_zero(n, genes):
    """Controls, and their mean, that are zero."""
    return torch.zeros(n, 2, genes), torch.zeros(n, genes)


def test_the_contrast_is_the_cross_entropy_of_cosines():
    """By hand, own cosine 1 and two others 0 at temperature 0.5: log(e^2 + 2) - 2; log S if nothing differs."""
    orthogonal = info_nce(torch.eye(3), torch.eye(3), NONE_SAME, temperature=0.5)
    torch.testing.assert_close(orthogonal, torch.full((3,), math.log(math.exp(2) + 2) - 2), atol=1e-3, rtol=0)
    alike = info_nce(torch.ones(3, 4), torch.ones(3, 4), NONE_SAME, temperature=0.1)
    torch.testing.assert_close(alike, torch.full((3,), math.log(3)))
    x, y = normal(0, 5, 8), normal(1, 5, 8)
    logits = torch.nn.functional.cosine_similarity(x[:, None], y[None], dim=-1) / 0.1
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(5), reduction="none")
    found = info_nce(x, y, torch.eye(5, dtype=torch.bool), temperature=0.1)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_sets_of_the_same_perturbation_are_no_negatives():
    perturbation = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert same_perturbation(perturbation).tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    x, y = normal(0, 3, 6, 8), normal(1, 3, 6, 8)
    without = contrastive_delta(x[:2], y[:2], *at_zero(2, 8), perturbation[:2])
    found = contrastive_delta(x, y, *at_zero(3, 8), perturbation)
    torch.testing.assert_close(found[0], without[0])
    alone = contrastive_delta(x, y, *at_zero(3, 8), torch.ones(3, 2))
    torch.testing.assert_close(alone, torch.zeros(3))
    almost = normal(0, 1, 5120).expand(2, -1).clone()
    almost[1, 7] += 1e-4
    assert not same_perturbation(almost)[0, 1]


def test_the_right_delta_costs_least_whatever_its_length():
    control, effect = normal(0, 4, 30), normal(1, 4, 30)
    observed = (control + effect)[:, None].expand(-1, 5, -1)
    perturbation = torch.eye(4)

    def loss(delta):
        return contrastive_delta((control + delta)[:, None], observed, control[:, None], control, perturbation)

    changes = effect, 2 * effect, effect.roll(1, 0), effect.mean(0).expand(4, -1)
    right, twice, wrong, mean = map(loss, changes)
    torch.testing.assert_close(right, twice, atol=1e-4, rtol=1e-3)
    assert (right < mean).all()
    assert mean.mean() < wrong.mean()


def noise(effect):
    """Sets of 16 controls, cells observed of their perturbations, and the mean control cell of the context."""
    controls, observed = normal(0, 12, 16, 200), normal(1, 12, 16, 200) + effect[:, None]
    return controls, observed, torch.zeros(12, 200)


def test_a_prediction_that_ignores_the_perturbation_is_at_chance():
    """With the set's own controls as reference of both deltas, it would win by the noise that they share."""
    controls, observed, context = noise(torch.zeros(12, 200))  # no perturbation has any effect
    for constant in (torch.zeros(12, 16, 200), controls + 0.1):
        found = contrastive_delta(constant, observed, controls, context, torch.eye(12)).mean()
        assert found > 0.9 * math.log(12)
    shared = contrastive_delta(torch.zeros(12, 16, 200), observed, controls, controls.mean(1), torch.eye(12)).mean()
    assert shared < 0.5 * math.log(12)


def test_exaggerating_the_right_change_gains_nothing():
    """With the mean of the context as reference of both deltas, it would drown the noise of the controls."""
    effect = 0.3 * normal(2, 12, 200)
    controls, observed, context = noise(effect)

    def loss(times, reference):
        x = controls + times * effect[:, None]
        return contrastive_delta(x, observed, reference, context, torch.eye(12)).mean()

    torch.testing.assert_close(loss(1, controls), loss(3, controls), atol=1e-4, rtol=1e-3)
    nothing = torch.zeros_like(controls)
    assert loss(3, nothing) < 0.9 * loss(1, nothing)


@pytest.mark.parametrize("start", ["zero", "observed", "random"])
def test_gradients_are_finite(start):
    observed, perturbation = normal(1, 3, 6, 8), torch.eye(3)
    starts = {"zero": torch.zeros(3, 6, 8), "observed": observed, "random": normal(0, 3, 6, 8)}
    x = starts[start].clone().requires_grad_()
    (contrastive_delta(x, observed, *at_zero(3, 8), perturbation).sum() +
     contrastive_alignment(x, observed, perturbation).sum()).backward()  # fmt: skip
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().max() < 1000


def test_descent_finds_the_directions_of_the_deltas():
    observed, perturbation = normal(1, 6, 4, 10), torch.eye(6)
    x = normal(0, 6, 4, 10).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    first = None
    for _ in range(150):
        loss = contrastive_delta(x, observed, *at_zero(6, 10), perturbation).mean()
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05 < first


def test_what_all_cells_have_in_common_does_not_hide_the_alignment():
    embedding, perturbation = normal(0, 5, 6, 8), torch.eye(5)
    far = embedding + 100
    torch.testing.assert_close(
        contrastive_alignment(far, far, perturbation), contrastive_alignment(embedding, embedding, perturbation),
        atol=1e-3, rtol=1e-3,
    )  # fmt: skip
    assert contrastive_alignment(far, far, perturbation).mean() < 0.1 * math.log(5)
    x, y = normal(0, 3, 6, 8).requires_grad_(), normal(1, 3, 6, 8).requires_grad_()
    contrastive_alignment(x, y, torch.eye(3)).sum().backward()
    assert x.grad.abs().sum() > 0
    assert y.grad is None  # of the observed embedding


def test_one_set_has_nothing_to_be_told_apart_from():
    x = normal(0, 1, 6, 8).requires_grad_()
    loss = contrastive_delta(x, x.detach() + 1, *at_zero(1, 8), torch.ones(1, 2))
    loss.sum().backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(x.grad).all()
