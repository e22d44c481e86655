"""What a minibatch is made of, where a mistake in it would go unnoticed."""

from __future__ import annotations

import pytest

from scvi_tahoe import TahoeST
from scvi_tahoe.datasets import simulate_screen

KEYS = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}


@pytest.fixture
def screen():
    return simulate_screen(n_contexts=2, n_perturbations=4, n_genes=40, n_cells=30, n_control_cells=40, seed=0)


def test_a_network_with_a_batch_token_learns_to_tell_batches_apart(screen):
    TahoeST.setup_anndata(screen, batch_key="batch", **KEYS)
    n_batches = screen.obs["batch"].nunique()
    model = TahoeST(screen, set_size=8, network={"batch_token": True, "n_batch_classes": n_batches})
    model.train(max_steps=2, progress=False)
    assert "train_batch" in model.history


def test_a_network_with_a_batch_token_is_refused_without_batches(screen):
    TahoeST.setup_anndata(screen, **KEYS)
    model = TahoeST(screen, set_size=8, network={"batch_token": True, "n_batch_classes": 2})
    with pytest.raises(ValueError, match="none are registered; register them with batch_key"):
        model.train(max_steps=2, progress=False)
