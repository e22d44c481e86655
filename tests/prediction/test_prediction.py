"""Predictions: what comes back, what it depends on, and what is refused."""

from __future__ import annotations

import re
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scvi_tahoe import TahoeST
from scvi_tahoe.evaluate import PREDICTION_RECORD

TABLE = {"perturbation_embedding_key": "perturbation_embedding"}


@pytest.fixture(scope="module")
def trained(simulated):
    adata = simulated.copy()
    TahoeST.setup_anndata(adata, "perturbation", "control", context_key="context", batch_key="batch", **TABLE)
    model = TahoeST(adata, size={"hidden": 16, "n_layers": 2, "intermediate": 32, "n_heads": 2}, set_size=8)
    model.train(20, validate_every=10, batch_size=4, progress=False, lr=0.01)
    return model


def predict(model, *args, **options):
    return model.predict(*args, progress=False, **options)


def rows(predicted, perturbation, context):
    chosen = (predicted.obs["perturbation"] == perturbation) & (predicted.obs["context"] == context)
    return predicted[chosen.to_numpy()]


def test_a_prediction_is_an_anndata_with_the_columns_of_the_training_data(trained, screen, tmp_path):
    predicted = predict(trained, perturbations=["perturbation_2", "perturbation_1"], contexts=["context_2"])
    assert predicted.X.dtype == np.float32
    assert predicted.shape == (80, 60)  # one cell for each of the 40 controls, two perturbations
    assert (predicted.X >= 0).all()
    assert list(predicted.var_names) == list(screen.var_names)
    assert list(predicted.obs.columns) == ["perturbation", "context", "batch", "origin", "support", "expected_error"]
    assert predicted.obs["perturbation"].tolist() == ["perturbation_2"] * 40 + ["perturbation_1"] * 40
    assert set(predicted.obs["context"]) == {"context_2"}
    start = screen.obs.loc[predicted.obs["origin"]]
    assert (start["perturbation"] == "control").all()
    assert (start["context"] == "context_2").all()
    assert start["batch"].astype(str).tolist() == predicted.obs["batch"].astype(str).tolist()
    assert predicted.obs["origin"][:40].is_unique
    predicted.write_h5ad(tmp_path / "predicted.h5ad")
    pd.testing.assert_frame_equal(ad.read_h5ad(tmp_path / "predicted.h5ad").obs, predicted.obs, check_dtype=False)


def test_everything_that_the_model_knows_is_predicted_by_default(trained):
    predicted = predict(trained, n_cells=3)
    assert predicted.n_obs == 2 * 6 * 3
    assert "control" not in set(predicted.obs["perturbation"])


@pytest.fixture(scope="module")
def of_large_table(simulated):
    """A model of six measured perturbations whose table has 200 more rows, and its data."""
    adata = simulated.copy()
    table = adata.uns["perturbation_embedding"]
    more = np.random.default_rng(0).normal(size=(200, table.shape[1])).astype(np.float32)
    extra = pd.DataFrame(more, index=[f"gene_{i}" for i in range(200)], columns=table.columns)
    adata.uns["perturbation_embedding"] = pd.concat([table, extra])
    TahoeST.setup_anndata(adata, "perturbation", "control", context_key="context", **TABLE)
    model = TahoeST(adata, size={"hidden": 16, "n_layers": 2, "intermediate": 32, "n_heads": 2}, set_size=8)
    model.train(2, batch_size=2, progress=False)
    return model, adata


def test_rows_of_a_table_that_were_not_measured_are_predicted_only_if_all_are_asked_for(of_large_table, tmp_path):
    model, adata = of_large_table
    measured = [f"perturbation_{i}" for i in range(1, 7)]
    model.save(tmp_path / "model", overwrite=True)
    model.export(tmp_path / "export")
    controls = adata[adata.obs["perturbation"] == "control"].copy()
    loaded, exported = TahoeST.load(tmp_path / "model", controls), TahoeST.from_pretrained(tmp_path / "export")
    for one, data in ((model, None), (model, adata), (loaded, None), (exported, controls)):
        assert sorted(set(predict(one, data, n_cells=1).obs["perturbation"])) == measured
        assert predict(one, data, perturbations="all", n_cells=1).n_obs == 2 * 206
    assert len(model.prior_report()) == 2 * 6
    assert len(model.prior_report(perturbations="all")) == 2 * 206
    with pytest.raises(TypeError, match=r"write \['ALL'\]"):
        predict(model, perturbations="ALL")


def test_a_perturbation_that_only_other_data_measured_is_predicted_for_them(of_large_table):
    model, adata = of_large_table
    other = adata.copy()
    other.obs["perturbation"] = other.obs["perturbation"].astype(str).replace("perturbation_6", "gene_7")
    assert "gene_7" in set(predict(model, other, n_cells=1).obs["perturbation"])


def test_the_size_of_a_prediction_is_said_before_it_starts(of_large_table, caplog):
    model, _ = of_large_table
    with caplog.at_level("INFO", logger="scvi_tahoe"):
        model.predict(n_cells=2, progress=False)
        assert "predicting" not in caplog.text
        model.predict(n_cells=2)
    assert "predicting 24 cells of 12 conditions; perturbations='all' asks for all 206 of" in caplog.text


def test_a_long_prediction_says_how_long_it_takes_and_stays_the_same(of_large_table, caplog, monkeypatch):
    model, _ = of_large_table
    asked = {"perturbations": "all", "n_cells": 3, "batch_size": 2}
    quiet = model.predict(**asked, progress=False)
    assert "takes about" not in caplog.text
    monkeypatch.setattr("scvi_tahoe.prediction._cost._LONG", 0.01)
    with caplog.at_level("INFO", logger="scvi_tahoe"):
        model.predict(n_cells=2)  # too small for a trial
        assert "takes about" not in caplog.text
        told = model.predict(**asked)
    assert re.search(r"this takes about \d+ (s|min)", caplog.text)
    np.testing.assert_array_equal(told.X, quiet.X)


def test_doses_beyond_the_measured_ones_are_told(doses):
    keys = {"perturbation_key": "drug", "control": "DMSO", "context_key": "context", "dose_key": "dose"}
    TahoeST.setup_anndata(doses, **keys)
    model = TahoeST(doses, size={"hidden": 16, "n_layers": 2, "intermediate": 32, "n_heads": 2}, set_size=8)
    model.train(2, batch_size=2, progress=False)
    with pytest.warns(
        UserWarning, match=r"P@1000 and 1 more: beyond the measured doses \(P was measured from 1 to 100"
    ):
        predict(model, perturbations=["P@1000", "Q@0.01", "P@3"], n_cells=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        predict(model, perturbations=["P@100", "P@3"], n_cells=1)


def test_a_prediction_does_not_depend_on_what_else_is_asked(trained):
    alone = predict(trained, perturbations=["perturbation_3"], contexts=["context_2"], n_cells=11)
    among = rows(predict(trained, n_cells=11), "perturbation_3", "context_2")
    np.testing.assert_array_equal(among.obs["origin"], alone.obs["origin"])
    np.testing.assert_allclose(among.X, alone.X, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_prediction_does_not_depend_on_the_batch_size(batch_size, trained):
    expected, got = (predict(trained, n_cells=20, batch_size=b) for b in (16, batch_size))
    np.testing.assert_allclose(got.X, expected.X, rtol=1e-5, atol=1e-6)


def test_a_prediction_does_not_depend_on_the_store(trained, screen, tmp_path):
    screen.write_h5ad(tmp_path / "screen.h5ad")
    backed = ad.read_h5ad(tmp_path / "screen.h5ad", backed="r")
    expected = predict(trained, n_cells=9).X
    for data, store in ((screen, "device"), (screen, "host"), (backed, "auto"), (backed, "host")):
        np.testing.assert_array_equal(predict(trained, data, n_cells=9, store=store).X, expected)


def test_the_seed_decides_which_controls_meet(trained):
    first, second, third = (predict(trained, n_cells=5, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.X, second.X)
    assert first.obs["origin"].tolist() != third.obs["origin"].tolist()


def test_more_cells_than_controls_use_each_control_as_often_as_the_next(trained):
    predicted = predict(trained, perturbations=["perturbation_1"], contexts=["context_1"], n_cells=100)
    assert set(predicted.obs["origin"].value_counts()) == {2, 3}


def test_the_number_of_cells_may_differ_by_condition(trained):
    n_cells = {("context_1", "perturbation_1"): 3, ("context_2", "perturbation_4"): 5}
    predicted = predict(trained, n_cells=n_cells)
    counts = predicted.obs.groupby(["context", "perturbation"], observed=True).size()
    assert counts.to_dict() == n_cells


def test_deltas_and_controls_add_up_to_the_prediction(trained, screen):
    options = {"perturbations": ["perturbation_1"], "n_cells": 10}
    expression = predict(trained, control_layer=True, **options)
    controls = screen[expression.obs["origin"]].X.toarray()
    np.testing.assert_array_equal(expression.layers["control"], controls)
    delta = predict(trained, output="delta", **options)
    np.testing.assert_allclose(delta.X, expression.X - controls, atol=1e-6)
    assert np.abs(delta.X).max() > 0
    assert delta.uns[PREDICTION_RECORD]["space"] == "delta"


# ---------------------------------------------------------------- other data


def test_genes_are_matched_by_name(trained, screen):
    expected = predict(trained, n_cells=9)
    shuffled = screen[:, np.random.default_rng(0).permutation(60)].copy()
    ones = np.ones((screen.n_obs, 5), np.float32)
    extra = ad.AnnData(ones, obs=screen.obs[[]], var=pd.DataFrame(index=list("abcde")))
    surplus = ad.concat([extra, shuffled], axis=1, merge="same")
    surplus.obs = screen.obs
    surplus.X = surplus.X.tocsr() if hasattr(surplus.X, "tocsr") else surplus.X
    for data in (shuffled, surplus):
        predicted = predict(trained, data, n_cells=9)
        assert list(predicted.var_names) == list(expected.var_names)
        np.testing.assert_array_equal(predicted.X, expected.X)


def test_missing_genes_are_zeros_up_to_a_tenth_and_refused_beyond(trained, screen):
    without = screen.copy()
    without.X = without.X.toarray()
    without.X[:, 55:] = 0
    expected = predict(trained, without, n_cells=9)
    np.testing.assert_array_equal(predict(trained, screen[:, :55].copy(), n_cells=9).X, expected.X)
    with pytest.raises(ValueError, match=r"lack 30 of the model's 60 genes, e.g. \['gene_31'.*accept zeros with"):
        predict(trained, screen[:, :30].copy())
    assert predict(trained, screen[:, :30].copy(), max_missing_genes=0.5, n_cells=2).shape == (24, 60)


def test_the_order_of_cells_decides_nothing_but_the_draws(trained, screen):
    """All controls once: whatever their order, each is one start cell of each condition."""
    shuffled = screen[np.random.default_rng(0).permutation(screen.n_obs)].copy()
    first, second = (predict(trained, data) for data in (screen, shuffled))
    columns = ["perturbation", "context", "origin"]
    assert sorted(map(tuple, first.obs[columns].astype(str).to_numpy())) == sorted(
        map(tuple, second.obs[columns].astype(str).to_numpy())
    )


def test_training_does_not_depend_on_categories_or_types_of_labels(simulated, make_model, train):
    plain = simulated.copy()
    for column in ("perturbation", "context", "batch"):
        plain.obs[column] = plain.obs[column].astype(object)
    reordered = simulated.copy()
    reordered.obs["perturbation"] = reordered.obs["perturbation"].cat.reorder_categories(
        list(reordered.obs["perturbation"].cat.categories)[::-1]
    )
    expected, *others = (predict(train(make_model(a)), n_cells=4).X for a in (simulated.copy(), plain, reordered))
    for other in others:
        np.testing.assert_array_equal(other, expected)


def test_control_cells_alone_are_enough_also_of_a_new_context(trained, screen):
    controls = screen[screen.obs["perturbation"] == "control"].copy()
    controls.obs["context"] = controls.obs["context"].astype(str).replace("context_2", "elsewhere")
    predicted = predict(trained, controls, n_cells=4)
    assert set(predicted.obs["context"]) == {"context_1", "elsewhere"}


def test_data_without_the_table_use_that_of_the_model(trained, screen):
    del screen.uns["perturbation_embedding"]
    np.testing.assert_array_equal(predict(trained, screen, n_cells=3).X, predict(trained, n_cells=3).X)


def test_a_table_with_new_rows_brings_new_perturbations(trained, screen):
    table = screen.uns["perturbation_embedding"]
    screen.uns["perturbation_embedding"] = pd.concat([table, table.iloc[:1].rename({"perturbation_1": "twin"})])
    predicted = predict(trained, screen, perturbations=["twin"], n_cells={("context_1", "twin"): 4})
    assert set(predicted.obs["perturbation"]) == {"twin"}
    assert "twin" not in trained.perturbation_table.names
    with pytest.raises(ValueError, match="knows no perturbation 'twin'.*add their rows to the perturbation-embedding"):
        predict(trained, perturbations=["twin"])


def test_predicting_leaves_the_data_as_they_were(trained, screen, simulated):
    predict(trained, screen, n_cells=3)
    pd.testing.assert_frame_equal(screen.obs, simulated.obs)
    assert list(screen.uns) == list(simulated.uns)
    assert (screen.X != simulated.X).nnz == 0


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"perturbations": ["perturbation_7"]}, ValueError, r"no perturbation 'perturbation_7' \(did you mean"),
        ({"perturbations": "perturbation_1"}, TypeError, r"perturbations is a list, .* write"),
        ({"contexts": "context_1"}, TypeError, "contexts is a list; got the text"),
        ({"perturbations": []}, ValueError, r"perturbations must name each label once, and at least one; got \[\]"),
        ({"contexts": ["context_1"] * 2}, ValueError, "contexts must name each label once"),
        ({"perturbations": [7]}, ValueError, "knows no perturbation '7'"),
        ({"contexts": ["context_7"]}, ValueError,
            r"context 'context_7' is not in the data \(did you mean .*starts from .* Pass other data with"),
        ({"n_cells": 0}, ValueError, "n_cells=0 must be a whole number of 1 or more"),
        ({"n_cells": 2.5}, ValueError, "n_cells is 2.5; allowed is a whole number"),
        ({"n_cells": {("context_1", "perturbation_1"): 0}}, ValueError, "n_cells=0 must be"),
        ({"n_cells": {("perturbation_1", "context_1"): 5}}, ValueError, r"keys are \(context, perturbation\), e.g"),
        ({"output": "logits"}, ValueError, "output='logits' is unknown; allowed are 'expression', 'delta'"),
        ({"output": "embedding"}, ValueError, "needs representation='embedding'; this model has 'expression'"),
        ({"batch_size": 0}, ValueError, "batch_size=0 must be 1 or more"),
        ({"batch_size": -4}, ValueError, "batch_size=-4 must be 1 or more"),
        ({"seed": -1}, ValueError, "seed=-1 must be 0 or more"),
        ({"store": "ram"}, ValueError, "store='ram' is unknown"),
    ],
)  # fmt: skip
def test_questions_without_an_answer_are_refused(options, error, message, trained):
    with pytest.raises(error, match=message):
        predict(trained, **options)


def without_controls(adata):
    return adata[adata.obs["perturbation"] != "control"].copy()


def of_counts(adata):
    adata.X = adata.layers["counts"]


def of_two_genes_one_name(adata):
    adata.var_names = [adata.var_names[1], *adata.var_names[1:]]


def without_contexts(adata):
    del adata.obs["context"]


def with_another_row(adata):
    adata.uns["perturbation_embedding"] = adata.uns["perturbation_embedding"] + 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (without_controls, ValueError, r"have no control cell \('control'\) to start a prediction from"),
        (of_counts, ValueError, "adata.X holds raw counts"),
        (of_two_genes_one_name, ValueError, "gene names must be unique"),
        (without_contexts, KeyError, "context_key='context' is not a column of obs"),
        (with_another_row, ValueError, "other rows for labels that the model knows"),
    ],
)
def test_data_that_cannot_be_predicted_from_are_refused(change, error, message, trained, screen):
    changed = change(screen)
    with pytest.raises(error, match=message):
        predict(trained, screen if changed is None else changed)


def test_a_context_without_controls_is_named(trained, screen):
    lonely = screen[~((screen.obs["perturbation"] == "control") & (screen.obs["context"] == "context_1"))].copy()
    assert set(predict(trained, lonely, n_cells=2).obs["context"]) == {"context_2"}
    with pytest.raises(ValueError, match="context 'context_1' has no control cell"):
        predict(trained, lonely, contexts=["context_1"])


def test_one_hot_models_say_that_they_cannot_predict_new_labels(make_model, train):
    with pytest.raises(ValueError, match=r"trained with one-hot labels and can only predict those; register a"):
        predict(train(make_model()), perturbations=["BRD4"])


@pytest.mark.parametrize("label", ["perturbation_1+perturbation_2", "perturbation_1+BRD4"])
def test_a_combination_without_a_separator_is_told_of_it(trained, label):
    with pytest.raises(ValueError, match=r"it takes each label as a whole; .* combination_separator='\+'"):
        predict(trained, perturbations=[label])


def test_an_untrained_model_warns(make_model):
    with pytest.warns(UserWarning, match="the model is not trained; its predictions mean nothing yet"):
        predict(make_model(), n_cells=2)


# ---------------------------------------------------------------- representations


def test_an_embedding_model_predicts_genes_and_embeddings(make_model, train, screen):
    model = train(make_model(representation="embedding", setup={"cell_embedding_key": "X_embedding"}))
    assert predict(model, n_cells=3).shape == (36, 60)
    embedding = predict(model, n_cells=3, output="embedding", control_layer=True)
    assert embedding.shape == (36, 16)
    start = screen.obs_names.get_indexer(embedding.obs["origin"])
    np.testing.assert_array_equal(embedding.layers["control"], screen.obsm["X_embedding"][start])
    expression = predict(model, n_cells=3, control_layer=True)
    np.testing.assert_array_equal(expression.layers["control"], screen.X.toarray()[start])
    with pytest.raises(ValueError, match="output='delta' needs expression at the input"):
        predict(model, output="delta")


def test_an_auxiliary_embedding_is_a_signal_of_training_and_no_input(make_model, train, screen):
    model = train(make_model(representation="expression+embedding", setup={"cell_embedding_key": "X_embedding"}))
    assert {"train_distillation", "validation_distillation"} <= set(model.history)
    expected = predict(model, n_cells=3).X
    screen.obsm["X_embedding"] = np.zeros_like(screen.obsm["X_embedding"])
    np.testing.assert_array_equal(predict(model, screen, n_cells=3).X, expected)


def test_a_batch_encoder_sees_the_batch_of_the_start_cell(make_model, train, screen):
    model = train(make_model(batch_encoder=True))
    predicted = predict(model, n_cells=12)
    other = screen.copy()
    swap = {"batch_1": "batch_2", "batch_2": "batch_1"}
    other.obs["batch"] = other.obs["batch"].astype(str).map(swap)
    swapped = predict(model, other, n_cells=12)
    assert predicted.obs["origin"].tolist() == swapped.obs["origin"].tolist()
    assert not np.array_equal(predicted.X, swapped.X)
    other.obs["batch"] = "batch_9"
    with pytest.raises(ValueError, match=r"trained with 2 technical batches; the data have batches that"):
        predict(model, other)


ONE_HOT = {"prior": "cells"}


@pytest.mark.parametrize(
    ("contexts", "options", "sees"),
    [
        ([1, 2], {}, False),
        ([1, 2], {"network": {"sees_perturbation": True}}, True),
        ([1, 2], {"prior": "transfer"}, True),
        ([1, 2], {"setup": {"perturbation_embedding_key": "perturbation_embedding"}}, True),
        ([1], {}, True),
    ],
    ids=["cells of it", "asked for", "a prior of means", "embeddings", "no other context"],
)
def test_one_hot_labels_are_hidden_beside_cells_of_their_perturbation(contexts, options, sees, screen, make_model):
    screen = screen[screen.obs["context"].isin([f"context_{i}" for i in contexts])].copy()
    assert make_model(screen, **{**ONE_HOT, **options}).module.config.sees_perturbation is sees


def test_a_saved_model_stays_blind_to_labels_and_predicts_the_same(make_model, train, tmp_path):
    model = train(make_model(**ONE_HOT))
    model.save(tmp_path / "model", save_anndata=True)
    again = TahoeST.load(tmp_path / "model")
    assert not again.module.config.sees_perturbation
    np.testing.assert_array_equal(predict(again, n_cells=5).X, predict(model, n_cells=5).X)


@pytest.mark.parametrize("prior", ["mean", "transfer", "cells", "response"])
def test_a_prediction_from_a_prior_does_not_depend_on_what_else_is_asked(prior, make_model, train):
    model = train(make_model(prior=prior))
    alone = predict(model, perturbations=["perturbation_3"], contexts=["context_2"], n_cells=11)
    among = rows(predict(model, n_cells=11), "perturbation_3", "context_2")
    np.testing.assert_allclose(among.X, alone.X, rtol=1e-5, atol=1e-5)
