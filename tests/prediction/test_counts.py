"""Counts from predictions: the library sizes of the controls, the predicted means, the spread of real cells."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
import scipy.sparse as sp

from scvi_tahoe.data import Condition, ConditionRequest
from scvi_tahoe.datasets import papalexi_few_shot
from scvi_tahoe.evaluate import EvaluationReference, Rules2026, submission
from scvi_tahoe.prediction._counts import ControlCounts, counts_of_prediction
from scvi_tahoe.prediction._request import PredictionPlan

BRIEF = {"max_steps": 20, "validate_every": 20, "progress": False}


@pytest.fixture(scope="module")
def task():
    return papalexi_few_shot()


@pytest.fixture(scope="module")
def models(task):
    """One model that starts from control cells, and one that starts from cells of other contexts."""
    from scvi_tahoe import TahoeST

    found = {}
    for prior in ("none", "cells", "response"):
        train = task.train.copy()
        TahoeST.setup_anndata(
            train, perturbation_key=task.perturbation_key, control=task.control, context_key=task.context_key
        )
        found[prior] = TahoeST(train, prior=prior, size={"hidden": 32, "n_layers": 2, "intermediate": 64, "n_heads": 2})
        found[prior].train(**BRIEF)
    return found


def predict(model, task, **options):
    options = {"perturbations": ["IFNGR1", "MYC"], "contexts": [task.context], "output": "counts", **options}
    return model.predict(task.held_out, progress=False, **options)


def reference_of(adata, task, **options):
    keys = {"perturbation_key": task.perturbation_key, "control": task.control, "context_key": task.context_key}
    return EvaluationReference.from_adata(adata, ceiling=False, **keys, **options)


def of_label(adata, task, label, layer=None):
    cells = adata[(adata.obs[task.perturbation_key] == label).to_numpy()]
    return (cells.X if layer is None else cells.layers[layer]).toarray().astype(float)


@pytest.mark.parametrize("prior", ["none", "cells", "response"])
def test_counts_have_the_sizes_means_and_dispersions_of_observed_cells(models, task, prior):
    predicted = predict(models[prior], task, perturbations=None, counts_layer="counts")
    assert sp.issparse(predicted.X)
    assert predicted.X.dtype == np.int32
    controls = of_label(task.held_out, task, task.control, "counts").sum(axis=1)
    ratios = []
    for label in task.targets:
        mine, real = of_label(predicted, task, label), of_label(task.held_out, task, label, "counts")
        totals = np.sort(mine.sum(axis=1)), np.sort(controls)
        np.testing.assert_allclose(
            np.quantile(totals[0], [0.1, 0.5, 0.9]), np.quantile(totals[1], [0.1, 0.5, 0.9]), rtol=0.05
        )
        expressed = real.mean(axis=0) > 0.2
        fano, real_fano = ((x.var(axis=0) / x.mean(axis=0))[expressed] for x in (mine, real))
        mean = (mine.mean(axis=0) / mine.sum(axis=1).mean() * real.sum(axis=1).mean() / real.mean(axis=0))[expressed]
        ratios.append([np.median(mean), np.median(fano / real_fano)])
    means, fano = np.mean(ratios, axis=0)
    assert means == pytest.approx(1, abs=0.05)
    assert 0.9 < fano < 1.3  # a Poisson draw in the place of the rounding gives 1.7


def test_predicted_means_survive_the_sampling(models, task):
    counts, expression = (predict(models["none"], task, output=output) for output in ("counts", "expression"))
    totals = np.asarray(counts.X.sum(axis=1)).ravel()
    linear = np.expm1(expression.X)
    wanted = (linear / linear.sum(axis=1, keepdims=True) * totals[:, None]).mean(axis=0)
    found = np.asarray(counts.X.mean(axis=0)).ravel()
    np.testing.assert_allclose(found[wanted > 0.5], wanted[wanted > 0.5], rtol=0.05)
    assert counts.obs.equals(expression.obs)


def test_library_sizes_are_found_without_a_layer(models, task):
    named, found = (predict(models["none"], task, counts_layer=layer, n_cells=50) for layer in ("counts", None))
    assert (named.X != found.X).nnz == 0


def test_a_prediction_of_counts_does_not_depend_on_what_else_is_asked(models, task):
    both = predict(models["none"], task, n_cells=20)
    one = predict(models["none"], task, n_cells=20, perturbations=["MYC"])
    np.testing.assert_array_equal(of_label(both, task, "MYC"), of_label(one, task, "MYC"))


def test_means_are_drawn_from_a_poisson_and_cells_are_rounded():
    rng = np.random.default_rng(0)
    rate = rng.gamma(0.5, 2.0, 200)
    cells = rng.poisson(rate, (400, 200)).astype(float)
    controls = ControlCounts(cells.sum(axis=1), (cells == 0).mean(axis=1))
    normalised = np.log1p(cells / cells.sum(axis=1, keepdims=True) * 1e4).astype(np.float32)
    means = np.repeat(np.log1p(rate / rate.sum() * 1e4)[None], 400, axis=0).astype(np.float32)
    plan = PredictionPlan((Condition("a", "b"),), ("b",), (ConditionRequest(np.arange(400), 0, np.arange(400), (0,)),))
    rounded, sampling = counts_of_prediction(normalised, plan, controls)
    assert sampling == {"rounded": 1, "poisson": 0}
    np.testing.assert_array_equal(rounded.toarray(), cells)  # real cells come back as they were
    drawn, sampling = counts_of_prediction(means, plan, controls)
    assert sampling == {"rounded": 0, "poisson": 1}
    expressed = rate > 0.1
    fano = drawn.toarray()[:, expressed].var(axis=0) / drawn.toarray()[:, expressed].mean(axis=0)
    assert np.median(fano) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"counts_layer": "raw"}, r"'raw' is not in the data; there are the layers \['counts', 'corrected'\]"),
        ({"counts_layer": "corrected"}, "holds values that are no counts"),
        ({"counts_layer": "counts", "output": "expression"}, "is for output='counts'"),
        ({"control_layer": True}, "control_layer keeps log1p expression"),
    ],
)
def test_mistakes_are_told_before_anything_is_predicted(models, task, options, message):
    held_out = task.held_out.copy()
    held_out.layers["corrected"] = held_out.X.copy()
    options = {"output": "counts", "contexts": [task.context], **options}
    with pytest.raises(ValueError, match=message):
        models["none"].predict(held_out, progress=False, **options)


def test_expression_that_does_not_tell_its_counts_needs_the_layer(models, task):
    held_out = task.held_out.copy()
    noise = np.random.default_rng(0).normal(0, 0.05, held_out.X.data.shape)
    held_out.X.data = np.abs(held_out.X.data + noise).astype(np.float32)
    with pytest.raises(ValueError, match="counts_layer="):
        models["none"].predict(held_out, contexts=[task.context], output="counts", progress=False)


def test_the_submission_of_2026_is_made_of_predicted_counts(models, task, tmp_path):
    targets = ["IFNGR1", "MYC"]
    predicted = predict(models["none"], task, perturbations=targets, n_cells=7, counts_layer="counts")
    genes = list(predicted.var_names)
    path = submission(
        predicted,
        tmp_path / "file.h5ad",
        year=2026,
        genes=genes[::-1],
        perturbation_key=task.perturbation_key,
        context_key=task.context_key,
        control=task.control,
        rules=Rules2026(n_genes=len(genes), n_targets=2, n_contexts=1, cells_per_condition=7),
    )
    written = anndata.read_h5ad(path)
    assert list(written.var_names) == genes[::-1]
    assert written.obs["target_gene"].value_counts().to_dict() == dict.fromkeys(targets, 7)
    np.testing.assert_array_equal(np.sort(written.X.sum(axis=1), axis=0), np.sort(predicted.X.sum(axis=1), axis=0))


@pytest.mark.slow
def test_the_model_is_scored_by_the_rules_of_2026_from_its_own_counts(models, task):
    pytest.importorskip("cell_eval2")
    wanted = task.held_out.obs[task.perturbation_key].isin(["IFNGR1", "JAK2", "MYC", task.control])
    held_out = task.held_out[wanted.to_numpy()].copy()
    with pytest.raises(ValueError, match="counts_layer="):
        models["none"].evaluate(held_out, preset="vcc2026", progress=False)
    result = models["none"].evaluate(reference_of(held_out, task, layer="counts"), preset="vcc2026", baseline=None)
    assert result.vcc["year"] == 2026
    assert result.checks.loc["depth", "status"] == "ok"


def test_a_reference_made_once_is_predicted_and_scored_by_several_models(models, task):
    reference = reference_of(task.held_out, task, baseline_from=task.train)
    scores = [model.evaluate(reference, preset="quick", progress=False) for model in models.values()]
    for result in scores:
        assert list(result.per_perturbation.loc[task.context].index) == sorted(task.targets)
    assert scores[0].provenance["truth"] == scores[1].provenance["truth"]
    assert scores[0].summary.loc["mae", "value"] != scores[1].summary.loc["mae", "value"]
