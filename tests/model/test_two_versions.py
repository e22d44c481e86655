"""A model saved under one version of scvi-tools and pandas loads under the other.

Make the artefacts anew, once under each version, with::

    python tests/test_two_versions.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scvi

from scvi_tahoe import TahoeST
from scvi_tahoe.datasets import simulate_screen

FILES = Path(__file__).parents[1] / "files"
VERSIONS = ("1.4.2", "1.5.1")


def small_screen():
    return simulate_screen(2, 3, n_genes=12, n_cells=6, n_control_cells=8)


def predict(model, *args):
    return model.predict(*args, n_cells=4, progress=False)


def save_artefact():
    """Train, save and predict under the version that runs."""
    adata = small_screen()
    TahoeST.setup_anndata(
        adata, "perturbation", "control", context_key="context", batch_key="batch",
        perturbation_embedding_key="perturbation_embedding",
    )  # fmt: skip
    size = {"hidden": 8, "n_layers": 1, "intermediate": 16, "n_heads": 2}
    model = TahoeST(adata, size=size, set_size=4, batch_encoder=True)
    model.train(4, validate_every=2, batch_size=2, progress=False)
    folder = FILES / f"model_scvi_{scvi.__version__}"
    model.save(folder, overwrite=True)
    np.save(folder / "prediction.npy", predict(model).X)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_model_saved_under_each_version_predicts_the_same_here(version):
    folder = FILES / f"model_scvi_{version}"
    expected = np.load(folder / "prediction.npy")
    model, without = TahoeST.load(folder, small_screen()), TahoeST.load(folder, adata=False)
    np.testing.assert_allclose(predict(model).X, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(predict(without, small_screen()).X, expected, rtol=1e-5, atol=1e-6)
    assert without.history["validation_loss"].index.tolist() == [1, 3]
    assert without.training_config_["best_step"] in (2, 4)
    assert without.keys.batch_key == "batch"
    model.train(2, validate_every=1, batch_size=2, progress=False, recipe="full")  # training goes on from it
    assert model.history["validation_loss"].index.tolist() == [1, 3, 4, 5]


if __name__ == "__main__":
    save_artefact()
