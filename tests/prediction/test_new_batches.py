"""Technical batches that the network has not seen: refused, or replaced as an argument says."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_tahoe import TahoeST
from scvi_tahoe.evaluate import PREDICTION_RECORD

OPTIONS = {"perturbations": ["perturbation_1"], "progress": False}


@pytest.fixture
def model(models):
    return models["none"]


@pytest.fixture
def elsewhere(simulated):
    """Control cells of one batch under two names, the second of which nobody knows."""
    controls = simulated[simulated.obs["perturbation"] == "control"].copy()
    known = str(controls.obs["batch"].iloc[0])
    controls = controls[controls.obs["batch"] == known].copy()
    renamed = controls.copy()
    renamed.obs["batch"] = "next year"
    return controls, renamed, known


def predicted(model, adata, **options):
    return model.predict(adata, **OPTIONS, **options)


def test_new_batches_are_refused_unless_something_stands_for_them(model, elsewhere):
    with pytest.raises(ValueError, match=r"data have batches that.*next year.*new_batches='mean'"):
        predicted(model, elsewhere[1])
    with pytest.raises(ValueError, match="new_batches='closest' is unknown"):
        predicted(model, elsewhere[1], new_batches="closest")


def test_the_nearest_batch_stands_for_a_new_one_with_its_control_cells(model, elsewhere):
    controls, renamed, known = elsewhere
    found = predicted(model, renamed, new_batches="nearest")
    assert found.uns[PREDICTION_RECORD]["new_batches"] == {"next year": known}
    assert np.array_equal(found.X, predicted(model, controls).X)
    assert set(found.obs["batch"]) == {"next year"}


def test_the_mean_vector_stands_for_a_new_batch_and_the_model_stays_as_it_is(model, elsewhere):
    controls, renamed, _ = elsewhere
    weight = model.module.network.batch_encoder.weight
    found = predicted(model, renamed, new_batches="mean")
    assert found.uns[PREDICTION_RECORD]["new_batches"] == {"next year": "mean of 2 batches"}
    assert model.module.network.batch_encoder.weight is weight
    before = weight.detach().clone()
    weight.data.copy_(before.mean(0, keepdim=True).expand_as(before))
    try:
        expected = predicted(model, controls)
    finally:
        weight.data.copy_(before)
    np.testing.assert_allclose(found.X, expected.X, atol=1e-6)


def test_known_batches_are_predicted_as_before(model, elsewhere):
    found = predicted(model, elsewhere[0], new_batches="mean")
    assert "new_batches" not in found.uns[PREDICTION_RECORD]
    assert np.array_equal(found.X, predicted(model, elsewhere[0]).X)


def test_without_its_data_a_model_knows_no_nearest_batch(model, elsewhere, tmp_path):
    model.export(tmp_path / "export")
    alone = TahoeST.from_pretrained(tmp_path / "export")
    with pytest.raises(ValueError, match="compares with control cells of the training data"):
        predicted(alone, elsewhere[1], new_batches="nearest")
    assert predicted(alone, elsewhere[1], new_batches="mean").n_obs > 0
