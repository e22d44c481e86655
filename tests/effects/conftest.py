"""Changes of conditions with a known truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scvi_tahoe import TahoeST
from scvi_tahoe.datasets import simulate_screen


@pytest.fixture
def table_of():
    """Return a maker of changes as AnnData, one condition a row."""

    def make(changes, sd=None, **obs):
        frame = pd.DataFrame(obs)
        frame.index = frame.index.astype(str)
        var = pd.DataFrame(index=[f"gene_{i}" for i in range(changes.shape[1])])
        layers = None if sd is None else {"sd": np.broadcast_to(sd, changes.shape).copy()}
        return AnnData(np.asarray(changes, dtype=np.float32), obs=frame, var=var, layers=layers)

    return make


@pytest.fixture(scope="session")
def screen_model():
    """Return a model of a simulated screen that holds out a third of the perturbations, not trained."""
    adata = simulate_screen(2, 15, n_genes=40, n_cells=10, n_control_cells=40)
    adata = adata[~adata.obs["perturbation"].isin([f"perturbation_{i:02d}" for i in range(1, 6)])].copy()
    TahoeST.setup_anndata(
        adata, perturbation_key="perturbation", control="control", context_key="context",
        perturbation_embedding_key="perturbation_embedding",
    )  # fmt: skip
    return TahoeST(adata, size="mini")
