"""Models that predictions are made with."""

from __future__ import annotations

import pytest

from scvi_tahoe import TahoeST


@pytest.fixture(scope="session")
def models(simulated):
    """A model without a prior, one with cells, and one with means."""
    found = {}
    for prior in ("none", "cells", "mean", "response"):
        adata = simulated.copy()
        TahoeST.setup_anndata(adata, "perturbation", "control", context_key="context", batch_key="batch")
        size = {"hidden": 16, "n_layers": 2, "intermediate": 32, "n_heads": 2}
        found[prior] = TahoeST(adata, size=size, set_size=8, prior=prior, batch_encoder=True)
        found[prior].train(10, validate_every=5, batch_size=4, progress=False, lr=0.01)
    return found
