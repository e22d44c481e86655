"""Mistakes that other tools let pass are errors or warnings here, before anything costly is computed."""

from __future__ import annotations

import warnings
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData, concat

from scvi_tahoe.datasets import norman_k562, simulate_screen
from scvi_tahoe.evaluate import (
    PREDICTION_RECORD,
    EvaluationReference,
    EvaluationWarning,
    GroupStatistics,
    RepresentationError,
    baseline_prediction,
    check_collapse,
    evaluate,
    likeness,
    mean_cosine,
)
from scvi_tahoe.evaluate._input_checks import CellProfile, check_scale, check_totals_spread
from scvi_tahoe.evaluate._prediction_checks import check_de_counts, check_statistics

ONE_SCALE = "scale of single conditions"


def rescaled(matrix, factor=10):
    """The same cells normalised to another total."""
    return np.log1p(factor * np.expm1(matrix))


def changed(adata, change):
    """The prediction with other values."""
    copy = adata.copy()
    copy.X = change(np.array(copy.X.toarray() if sp.issparse(copy.X) else copy.X, dtype=np.float32))
    return copy


def spoilt(value):
    def change(matrix):
        matrix[3, 5] = value
        return matrix

    return change


def check(result, name):
    return result.checks.loc[name, "status"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(np.log1p, "log1p was applied twice", id="double log"),
        pytest.param(rescaled, "another normalisation total", id="another total"),
        pytest.param(lambda x: rescaled(x, 0.1), "another normalisation total.* or train longer", id="shallower"),
        pytest.param(np.expm1, "largest value|log1p was not applied", id="no log"),
        pytest.param(lambda x: np.minimum(np.expm1(x), 14), "log1p was not applied", id="no log, small values"),
        pytest.param(lambda x: np.round(np.expm1(x)), "whole numbers", id="counts"),
        pytest.param(np.round, "whole numbers", id="rounded logarithms"),
        pytest.param(spoilt(np.nan), "NaN in cell 'predicted_3', gene", id="one NaN"),
        pytest.param(spoilt(np.inf), "infinite values", id="one infinite value"),
        pytest.param(spoilt(-0.1), "never negative", id="negative value"),
        pytest.param(lambda x: x - x.mean(axis=0), "never negative", id="scaled data or a delta"),
        pytest.param(spoilt(40.0), "largest value of the prediction is 40", id="outlier"),
        pytest.param(lambda x: sp.csr_matrix(spoilt(40.0)(x)), "'predicted_3', gene 'IFT46'", id="sparse outlier"),
        pytest.param(np.zeros_like, "zero everywhere", id="all zero"),
    ],
)
def test_values_on_another_scale_are_refused(predicted, reference, change, message):
    with pytest.raises(RepresentationError, match=message):
        evaluate(changed(predicted, change), reference)


def test_a_small_difference_of_totals_is_a_warning(predicted, reference):
    with pytest.warns(EvaluationWarning, match="another normalisation total"):
        evaluate(changed(predicted, lambda x: rescaled(x, 1.3)), reference, preset="quick")


@pytest.mark.parametrize(("factor", "status"), [(1.3, "ok"), (1.8, "warning"), (3.0, "error")])
def test_totals_that_differ_among_observed_cells_may_differ_more(factor, status):
    totals = np.random.default_rng(0).lognormal(5, 0.6, 300)
    observed, predicted = (CellProfile(t, t * 1e3, t / 1e3, np.zeros(300), 0.0) for t in (totals, factor * totals))
    assert check_scale(predicted, observed).status == status
    assert check_totals_spread(predicted, observed).status == "ok"


def test_tiny_negative_values_are_set_to_zero(scored, predicted, reference, quick):
    nearly = changed(predicted, lambda x: np.where(x == 0, -1e-6, x))
    result = scored(nearly, reference)
    assert check(result, "values of the prediction") == "note"
    np.testing.assert_allclose(result.summary["value"], quick.summary["value"], atol=1e-5)
    sparse = changed(predicted, sp.csr_matrix)  # stays as it is
    sparse.X.data[:10] = -1e-6
    before = sparse.X.copy()
    scored(sparse, reference)
    assert (sparse.X != before).nnz == 0


def test_errors_can_be_turned_into_warnings_or_off(predicted, reference):
    double = changed(predicted, np.log1p)
    with pytest.warns(EvaluationWarning, match="applied twice"):
        result = evaluate(double, reference, preset="quick", representation_check="warn")
    assert check(result, "scale") == "error"
    with warnings.catch_warnings():
        warnings.simplefilter("error", EvaluationWarning)
        evaluate(double, reference, preset="quick", representation_check="off")


def test_the_same_mistake_on_both_sides_is_reported(contexts):
    prediction, truth, keys, _ = contexts
    for change, found in ((np.log1p, "twice"), (lambda x: np.expm1(x) / 100, "never")):
        sides = [changed(adata, change) for adata in (prediction, truth)]
        with pytest.raises(RepresentationError, match=f"log1p was applied to the reference {found}"):
            evaluate(*sides, baseline=None, preset="quick", **keys)


@pytest.fixture(scope="module")
def contexts():
    """A screen of three contexts: prediction, truth, keys, and which predicted cells are of the smallest context."""
    screen = simulate_screen(3, 6, n_genes=80, n_cells=80, seed=3)
    odd = np.arange(screen.n_obs) % 2 == 1
    labels, small = screen.obs["perturbation"], screen.obs["context"] == "context_3"
    few = ~(small & labels.isin(["perturbation_3", "perturbation_4", "perturbation_5"]))
    prediction = changed(screen[odd & few & (labels != "control")], np.asarray)
    truth = changed(screen[(~odd & few) | (labels == "control")], np.asarray)
    keys = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}
    return prediction, truth, keys, (prediction.obs["context"] == "context_3").to_numpy()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(np.log1p, "log1p was applied twice", id="double log"),
        pytest.param(rescaled, "another normalisation total", id="another total"),
        pytest.param(np.round, "whole numbers", id="rounded logarithms"),
    ],
)
def test_one_context_on_another_scale_is_refused_by_name(scored, contexts, change, message):
    prediction, truth, keys, small = contexts
    bad = changed(prediction, lambda x: np.where(small[:, None], change(x), x))
    with pytest.raises(RepresentationError, match=f"in context 'context_3': .*{message}"):
        evaluate(bad, truth, baseline=None, preset="quick", **keys)
    assert not scored(prediction, truth, baseline=None, **keys).checks["status"].isin(["warning", "error"]).any()


def test_warnings_name_the_context_and_how_many_more_there_are(scored, contexts):
    prediction, truth, keys, small = contexts
    bad = changed(prediction, lambda x: np.where(small[:, None], x, np.roll(x, 1, axis=1)))
    message = scored(bad, truth, baseline=None, **keys).checks.loc["gene profile", "message"]
    assert message.startswith("in context 'context_1' and 1 more: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(np.log1p, "log1p was applied twice to the training data", id="double log"),
        pytest.param(rescaled, "median cell of the training data", id="another total"),
        pytest.param(lambda x: np.round(np.minimum(np.expm1(x), 14)), "of the training data are whole", id="counts"),
        pytest.param(spoilt(np.nan), "training data has NaN", id="one NaN"),
    ],
)
def test_training_data_on_another_scale_would_spoil_the_baselines(task, keys, predicted, change, message):
    with pytest.raises(RepresentationError, match=message):
        evaluate(predicted, task.held_out, train=changed(task.train, change), **keys)


def test_totals_of_other_contexts_may_differ_unless_normalised(scored, contexts):
    prediction, truth, keys, small = contexts
    here, there = truth.obs["context"] == "context_3", truth.obs["context"] == "context_1"
    train = changed(truth[there], lambda x: rescaled(x, 3))
    sides = [prediction[small].copy(), truth[here].copy()]
    with pytest.raises(RepresentationError, match="median cell of the training data"):
        evaluate(*sides, train=train, preset="quick", **keys)
    scored(*(side[:, :40].copy() for side in sides), train=train[:, :40].copy(), **keys)


def test_a_reference_of_counts_is_refused(task, keys, predicted):
    counts = task.held_out.copy()
    counts.X = counts.layers["counts"].minimum(14)
    with pytest.raises(RepresentationError, match="reference are whole numbers"):
        evaluate(predicted, counts, baseline=None, **keys)


# what the model was trained in


DECODER = {"genes_from": "decoder", "decoder_trained": True}


@pytest.mark.parametrize(
    ("record", "status", "message"),
    [
        pytest.param({"space": "embedding"}, "error", "holds embedding, and expression is scored", id="embedding"),
        pytest.param({"space": "delta"}, "error", "holds delta", id="delta"),
        pytest.param({"space": "counts"}, "error", "holds counts", id="counts"),
        pytest.param({"genes_from": "decoder"}, "error", "gene decoder was not trained", id="untrained decoder"),
        pytest.param({**DECODER, "decoder_weight": 1e-5}, "warning", "learned next to nothing", id="tiny weight"),
        pytest.param({**DECODER, "decoder_weight": 0.1}, "warning", "error is not known", id="trained decoder"),
    ],
)
def test_a_model_must_have_been_trained_to_give_genes(scored, predicted, reference, record, status, message):
    copy = predicted.copy()
    copy.uns[PREDICTION_RECORD] = record
    if status == "error":
        with pytest.raises(RepresentationError, match=message):
            evaluate(copy, reference)
    else:
        found = scored(copy, reference).checks.loc["space"]
        assert found["status"] == status
        assert message in found["message"]


# what predicted cells look like


def means(matrix, labels):
    """Every cell replaced by the mean of its condition: the right means, no spread."""
    table = {label: matrix[labels == label].mean(axis=0) for label in np.unique(labels)}
    return np.stack([table[label] for label in labels])


def some(change, *names):
    """Change the cells of these perturbations only."""
    return lambda matrix, labels: np.where(np.isin(labels, names)[:, None], change(matrix, labels), matrix)


def deep_and_shallow(matrix, labels):
    return np.log1p(np.expm1(matrix) * np.exp(np.random.default_rng(0).normal(0, 0.6, (len(matrix), 1))))


@pytest.mark.parametrize(
    ("change", "names", "text"),
    [
        pytest.param(deep_and_shallow, ["spread of totals"], "vary by", id="varying totals"),
        pytest.param(means, ["zeros", "spread of cells"], "", id="cells all alike"),
        pytest.param(some(means, "MYC", "JAK2"), ["spread of cells"], "2 of 12 perturbations", id="cells of two alike"),
        pytest.param(some(lambda x, _: np.log1p(x), "MYC"), [ONE_SCALE], "'MYC'", id="double log of one"),
        pytest.param(some(lambda x, _: rescaled(x), "MYC"), [ONE_SCALE], "'MYC'", id="other total of one"),
        pytest.param(some(lambda x, _: np.zeros_like(x), "MYC"), [ONE_SCALE], "'MYC'", id="no expression of one"),
        pytest.param(lambda x, _: np.roll(x, 1, axis=1), ["gene profile"], "", id="the next gene"),
        pytest.param(lambda x, _: np.roll(x, 57, axis=1), ["gene profile"], "", id="another gene"),
    ],
)
def test_suspicious_cells_are_reported(scored, task, predicted, reference, change, names, text):
    labels = predicted.obs[task.perturbation_key].to_numpy().astype(str)
    result = scored(changed(predicted, lambda x: change(x, labels)), reference)
    for name in names:
        assert check(result, name) == "warning"
        assert text in result.checks.loc[name, "message"]


def test_the_truth_in_the_place_of_the_prediction_is_reported(scored, task, keys, predicted):
    truth = task.held_out
    mixed = concat([predicted[predicted.obs["target_gene"] != "MYC"], truth[truth.obs["target_gene"] == "MYC"]])
    result = scored(mixed, truth, baseline=None, **keys)
    assert check(result, "copies of the truth") == "warning"
    assert "of 1 of 12 perturbations" in result.checks.loc["copies of the truth", "message"]


def test_dense_predictions_are_reported(task, keys, reference):
    prediction = baseline_prediction("vcc2025_mean", task.held_out, task.train, **keys)
    with pytest.warns(EvaluationWarning, match="times as many differentially expressed genes"):
        result = evaluate(prediction, reference, preset="vcc2025", baselines=False)
    assert check(result, "zeros") == check(result, "number of DE genes") == "warning"


def test_one_effect_for_all_perturbations_is_reported(scored, task, keys, reference):
    result = scored(baseline_prediction("train_mean", task.held_out, task.train, **keys), reference)
    assert check(result, "mode collapse") == "warning"


def test_inflated_effects_are_reported(scored, task, predicted, reference):
    control = task.held_out[task.held_out.obs[task.perturbation_key] == task.control].X.mean(axis=0)
    inflated = changed(predicted, lambda x: np.maximum(x + 5 * (x.mean(axis=0) - np.asarray(control)), 0))
    result = scored(inflated, reference, representation_check="off")
    assert check(result, "effect size") == "warning"


@pytest.mark.parametrize(("strength", "status"), [(0.7, "ok"), (0.2, "warning"), (5.0, "warning")])
def test_predicted_effects_need_not_have_the_noise_of_observed_ones(strength, status):
    rng = np.random.default_rng(0)
    names, genes, n_cells = tuple(f"P{i}" for i in range(6)), 300, np.full(6, 20)
    effects = 0.06 * rng.normal(size=(6, genes))  # much shorter than the noise of 20 cells

    def side(mean):
        ones = np.ones((6, genes))
        of_controls = (np.full(genes, 3.0), ones[0], 0 * ones[0], 1000)
        return GroupStatistics(names, 3 + mean, ones, 0 * ones, n_cells, *of_controls)

    observed = side(effects + rng.normal(size=effects.shape) / np.sqrt(20))
    found = check_statistics(side(strength * effects * 2), observed, np.array(names), own_controls=False)
    assert {c.name: c.status for c in found}["effect size"] == status


def test_few_cells_are_reported(scored, predicted, reference, task):
    kept = predicted.obs.groupby(task.perturbation_key, observed=True).head(5).index
    assert check(scored(predicted[kept].copy(), reference), "number of cells") == "warning"


def test_shifted_controls_matter_and_are_reported_only_if_used(scored, task, predicted, reference, quick):
    controls = task.held_out[task.held_out.obs[task.perturbation_key] == task.control].copy()
    controls.X = np.asarray(controls.X.todense()) + np.where(np.arange(controls.n_vars) % 5 == 0, 0.5, 0)
    both = concat([predicted, controls], index_unique="-")
    pd.testing.assert_frame_equal(scored(both, reference).per_perturbation, quick.per_perturbation)
    own = scored(both, reference, control_cells="predicted")
    assert check(own, "controls") == "warning"
    assert own.summary.loc["pearson_delta", "value"] < quick.summary.loc["pearson_delta", "value"]


def test_a_good_prediction_raises_no_alarm(result, quick):
    assert not result.checks["status"].isin(["warning", "error"]).any()
    assert "42% of the perturbations" in quick.checks.loc["target genes", "message"]
    for name in ("leakage of conditions", "leakage of cells"):  # controls may be in both
        assert check(quick, name) == "ok"


def test_the_mean_cosine_is_that_of_pairs_of_perturbations():
    deltas = np.random.default_rng(0).normal(size=(5, 20))
    pairs = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in permutations(deltas, 2)]
    assert mean_cosine(deltas) == pytest.approx(np.mean(pairs))
    assert mean_cosine(np.concatenate([deltas, np.zeros((2, 20))])) == pytest.approx(np.mean(pairs))
    assert np.isnan(mean_cosine(deltas[:1]))


def test_deltas_that_are_more_alike_than_observed_ones_are_a_warning():
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=(1, 200)), rng.normal(size=(6, 200))
    observed = mean_cosine(own)
    for deltas, of in ((own, observed), (0.3 * shared + own, observed), (0 * own, 0.1), (shared + own, np.nan)):
        assert check_collapse(deltas, of).status == "ok"  # the second has a mean cosine of 0.08
    found = check_collapse(shared + own, observed, of="seen")
    assert found.status == "warning"
    assert "mean cosine of 0.5" in found.message
    assert "(seen: " in found.message


def test_effects_that_only_the_noise_of_observed_cells_tells_apart_are_no_collapse():
    rng = np.random.default_rng(0)
    true = 0.1 * rng.normal(size=200) + 0.02 * rng.normal(size=(8, 200))
    noise = np.full(8, 200 * 0.15**2)
    observed = likeness(true + 0.15 * rng.normal(size=true.shape), noise)
    assert check_collapse(true, observed.cosine).status == "warning"  # 0.9 where 0.3 was observed
    assert check_collapse(true, observed.cosine, largest=observed.largest, noise=observed.noise).status == "ok"
    apart = likeness(true + 0.15 * rng.normal(size=true.shape) * 10, noise)  # beyond their noise
    assert check_collapse(true, apart.cosine, largest=apart.largest, noise=apart.noise).status == "warning"


@pytest.mark.parametrize(
    ("ratio", "status", "message"),
    [
        pytest.param(9.0, "warning", "spread too little", id="copies of a mean"),
        pytest.param(0.05, "note", "effects are weaker", id="weak effects"),
        pytest.param(0.9, "ok", "", id="as observed"),
    ],
)
def test_the_number_of_predicted_de_genes_says_what_is_off(ratio, status, message):
    scores = pd.DataFrame({"n_de_observed": [10, 20, 0], "n_de_predicted": [10 * ratio, 20 * ratio, 3]})
    found = {c.name: c for c in check_de_counts(scores)}["number of DE genes"]
    assert found.status == status
    assert message in found.message


# what is compared with what


def relabelled(adata, labels):
    copy = adata.copy()
    copy.obs["target_gene"] = labels
    return copy


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param(lambda a: AnnData(a.X[:, :9] - 1, a.obs), ValueError, "looks like a cell embedding", id="latent"),
        pytest.param(lambda a: a[:, :200].copy(), ValueError, "lacks 99 of the 299 genes", id="fewer genes"),
        pytest.param(lambda a: concat([a, a[:, :1]], axis=1, merge="same"), ValueError, "more than once", id="twice"),
        pytest.param(lambda a: relabelled(a, "new"), ValueError, "share no condition.*new.*ATF2", id="other labels"),
        pytest.param(lambda a: relabelled(a, a.obs["target_gene"][1:]), ValueError, "1 of .* no label", id="no label"),
        pytest.param(lambda a: AnnData(a.X, None, a.var), KeyError, "no obs column 'target_gene'", id="no labels"),
        pytest.param(lambda a: AnnData(obs=a.obs, var=a.var), ValueError, "X is None", id="no expression"),
        pytest.param(lambda a: a[:0].copy(), ValueError, "has no cells", id="no cells"),
        pytest.param(lambda a: a.to_df(), TypeError, "allowed is AnnData", id="a DataFrame"),
    ],
)
def test_a_prediction_that_cannot_be_compared_is_refused(predicted, reference, change, error, message):
    with pytest.raises(error, match=message):
        evaluate(change(predicted), reference)


def test_genes_in_another_order_are_brought_back(scored, predicted, reference, quick):
    shuffled = predicted[:, np.random.default_rng(0).permutation(predicted.n_vars)]
    result = scored(shuffled, reference)
    assert check(result, "genes") == "note"
    pd.testing.assert_frame_equal(result.per_perturbation, quick.per_perturbation)


def without_myc(adata):
    return adata[adata.obs["target_gene"] != "MYC"].copy()


@pytest.mark.parametrize(
    ("change", "truth", "name", "status", "n_scored"),
    [
        pytest.param(without_myc, AnnData.copy, "conditions without a prediction", "warning", 11, id="fewer"),
        pytest.param(AnnData.copy, without_myc, "predictions without a truth", "note", 11, id="more"),
        pytest.param(AnnData.copy, lambda a: a[:, :200].copy(), "genes", "note", 12, id="more genes"),
    ],
)
def test_only_what_both_sides_have_is_scored(scored, predicted, task, keys, change, truth, name, status, n_scored):
    result = scored(change(predicted), truth(task.held_out), baseline=None, **keys)
    assert check(result, name) == status
    assert len(result.per_perturbation) == n_scored


def test_labels_and_values_of_unusual_kinds_are_fine(scored, task, keys, predicted, quick):
    # unused categories, integer labels, views and float16: none of these may be passed to cell-eval as they are
    truth = task.held_out.copy()
    codes = {p: i for i, p in enumerate(sorted(truth.obs[task.perturbation_key].unique()))}
    prediction = predicted.copy()
    for adata in (truth, prediction):
        adata.obs[task.perturbation_key] = adata.obs[task.perturbation_key].map(codes).astype(int)
    prediction.X = prediction.X.astype(np.float16)
    numbered = keys | {"control": str(codes[task.control])}
    result = scored(prediction[np.arange(prediction.n_obs)], truth, baseline=None, **numbered)
    assert abs(result.summary.loc["mae", "value"] - quick.summary.loc["mae", "value"]) < 1e-4


def test_explicit_zeros_are_fine(predicted, reference, result):
    sparse = predicted.copy()
    sparse.X = sp.csr_matrix(np.where(predicted.X == 0, 1, predicted.X))
    sparse.X.data[np.asarray(predicted.X).ravel() == 0] = 0
    again = evaluate(sparse, reference, preset="vcc2025", baselines=False).per_perturbation
    pd.testing.assert_frame_equal(again, result.per_perturbation[again.columns], rtol=1e-5)


def test_a_reference_needs_its_layer_and_controls_in_every_context(task, keys):
    controls = task.held_out[task.held_out.obs[task.perturbation_key] == task.control].copy()
    for adata, change, error, message in (
        (task.held_out, {"layer": "raw"}, KeyError, "no layer 'raw'.*counts"),
        (task.held_out, {"control": "nothing"}, ValueError, "no control cells labelled 'nothing'"),
        (controls, {}, ValueError, "nothing to score"),
    ):
        with pytest.raises(error, match=message):
            EvaluationReference.from_adata(adata, **{**keys, **change})


# leakage


def test_held_out_conditions_in_the_training_data_are_refused(scored, task, keys, predicted):
    leaky = concat([task.train, task.held_out[task.held_out.obs[task.perturbation_key] == "MYC"]])
    with pytest.raises(RepresentationError, match="1 of 12 held-out conditions are in the training data"):
        evaluate(predicted, task.held_out, train=leaky, **keys)
    result = scored(predicted, task.held_out, train=leaky, allow_train=True, **keys)
    assert "leakage of conditions" not in result.checks.index


@pytest.fixture
def leaky(task):
    """Training data with the cells of a held-out perturbation under another name."""
    hidden = task.held_out[task.held_out.obs[task.perturbation_key] == "JAK2"].copy()
    hidden.obs[task.perturbation_key] = "another name"
    return concat([task.train, hidden])


def test_held_out_cells_under_another_label_are_found(task, keys, predicted, leaky):
    with pytest.raises(RepresentationError, match="held-out perturbed cells occur in the training data"):
        evaluate(predicted, task.held_out, train=leaky, **keys)


def test_leaked_cells_are_found_in_another_precision(task, keys, leaky):
    # what was saved as float32 is not bit by bit what is held in float64
    truth = task.held_out.copy()
    for adata, dtype in ((leaky, np.float64), (truth, np.float32)):
        counts = adata.layers["counts"].toarray().astype(np.float64)
        adata.X = np.log1p(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * 300).astype(dtype)
    reference = EvaluationReference.from_adata(truth, baseline_from=leaky, **keys)
    assert [found.status for found in reference.leakage_checks] == ["ok", "error"]


def test_two_cell_types_under_one_label_are_reported():
    screen = norman_k562(all_lines=True)
    options = {"perturbation_key": "perturbation", "control": "control", "ceiling": False}
    mixed = EvaluationReference.from_adata(screen, **options)
    with pytest.warns(EvaluationWarning, match="context_key='cell_type'"):
        result = evaluate(screen.copy(), mixed, preset="quick", baseline=None)
    assert result.checks.loc["contexts", "value"] > 5
    named = EvaluationReference.from_adata(screen, context_key="cell_type", **options)
    assert [check.status for check in named.context_checks] == ["ok"]


def test_populations_that_differ_by_sampling_alone_are_no_contexts(task, keys):
    held_out = task.held_out.copy()
    held_out.obs["donor"] = np.where(np.arange(held_out.n_obs) % 2, "first", "second")
    reference = EvaluationReference.from_adata(held_out, **{**keys, "context_key": None})
    assert [check.status for check in reference.context_checks] == ["ok"]
