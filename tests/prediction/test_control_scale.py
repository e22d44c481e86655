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


OTHERS = {
    "a tenth of the total": (lambda a: on_total(a, 0.1), True),
    "ten times the total": (lambda a: on_total(a, 10.0), True),
    "the same total": (lambda a: a.copy(), False),
    "nearly the same total": (lambda a: on_total(a, 0.8), False),
    "genes in another order": (lambda a: a[:, a.var_names[::-1]].copy(), False),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_total_is_told(other, model, screen):
    change, is_told = OTHERS[other]
    messages = asked(model, change(screen))
    assert ["normalised to another total" in m and "sc.pp.normalize_total" in m for m in messages] == [True] * is_told


def test_a_model_that_knows_no_controls_says_nothing(make_model, train, screen, tmp_path):
    train(make_model(prior="none")).save(tmp_path / "model")
    assert not asked(TahoeST.load(tmp_path / "model", False), on_total(screen, 0.1))
