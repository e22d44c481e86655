"""Controls on another scale than the training data are told before they are predicted from."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from scvi_tahoe import TahoeST


def on_total(adata, share):
    """Cells as they would be with another total."""
    other = adata.copy()
    other.X = np.log1p(np.expm1(np.asarray(adata.X)) * share).astype(np.float32)
    return other


@pytest.fixture(params=["none", "cells"])
def model(request, make_model, train):
    return train(make_model(prior=request.param))


def asked(model, adata):
    label = adata.obs.loc[adata.obs["perturbation"] != "control", "perturbation"].iloc[0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.predict(adata, perturbations=[label], n_cells=8, progress=False)
    return [
        str(w.message) for w in caught if "log1p expression of those that the model was trained on" in str(w.message)
    ]


def test_a_tenth_of_the_total_is_told(model, screen):
    (message,) = asked(model, on_total(screen, 0.1))
    assert "normalised to another total" in message
    assert "sc.pp.normalize_total" in message


def test_ten_times_the_total_is_told(model, screen):
    assert len(asked(model, on_total(screen, 10.0))) == 1


def test_the_same_total_is_not(model, screen):
    assert not asked(model, screen.copy())
    assert not asked(model, on_total(screen, 0.8))
    shuffled = screen[:, screen.var_names[::-1]].copy()
    assert not asked(model, shuffled)


def test_a_model_that_knows_no_controls_says_nothing(make_model, train, screen, tmp_path):
    train(make_model(prior="none")).save(tmp_path / "model")
    assert not asked(TahoeST.load(tmp_path / "model", False), on_total(screen, 0.1))
