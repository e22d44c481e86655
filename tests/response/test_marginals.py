"""Distributions of genes: moving cells between populations, and giving cells the marginals of a mixture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_tahoe.response._marginals import QUANTILES, Population, move_between, with_marginals


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def counts(rng, mean, n):
    """Poisson counts with many zeros, genes first."""
    return torch.from_numpy(rng.poisson(np.asarray(mean)[:, None], (len(mean), n)).astype(np.float32))


def uniform(rng, like):
    return torch.from_numpy(rng.random(like.shape, dtype=np.float32))


def quantiles(cells):
    return Population.of(cells).quantiles(torch.ones(cells.shape[1], dtype=torch.float64))


def test_quantiles_are_values_of_cells_never_something_between_two(rng):
    cells = counts(rng, [0.3, 2.0], 37)
    assert set(quantiles(cells).ravel().tolist()) <= set(cells.ravel().tolist())


def test_weights_decide_how_much_of_the_quantiles_a_cell_gets():
    population = Population.of(torch.tensor([[5.0, 1.0, 3.0]]))
    values = population.quantiles(torch.tensor([0.25, 0.75, 0.0], dtype=torch.float64), 8)
    assert values.tolist() == [[1.0] * 6 + [5.0] * 2]


def test_cells_moved_to_another_population_are_distributed_as_it_is(rng):
    source, target = counts(rng, [0.5, 3.0], 4000), counts(rng, [2.0, 1.0], 4000)
    moved = move_between(source, quantiles(source), quantiles(target), uniform(rng, source))
    np.testing.assert_allclose(moved.mean(1), target.mean(1), atol=0.05)
    np.testing.assert_allclose((moved == 0).float().mean(1), (target == 0).float().mean(1), atol=0.02)


def test_a_gene_that_only_the_moved_cells_express_stays_on(rng):
    nothing = torch.zeros(1, QUANTILES)
    cells = torch.tensor([[0.0, 3.0]])
    assert move_between(cells, nothing, nothing, uniform(rng, cells)).tolist() == [[0.0, 3.0]]


def test_cells_moved_to_their_own_population_are_distributed_as_before(rng):
    cells = counts(rng, [0.5, 3.0], 4000)
    moved = move_between(cells, quantiles(cells), quantiles(cells), uniform(rng, cells))
    assert ((moved == 0) == (cells == 0)).float().mean() > 0.99
    np.testing.assert_allclose(moved.mean(1), cells.mean(1), atol=0.03)


def test_a_gene_that_is_off_in_the_target_is_off_in_every_moved_cell(rng):
    source, target = counts(rng, [3.0], 200), torch.zeros(1, QUANTILES)
    assert not move_between(source, quantiles(source), target, uniform(rng, source)).any()


def test_what_lies_beyond_the_source_lies_as_far_beyond_the_target(rng):
    source, target = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 3.0, 4.0]])
    cells = torch.tensor([[9.0, 0.5]])
    np.testing.assert_allclose(move_between(cells, source, target, uniform(rng, cells)), [[10.0, 1.5]])


@pytest.mark.parametrize("keep", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n", [20, 333])
def test_means_are_those_of_the_mixture_to_within_the_share_of_one_cell(keep, n, rng):
    pool, anchor = counts(rng, [0.4, 4.0], 500), quantiles(counts(rng, [1.5, 1.0], 500))
    cells = pool[:, :n]
    result = with_marginals(cells, pool, anchor, torch.full((2,), keep), uniform(rng, cells))
    mixture = keep * pool.mean(1) + (1 - keep) * anchor.mean(1)
    largest = torch.maximum(pool.amax(1), anchor.amax(1))
    assert ((result.mean(1) - mixture).abs() <= largest / n).all()


def test_zeros_are_those_of_the_mixture_and_no_new_value_appears(rng):
    pool, anchor = counts(rng, [0.4], 500), quantiles(counts(rng, [1.5], 500))
    result = with_marginals(pool, pool, anchor, torch.tensor([0.5]), uniform(rng, pool))
    expected = ((pool == 0).float().mean() + (anchor == 0).float().mean()) / 2
    assert abs((result == 0).float().mean() - expected) <= 1 / 500
    assert set(result.ravel().tolist()) <= {*pool.ravel().tolist(), *anchor.ravel().tolist()}


def test_genes_go_together_as_they_did_in_the_cells(rng):
    hidden = rng.normal(size=400)
    cells = torch.from_numpy(np.stack([hidden, hidden + 0.1 * rng.normal(size=400)]).astype(np.float32))
    anchor = torch.from_numpy(rng.normal(5, 2, (2, QUANTILES)).astype(np.float32))
    result = with_marginals(cells, cells, anchor, torch.zeros(2), uniform(rng, cells))
    assert np.corrcoef(result)[0, 1] > 0.95
