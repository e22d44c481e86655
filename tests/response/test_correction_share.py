"""How much of the network's correction of its prior is kept: what validates, and no more."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from scvi_tahoe import FractionSplit, HeldOutPerturbations, TahoeST
from scvi_tahoe.data import split_from_dict
from scvi_tahoe.datasets import simulate_screen
from scvi_tahoe.response._correction import fit_shrinkage
from scvi_tahoe.training import training_data

NOISY = {"max_steps": 80, "validate_every": 20, "batch_size": 4, "lr": 3e-3}


@pytest.fixture(scope="module")
def noisy():
    """A screen with so few cells that a network learns their noise."""
    return simulate_screen(3, 12, n_genes=60, n_cells=8, n_control_cells=40)


@pytest.fixture
def fresh(noisy, make_model):
    def fresh(prior="transfer"):
        return make_model(
            noisy.copy(),
            setup={"batch_key": None},
            prior=prior,
            size={"hidden": 16, "n_layers": 2, "intermediate": 32, "n_heads": 2},
        )

    return fresh


def predict(model, **options):
    return model.predict(n_cells=20, progress=False, **options).X


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape)


def test_the_share_is_that_part_of_the_correction_which_is_not_noise():
    prior, truth, wrong = noise(3, 20, 500)
    observed = prior + truth + 0.5 * np.random.default_rng(1).normal(size=truth.shape)
    assert fit_shrinkage(prior, prior + truth, observed) == pytest.approx(1, abs=0.02)
    assert fit_shrinkage(prior, prior + truth + wrong, observed) == pytest.approx(0.5, abs=0.02)
    assert fit_shrinkage(prior, prior + wrong, observed) == pytest.approx(0, abs=0.02)


def test_the_share_is_between_none_and_all_of_the_correction():
    prior, truth = noise(2, 20, 500)
    assert fit_shrinkage(prior, prior + truth, prior - truth) == 0
    assert fit_shrinkage(prior, prior + truth, prior + 2 * truth) == 1
    assert fit_shrinkage(prior, prior, prior + truth) == 1  # nothing to take a share of


def test_a_share_that_makes_the_mean_absolute_error_larger_is_not_taken():
    prior = np.zeros((1, 11))
    network, observed = prior + 1, prior + 1
    observed[0, 0] = -9  # one gene outweighs ten in squares
    assert fit_shrinkage(prior, network, observed) == 1


def test_training_keeps_the_share_that_validates_and_says_so(fresh, train):
    model, whole = train(fresh(), **NOISY), train(fresh(), shrink_correction=False, **NOISY)
    share = model.training_config_["correction_share"]
    assert 0 < share < 1
    assert whole.training_config_["correction_share"] is None
    prior = predict(model, output="prior")
    np.testing.assert_array_equal(prior, predict(whole, output="prior"))
    changed = (predict(whole) > 0) & (predict(model) > 0)
    np.testing.assert_allclose(
        (predict(model) - prior)[changed], share * (predict(whole) - prior)[changed], rtol=1e-3, atol=1e-5
    )
    for (name, a), (_, b) in zip(model.module.named_parameters(), whole.module.named_parameters(), strict=True):
        assert torch.equal(a, b) or name.startswith("network.head.project.layers.1")


def test_each_dose_is_compared_with_its_own_cells(noisy, make_model, train, monkeypatch):
    """The share is fitted on means that are taken here by hand, of the network as it is at that moment."""
    number = noisy.obs["perturbation"].astype(str).str.removeprefix("perturbation_")
    number = pd.to_numeric(number, errors="coerce") - 1
    adata, keys = noisy.copy(), ["context", "drug", "dose"]
    adata.obs["drug"] = (number // 3).map(dict(enumerate("PQRS"))).fillna("DMSO")
    adata.obs["dose"] = 10.0 ** (number % 3)
    asked = [(c, *p) for c in sorted(set(adata.obs["context"])) for p in (("P", 1.0), ("P", 100.0), ("R", 10.0))]
    model = make_model(
        adata, setup={"perturbation_key": "drug", "control": "DMSO", "dose_key": "dose", "batch_key": None},
        prior="transfer", size={"hidden": 16, "n_layers": 2, "intermediate": 32, "n_heads": 2},
    )  # fmt: skip
    shares = []

    def means(cells):
        rows = cells.obs.groupby(keys, observed=True).indices
        return np.stack([np.asarray(cells.X[rows[a]].mean(axis=0)).ravel() for a in asked])

    def fit(prior, network, observed):
        np.testing.assert_allclose(observed, means(adata), rtol=1e-5)
        for given, output in ((prior, "prior"), (network, "expression")):
            by_hand = model.predict(perturbations=["R@10", "P@1", "P@100"], n_cells=512, output=output, progress=False)
            np.testing.assert_allclose(given, means(by_hand), rtol=1e-4, atol=1e-6)
        shares.append(fit_shrinkage(prior, network, observed))
        return shares[-1]

    train(model, split=HeldOutPerturbations(validation=["P@1", "P@100", "R@10"]), shrink_correction=False)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.module.network.head.project.layers[-1].weight, std=0.1)  # a correction that is noise
    monkeypatch.setattr("scvi_tahoe.response._correction.fit_shrinkage", fit)
    screen = model._training_screen()
    run = model.plan_training(split=split_from_dict(model.split_))
    data = training_data(model._spec(), screen, run, model.module, model.prior)
    model.prior_ = data.prior  # which does not know the conditions that validate
    factor, verdict = model._shrink_correction(run, data, best_step=1)
    assert factor == shares[0] < 0.5
    assert verdict == f"Kept {factor:.2f} of the network's correction of its prior, by 9 held-out conditions."


def test_a_model_of_which_a_share_is_kept_is_the_same_saved_and_exported(fresh, train, noisy, register, tmp_path):
    model = train(fresh(), **NOISY)
    expected = predict(model)
    model.save(tmp_path / "saved")
    loaded = TahoeST.load(tmp_path / "saved", noisy.copy())
    assert loaded.training_config_["correction_share"] == model.training_config_["correction_share"] < 1
    np.testing.assert_array_equal(predict(loaded), expected)
    model.export(tmp_path / "exported")
    exported = TahoeST.from_pretrained(tmp_path / "exported", register(noisy.copy(), batch_key=None), check_scale=False)
    np.testing.assert_array_equal(predict(exported), expected)


def test_the_share_is_found_again_from_the_checkpoints_of_a_finished_run(fresh, train, tmp_path):
    whole = train(fresh(), shrink_correction=False, save_dir=tmp_path, **NOISY)
    again = train(fresh(), save_dir=tmp_path, resume_from=tmp_path / "last.ckpt", **NOISY)
    model = train(fresh(), **NOISY)
    assert again.training_config_["correction_share"] == model.training_config_["correction_share"] < 1
    assert whole.training_config_["correction_share"] is None
    np.testing.assert_array_equal(predict(again), predict(model))


@pytest.mark.parametrize(
    ("prior", "options"),
    [("none", {}), ("transfer", {"split": FractionSplit(validation=0.2)})],
    ids=["no prior", "conditions that train validate"],
)
def test_all_of_the_correction_is_kept_where_nothing_can_tell(prior, options, fresh, train):
    assert train(fresh(prior), **options).training_config_["correction_share"] is None
