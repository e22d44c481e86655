"""Controls on another scale than the training data are refused before they are predicted from."""

from __future__ import annotations

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


def predict(model, adata, **options):
    return model.predict(adata, perturbations=["perturbation_1"], n_cells=8, progress=False, **options)


OTHERS = {
    "a tenth of the total": (lambda a: on_total(a, 0.1), True),
    "ten times the total": (lambda a: on_total(a, 10.0), True),
    "the same total": (lambda a: a.copy(), False),
    "nearly the same total": (lambda a: on_total(a, 0.8), False),
    "genes in another order": (lambda a: a[:, a.var_names[::-1]].copy(), False),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_total_is_refused(other, model, screen):
    change, is_refused = OTHERS[other]
    adata = change(screen)
    if not is_refused:
        assert predict(model, adata).n_obs == 16
        return
    with pytest.raises(ValueError, match=r"normalised to another total.*sc\.pp\.normalize_total.*check_scale=False"):
        predict(model, adata)
    assert predict(model, adata, check_scale=False).n_obs == 16


def test_a_model_that_knows_no_controls_says_nothing(make_model, train, screen, tmp_path):
    train(make_model(prior="none")).save(tmp_path / "model")
    assert predict(TahoeST.load(tmp_path / "model", False), on_total(screen, 0.1)).n_obs == 16
