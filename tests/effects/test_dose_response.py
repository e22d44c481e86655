"""Hill curves recover the truth, and say when doses do not determine it."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_tahoe.effects import dose_response, hill

DOSES = np.array([0.01, 0.1, 1.0, 10.0, 100.0])


def curves(n_genes, noise, seed=0):
    rng = np.random.default_rng(seed)
    emax = rng.uniform(0.5, 2, n_genes) * rng.choice([-1, 1], n_genes)
    ec50, slope = 10 ** rng.uniform(-1, 1, n_genes), np.exp(rng.normal(0, 0.3, n_genes))
    changes = np.stack([hill(dose, emax, ec50, slope) for dose in DOSES])
    return changes + rng.normal(0, noise, changes.shape), emax, ec50, slope


@pytest.mark.parametrize(
    ("noise", "knows_sd"),
    [(0.02, True), (0.05, True), (0.05, False)],
    ids=["little noise, sd given", "sd given", "sd not given"],
)
def test_five_doses_give_the_ec50_within_a_factor_of_one_and_a_half_and_honest_intervals(table_of, noise, knows_sd):
    changes, emax, ec50, slope = curves(300, noise)
    effects = table_of(changes, sd=noise if knows_sd else None, drug=["A"] * 5, dose=DOSES)
    fits = dose_response(effects, effects.var_names, perturbation_key="drug", dose_key="dose")
    assert (np.abs(np.log(fits["ec50"] / ec50)) < np.log(1.5)).mean() > 0.8
    for name, truth in (("ec50", ec50), ("emax", emax), ("slope", slope)):
        covered = ((fits[f"{name}_low"] <= truth) & (truth <= fits[f"{name}_high"])).mean()
        assert 0.85 < covered < 0.99
    assert (np.sign(fits["emax"]) == np.sign(emax)).all()


def test_a_gene_that_does_not_respond_is_not_said_to(table_of):
    changes = np.random.default_rng(0).normal(0, 0.05, (5, 200))
    effects = table_of(changes, sd=0.05, drug=["A"] * 5, dose=DOSES)
    assert dose_response(effects, effects.var_names, perturbation_key="drug", dose_key="dose")["responds"].mean() < 0.1


def test_an_ec50_beyond_the_doses_has_no_upper_end(table_of):
    changes = hill(DOSES, 1.0, 1000.0, 1.0)[:, None]
    effects = table_of(changes, sd=0.02, drug=["A"] * 5, dose=DOSES)
    fit = dose_response(effects, ["gene_0"], perturbation_key="drug", dose_key="dose").iloc[0]
    assert np.isinf(fit["ec50_high"])


def test_perturbations_and_contexts_are_fitted_apart_and_few_doses_left_out(table_of):
    few = DOSES[:3]
    changes = np.concatenate([hill(DOSES, 1, 1, 1), hill(DOSES, 2, 1, 1), hill(few, 1, 1, 1)])[:, None]
    effects = table_of(
        changes, drug=["A"] * 10 + ["B"] * 3, line=["x"] * 5 + ["y"] * 8, dose=np.concatenate([DOSES, DOSES, few])
    )
    fits = dose_response(effects, ["gene_0"], perturbation_key="drug", dose_key="dose", context_key="line")
    assert fits[["drug", "line"]].to_numpy().tolist() == [["A", "x"], ["A", "y"]]
    assert fits["emax"].tolist() == pytest.approx([1, 2], rel=0.05)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        pytest.param({"genes": ["MDM2"]}, KeyError, "MDM2", id="unknown gene"),
        pytest.param({"dose_key": "amount"}, KeyError, "amount", id="unknown column"),
        pytest.param({"dose_key": None}, ValueError, "made without a dose_key", id="no dose column"),
        pytest.param({"rows": slice(0, 3)}, ValueError, "4 doses", id="three doses"),
    ],
)
def test_bad_input_is_refused(table_of, given, error, says):
    effects = table_of(curves(2, 0)[0], drug=["A"] * 5, dose=DOSES)[given.pop("rows", slice(None))].copy()
    options = {"genes": ["gene_0"], "perturbation_key": "drug", "dose_key": "dose"} | given
    with pytest.raises(error, match=says):
        dose_response(effects, options.pop("genes"), **options)
