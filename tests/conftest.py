"""A small simulated screen, and models of it that train in a fraction of a second."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvi_tahoe import TahoeST
from scvi_tahoe.datasets import simulate_screen

SETUP = {"perturbation_key": "perturbation", "control": "control", "context_key": "context", "batch_key": "batch"}
SIZE = {"hidden": 16, "n_layers": 3, "intermediate": 32, "n_heads": 2, "dropout": 0.2}
BRIEF = {"max_steps": 8, "validate_every": 4, "batch_size": 2, "progress": False}


@pytest.fixture(scope="session")
def simulated():
    return simulate_screen(2, 6, n_genes=60, n_cells=24, n_control_cells=40)


@pytest.fixture
def screen(simulated):
    """Two contexts, six perturbations, two batches, 60 genes; a copy of one's own."""
    return simulated.copy()


@pytest.fixture
def doses(screen):
    """Two drugs at three doses each; of control cells nobody gives one."""
    number = pd.to_numeric(screen.obs["perturbation"].astype(str).str[-1], errors="coerce").to_numpy() - 1
    screen.obs["drug"] = np.where(np.isnan(number), "DMSO", np.where(number < 3, "P", "Q"))
    screen.obs["dose"] = 10.0 ** (number % 3)
    return screen


@pytest.fixture
def register():
    """Register a screen with its usual keys, some of them changed."""

    def register(adata, **changes):
        TahoeST.setup_anndata(adata, **{**SETUP, **changes})
        return adata

    return register


@pytest.fixture
def make_model(simulated, register):
    """A tiny model with dropout and without a prior, of a registered screen or of a copy of the simulated one."""

    def make(adata=None, *, setup=None, **options):
        adata = register(simulated.copy() if adata is None else adata, **(setup or {}))
        return TahoeST(adata, **{"size": SIZE, "set_size": 8, "prior": "none", **options})

    return make


@pytest.fixture
def train():
    """A training of eight steps, some of its arguments changed."""

    def train(model, **changes):
        model.train(**{**BRIEF, **changes})
        return model

    return train
