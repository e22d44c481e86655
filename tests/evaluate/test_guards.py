"""Mistakes that other tools let pass are errors or warnings here, before anything costly is computed."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scvi_tahoe.datasets import norman_k562, simulate_screen
from scvi_tahoe.evaluate import (
    PREDICTION_RECORD,
    EvaluationReference,
    EvaluationWarning,
    RepresentationError,
    evaluate,
)


def changed(adata, change):
    """The prediction with other values."""
    copy = adata.copy()
    copy.X = change(np.asarray(copy.X, dtype=np.float32).copy())
    return copy


def spoilt(value):
    def change(matrix):
        matrix[3, 5] = value
        return matrix

    return change


def check(result, name):
    return result.checks.loc[name, "status"]


def scored(prediction, reference, **kwargs):
    """Result with the warnings kept in its checks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvaluationWarning)
        return evaluate(prediction, reference, preset="quick", **kwargs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(np.log1p, "log1p was applied twice", id="double log"),
        pytest.param(lambda x: np.log1p(10 * np.expm1(x)), "another normalisation total", id="another total"),
        pytest.param(lambda x: np.log1p(np.expm1(x) / 5), "another normalisation total", id="shallower"),
        pytest.param(np.expm1, "largest value|log1p was not applied", id="no log"),
        pytest.param(lambda x: np.minimum(np.expm1(x), 14), "log1p was not applied", id="no log, small values"),
        pytest.param(lambda x: np.round(np.expm1(x)), "whole numbers", id="counts"),
        pytest.param(np.round, "whole numbers", id="rounded logarithms"),
        pytest.param(spoilt(np.nan), "NaN in cell 'predicted_3', gene", id="one NaN"),
        pytest.param(spoilt(np.inf), "infinite values", id="one infinite value"),
        pytest.param(spoilt(-0.1), "never negative", id="negative value"),
        pytest.param(lambda x: x - x.mean(axis=0), "never negative", id="scaled data or a delta"),
        pytest.param(spoilt(40.0), "largest value of the prediction is 40", id="outlier"),
        pytest.param(np.zeros_like, "zero everywhere", id="all zero"),
    ],
)
def test_values_on_another_scale_are_refused(predicted, reference, change, message):
    with pytest.raises(RepresentationError, match=message):
        evaluate(changed(predicted, change), reference)


def test_the_place_of_a_bad_value_is_named_in_sparse_data_too(predicted, reference):
    bad = changed(predicted, spoilt(40.0))
    bad.X = sp.csr_matrix(bad.X)
    with pytest.raises(RepresentationError, match=f"cell 'predicted_3', gene '{predicted.var_names[5]}'"):
        evaluate(bad, reference)


def test_a_small_difference_of_totals_is_a_warning(predicted, reference):
    with pytest.warns(EvaluationWarning, match="another normalisation total"):
        evaluate(changed(predicted, lambda x: np.log1p(1.3 * np.expm1(x))), reference, preset="quick")


def test_tiny_negative_values_are_set_to_zero(predicted, reference, quick):
    nearly = changed(predicted, lambda x: np.where(x == 0, -1e-6, x))
    result = scored(nearly, reference)
    assert check(result, "values of the prediction") == "note"
    np.testing.assert_allclose(result.summary["value"], quick.summary["value"], atol=1e-5)


def test_tiny_negative_values_in_sparse_data_leave_the_input_as_it_is(predicted, reference):
    sparse = predicted.copy()
    sparse.X = sp.csr_matrix(sparse.X)
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


def test_an_unknown_policy_is_refused(predicted, reference):
    with pytest.raises(ValueError, match='"error", "warn" or "off"'):
        evaluate(predicted, reference, representation_check="maybe")


@pytest.mark.parametrize(
    ("change", "found"), [(np.log1p, "twice"), (lambda x: np.expm1(x) / 100, "never")], ids=["twice", "never"]
)
def test_the_same_mistake_on_both_sides_is_reported(contexts, change, found):
    prediction, truth, keys, _ = contexts
    sides = [changed(adata, change) for adata in (prediction, truth)]
    with pytest.raises(RepresentationError, match=f"log1p was applied to the reference {found}"):
        evaluate(*sides, baseline=None, preset="quick", **keys)


def test_the_truth_in_the_place_of_the_prediction_is_reported(task, keys, predicted):
    truth = task.held_out
    mixed = anndata.concat([predicted[predicted.obs["target_gene"] != "MYC"], truth[truth.obs["target_gene"] == "MYC"]])
    result = scored(mixed, truth, baseline=None, **keys)
    assert check(result, "copies of the truth") == "warning"
    assert "of 1 of 12 perturbations" in result.checks.loc["copies of the truth", "message"]


@pytest.fixture(scope="module")
def contexts():
    """A screen of three contexts: prediction, truth, keys, and which predicted cells are of the smallest context."""
    screen = simulate_screen(3, 6, n_genes=80, n_cells=80, seed=3)
    odd = np.arange(screen.n_obs) % 2 == 1
    few = ~(
        (screen.obs["context"] == "context_3") & screen.obs["perturbation"].isin([f"perturbation_{i}" for i in "345"])
    )
    control = screen.obs["perturbation"] == "control"
    prediction, truth = screen[odd & few & ~control].copy(), screen[(~odd & few) | control].copy()
    prediction.X, truth.X = prediction.X.toarray(), truth.X.toarray()
    keys = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}
    return prediction, truth, keys, (prediction.obs["context"] == "context_3").to_numpy()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(np.log1p, "log1p was applied twice", id="double log"),
        pytest.param(lambda x: np.log1p(10 * np.expm1(x)), "another normalisation total", id="another total"),
        pytest.param(np.round, "whole numbers", id="rounded logarithms"),
    ],
)
def test_one_context_on_another_scale_is_refused_by_name(contexts, change, message):
    prediction, truth, keys, small = contexts
    bad = changed(prediction, lambda x: np.where(small[:, None], change(x), x))
    with pytest.raises(RepresentationError, match=f"in context 'context_3': .*{message}"):
        evaluate(bad, truth, baseline=None, preset="quick", **keys)
    assert not scored(prediction, truth, baseline=None, **keys).checks["status"].isin(["warning", "error"]).any()


def test_warnings_name_the_context_and_how_many_more_there_are(contexts):
    prediction, truth, keys, small = contexts
    bad = changed(prediction, lambda x: np.where(small[:, None], x, np.roll(x, 1, axis=1)))
    message = scored(bad, truth, baseline=None, **keys).checks.loc["gene profile", "message"]
    assert message.startswith("in context 'context_1' and 1 more: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(np.log1p, "log1p was applied twice to the training data", id="double log"),
        pytest.param(lambda x: np.log1p(10 * np.expm1(x)), "median cell of the training data", id="another total"),
        pytest.param(lambda x: np.round(np.minimum(np.expm1(x), 14)), "of the training data are whole", id="counts"),
        pytest.param(spoilt(np.nan), "training data has NaN", id="one NaN"),
    ],
)
def test_training_data_on_another_scale_would_spoil_the_baselines(task, keys, predicted, change, message):
    train = task.train.copy()
    train.X = train.X.toarray()
    with pytest.raises(RepresentationError, match=message):
        evaluate(predicted, task.held_out, train=changed(train, change), **keys)


@pytest.mark.parametrize("normalised", [True, False])
def test_totals_of_other_contexts_may_differ_unless_cells_are_normalised(contexts, normalised):
    prediction, truth, keys, small = contexts
    here, there = truth.obs["context"] == "context_3", truth.obs["context"] == "context_1"
    train = changed(truth[there].copy(), lambda x: np.log1p(3 * np.expm1(x)))
    genes = slice(None) if normalised else slice(0, 40)
    sides = [adata[:, genes].copy() for adata in (prediction[small], truth[here], train)]
    options = {"train": sides[2], "preset": "quick", **keys}
    if not normalised:
        scored(*sides[:2], **{k: v for k, v in options.items() if k != "preset"})
        return
    with pytest.raises(RepresentationError, match="median cell of the training data"):
        evaluate(*sides[:2], **options)


def test_a_reference_of_counts_is_refused(task, keys, predicted):
    with pytest.raises(RepresentationError, match="reference are whole numbers"):
        evaluate(predicted, counts_in_x(task.held_out), baseline=None, **keys)


def counts_in_x(adata):
    counts = adata.copy()
    counts.X = counts.layers["counts"]
    counts.X = counts.X.minimum(14)
    return counts


# what the model was trained in


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"space": "embedding"}, "holds embedding, and expression is scored"),
        ({"space": "delta"}, "holds delta"),
        ({"space": "counts"}, "holds counts"),
        ({"genes_from": "decoder", "decoder_trained": False}, "gene decoder was not trained"),
    ],
)
def test_a_model_that_was_not_trained_to_give_genes_is_refused(predicted, reference, record, message):
    copy = predicted.copy()
    copy.uns[PREDICTION_RECORD] = record
    with pytest.raises(RepresentationError, match=message):
        evaluate(copy, reference)


def test_a_decoder_with_a_tiny_weight_is_a_warning(predicted, reference):
    copy = predicted.copy()
    copy.uns[PREDICTION_RECORD] = {"genes_from": "decoder", "decoder_trained": True, "decoder_weight": 1e-5}
    assert check(scored(copy, reference), "space") == "warning"
    copy.uns[PREDICTION_RECORD]["decoder_weight"] = 0.1
    assert check(scored(copy, reference), "space") == "ok"


def test_an_embedding_in_the_place_of_genes_is_reported(predicted, reference):
    embedding = anndata.AnnData(np.random.default_rng(0).normal(size=(predicted.n_obs, 20)), obs=predicted.obs)
    with pytest.raises(ValueError, match="looks like a cell embedding"):
        evaluate(embedding, reference)


# what predicted cells look like


def test_dense_predictions_are_reported(task, keys, reference):
    from scvi_tahoe.evaluate import baseline_prediction

    result = scored(baseline_prediction("context_transfer", task.held_out, task.train, **keys), reference)
    assert check(result, "zeros") == "warning"


def test_totals_that_vary_where_the_observed_ones_do_not_are_reported(predicted, reference):
    depth = np.exp(np.random.default_rng(0).normal(0, 0.6, (predicted.n_obs, 1))).astype(np.float32)
    result = scored(changed(predicted, lambda x: np.log1p(np.expm1(x) * depth)), reference)
    assert check(result, "spread of totals") == "warning"


def means(adata, key):
    """Every cell replaced by the mean of its condition: the right means, no spread."""
    matrix = np.asarray(adata.X)
    labels = adata.obs[key].astype(str).to_numpy()
    table = {label: matrix[labels == label].mean(axis=0) for label in np.unique(labels)}
    copy = adata.copy()
    copy.X = np.stack([table[label] for label in labels])
    return copy


def test_cells_that_are_all_alike_are_reported(task, predicted, reference):
    result = scored(means(predicted, task.perturbation_key), reference)
    assert check(result, "spread of cells") == "warning"
    assert check(result, "zeros") == "warning"


def test_one_effect_for_all_perturbations_is_reported(task, keys, reference):
    from scvi_tahoe.evaluate import baseline_prediction

    result = scored(baseline_prediction("train_mean", task.held_out, task.train, **keys), reference)
    assert check(result, "mode collapse") == "warning"


def test_inflated_effects_are_reported(task, predicted, reference):
    control = task.held_out[task.held_out.obs[task.perturbation_key] == task.control].X.mean(axis=0)
    inflated = changed(predicted, lambda x: np.maximum(x + 5 * (x.mean(axis=0) - np.asarray(control)), 0))
    result = scored(inflated, reference, representation_check="off")
    assert check(result, "effect size") == "warning"


def test_too_many_differentially_expressed_genes_are_reported(task, keys, reference):
    from scvi_tahoe.evaluate import baseline_prediction

    prediction = baseline_prediction("context_transfer", task.held_out, task.train, **keys)
    with pytest.warns(EvaluationWarning, match="times as many differentially expressed genes"):
        result = evaluate(prediction, reference, preset="vcc2025")
    assert check(result, "number of DE genes") == "warning"


def test_cells_of_some_conditions_that_are_all_alike_are_reported(task, predicted, reference):
    collapsed = means(predicted, task.perturbation_key)
    few = predicted.obs[task.perturbation_key].isin(["MYC", "JAK2"]).to_numpy()
    mixed = changed(predicted, lambda x: np.where(few[:, None], np.asarray(collapsed.X), x))
    result = scored(mixed, reference)
    assert check(result, "spread of cells") == "warning"
    assert "2 of 12 perturbations" in result.checks.loc["spread of cells", "message"]


@pytest.mark.parametrize("change", [np.log1p, lambda x: np.log1p(10 * np.expm1(x)), np.zeros_like])
def test_one_condition_on_another_scale_does_not_hide_among_the_others(task, predicted, reference, change):
    here = (predicted.obs[task.perturbation_key] == "MYC").to_numpy()
    result = scored(changed(predicted, lambda x: np.where(here[:, None], change(x), x)), reference)
    assert check(result, "scale of single conditions") == "warning"
    assert "'MYC'" in result.checks.loc["scale of single conditions", "message"]


@pytest.mark.parametrize("shift", [1, 57])
def test_values_under_the_names_of_other_genes_are_reported(predicted, reference, shift):
    result = scored(changed(predicted, lambda x: np.roll(x, shift, axis=1)), reference)
    assert check(result, "gene profile") == "warning"


def test_few_cells_are_reported(predicted, reference, task):
    kept = predicted.obs.groupby(task.perturbation_key, observed=True).head(5).index
    assert check(scored(predicted[kept].copy(), reference), "number of cells") == "warning"


def test_shifted_controls_do_not_matter_and_are_reported_when_they_would(task, predicted, reference, quick):
    controls = task.held_out[task.held_out.obs[task.perturbation_key] == task.control].copy()
    controls.X = np.asarray(controls.X.todense()) + np.where(np.arange(controls.n_vars) % 5 == 0, 0.5, 0)
    both = anndata.concat([predicted, controls])
    both.obs_names_make_unique()
    pd.testing.assert_frame_equal(scored(both, reference).per_perturbation, quick.per_perturbation)
    own = scored(both, reference, control_cells="predicted")
    assert check(own, "controls") == "warning"
    assert own.summary.loc["pearson_delta", "value"] < quick.summary.loc["pearson_delta", "value"]


def test_own_controls_must_be_there(predicted, reference):
    with pytest.raises(ValueError, match="needs control cells"):
        evaluate(predicted, reference, control_cells="predicted")


def test_the_share_of_perturbations_with_a_target_gene_is_reported(quick):
    assert "42% of the perturbations" in quick.checks.loc["target genes", "message"]


# what is compared with what


def test_genes_in_another_order_are_brought_back(predicted, reference, quick):
    shuffled = predicted[:, np.random.default_rng(0).permutation(predicted.n_vars)]
    result = scored(shuffled, reference)
    assert check(result, "genes") == "note"
    pd.testing.assert_frame_equal(result.per_perturbation, quick.per_perturbation)


def test_surplus_genes_are_left_out_and_missing_ones_refused(predicted, reference, task, keys):
    fewer = task.held_out[:, :200].copy()
    assert check(scored(predicted, fewer, baseline=None, **keys), "genes") == "note"
    with pytest.raises(ValueError, match="lacks 99 of the 299 genes"):
        evaluate(predicted[:, :200].copy(), reference)


def test_repeated_genes_are_refused(predicted, reference):
    twice = predicted.copy()
    twice.var_names = [twice.var_names[1], *twice.var_names[1:]]
    with pytest.raises(ValueError, match="occur more than once"):
        evaluate(twice, reference)


def test_conditions_without_a_prediction_are_reported_and_left_out(predicted, reference, task):
    fewer = predicted[predicted.obs[task.perturbation_key] != "MYC"].copy()
    result = scored(fewer, reference)
    assert check(result, "conditions without a prediction") == "warning"
    assert len(result.per_perturbation) == 11


def test_predictions_without_a_truth_are_left_out(predicted, task, keys):
    fewer = task.held_out[task.held_out.obs[task.perturbation_key] != "MYC"].copy()
    result = scored(predicted, fewer, baseline=None, **keys)
    assert check(result, "predictions without a truth") == "note"
    assert len(result.per_perturbation) == 11


def test_nothing_in_common_is_refused_with_both_lists(predicted, reference, task):
    other = predicted.copy()
    other.obs[task.perturbation_key] = "something else"
    with pytest.raises(ValueError, match="share no condition.*something else.*ATF2"):
        evaluate(other, reference)


def test_unused_categories_integer_labels_views_and_float16_are_fine(task, keys, predicted, quick):
    # none of these may be passed to cell-eval as they are
    truth = task.held_out.copy()
    codes = {p: i for i, p in enumerate(sorted(truth.obs[task.perturbation_key].unique()))}
    prediction = predicted.copy()
    for adata in (truth, prediction):
        adata.obs[task.perturbation_key] = adata.obs[task.perturbation_key].map(codes).astype(int)
    prediction.X = prediction.X.astype(np.float16)
    numbered = keys | {"control": str(codes[task.control])}
    result = scored(prediction[np.arange(prediction.n_obs)], truth, baseline=None, **numbered)
    difference = result.summary.loc["mae", "value"] - quick.summary.loc["mae", "value"]
    assert abs(difference) < 1e-4


def test_explicit_zeros_are_fine(predicted, reference, result):
    sparse = predicted.copy()
    sparse.X = sp.csr_matrix(np.where(predicted.X == 0, 1, predicted.X))
    sparse.X.data[np.asarray(predicted.X).ravel() == 0] = 0
    again = evaluate(sparse, reference, preset="vcc2025").per_perturbation
    pd.testing.assert_frame_equal(again, result.per_perturbation[again.columns], rtol=1e-5)


def test_cells_without_a_label_are_refused(predicted, reference, task):
    unlabelled = predicted.copy()
    unlabelled.obs[task.perturbation_key] = unlabelled.obs[task.perturbation_key].astype(object)
    unlabelled.obs.iloc[0, unlabelled.obs.columns.get_loc(task.perturbation_key)] = None
    with pytest.raises(ValueError, match="1 of .* cells of the prediction have no label"):
        evaluate(unlabelled, reference)


def test_missing_columns_layers_and_expression_are_named(predicted, reference, task, keys):
    bare = predicted.copy()
    del bare.obs[task.perturbation_key]
    with pytest.raises(KeyError, match="no obs column 'target_gene'"):
        evaluate(bare, reference)
    with pytest.raises(KeyError, match="no layer 'raw'.*counts"):
        EvaluationReference.from_adata(task.held_out, layer="raw", **keys)
    empty = anndata.AnnData(obs=predicted.obs, var=predicted.var)
    with pytest.raises(ValueError, match="X is None"):
        evaluate(empty, reference)
    with pytest.raises(ValueError, match="has no cells"):
        evaluate(predicted[:0].copy(), reference)
    with pytest.raises(TypeError, match="must be AnnData, got DataFrame"):
        evaluate(predicted.to_df(), reference)


def test_a_reference_needs_controls_in_every_context(task, keys):
    with pytest.raises(ValueError, match="no control cells labelled 'nothing'"):
        EvaluationReference.from_adata(task.held_out, **(keys | {"control": "nothing"}))
    controls = task.held_out[task.held_out.obs[task.perturbation_key] == task.control].copy()
    with pytest.raises(ValueError, match="nothing to score"):
        EvaluationReference.from_adata(controls, **keys)


# leakage


def test_held_out_conditions_in_the_training_data_are_refused(task, keys, predicted):
    leaky = anndata.concat([task.train, task.held_out[task.held_out.obs[task.perturbation_key] == "MYC"]])
    with pytest.raises(RepresentationError, match="1 of 12 held-out conditions are in the training data"):
        evaluate(predicted, task.held_out, train=leaky, **keys)
    result = scored(predicted, task.held_out, train=leaky, allow_train=True, **keys)
    assert "leakage of conditions" not in result.checks.index


def test_held_out_cells_under_another_label_are_found_in_the_training_data(task, keys, predicted):
    hidden = task.held_out[task.held_out.obs[task.perturbation_key] == "JAK2"].copy()
    hidden.obs[task.perturbation_key] = "another name"
    leaky = anndata.concat([task.train, hidden])
    with pytest.raises(RepresentationError, match="held-out perturbed cells occur in the training data"):
        evaluate(predicted, task.held_out, train=leaky, **keys)


def test_leaked_cells_are_found_in_another_precision(task, keys, predicted):
    hidden = task.held_out[task.held_out.obs[task.perturbation_key] == "JAK2"].copy()
    hidden.obs[task.perturbation_key] = "another name"
    leaky = anndata.concat([task.train, hidden])
    # what was saved as float32 is not bit by bit what is held in float64
    counts = leaky.layers["counts"].toarray().astype(np.float64)
    leaky.X = np.log1p(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * 300)
    truth = task.held_out.copy()
    counts = truth.layers["counts"].toarray().astype(np.float64)
    truth.X = np.log1p(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * 300).astype(np.float32)
    reference = EvaluationReference.from_adata(truth, baseline_from=leaky, **keys)
    assert [found.status for found in reference.leakage_checks] == ["ok", "error"]


def test_controls_may_be_in_both(quick):
    assert check(quick, "leakage of conditions") == "ok"
    assert check(quick, "leakage of cells") == "ok"


def test_a_good_prediction_raises_no_alarm(result):
    assert not result.checks["status"].isin(["warning", "error"]).any()


def test_two_cell_types_under_one_label_are_reported():
    screen = norman_k562(all_lines=True)
    mixed = EvaluationReference.from_adata(screen, perturbation_key="perturbation", control="control", ceiling=False)
    with pytest.warns(EvaluationWarning, match="context_key='cell_type'"):
        result = evaluate(screen.copy(), mixed, preset="quick", baseline=None)
    assert result.checks.loc["contexts", "value"] > 5
    named = EvaluationReference.from_adata(
        screen, perturbation_key="perturbation", control="control", context_key="cell_type", ceiling=False
    )
    assert [check.status for check in named.context_checks] == ["ok"]


def test_populations_that_differ_by_sampling_alone_are_no_contexts(task, keys):
    held_out = task.held_out.copy()
    held_out.obs["donor"] = np.where(np.arange(held_out.n_obs) % 2, "first", "second")
    reference = EvaluationReference.from_adata(held_out, **{**keys, "context_key": None})
    assert [check.status for check in reference.context_checks] == ["ok"]
