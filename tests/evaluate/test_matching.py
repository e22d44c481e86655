"""Scores do not depend on how many cells were predicted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scvi_tahoe.evaluate import EvaluationReference, baseline_prediction, evaluate
from scvi_tahoe.evaluate._cells import cells_from_adata
from scvi_tahoe.evaluate._exact_means import column_mean, with_n_cells


@pytest.fixture(scope="module")
def n_observed(task):
    return task.held_out.obs[task.perturbation_key].astype(str).value_counts().drop(task.control).to_dict()


@pytest.fixture(scope="module")
def sized(task, keys, n_observed):
    """One prediction with some times as many cells of each condition as observed."""
    cells = baseline_prediction("context_transfer", task.held_out, task.train, n_cells="all", **keys)
    labels = {name: keys[name] for name in ("perturbation_key", "context_key")}
    table = cells_from_adata(cells, **labels, role="prediction")

    def sized(times):
        wanted = {(task.context, p): int(times * n) for p, n in n_observed.items()}
        return with_n_cells(table, wanted, seed=100).to_adata(**labels)

    return sized


def test_the_score_does_not_depend_on_the_number_of_predicted_cells(sized, task, keys):
    reference = EvaluationReference.from_adata(task.held_out, baseline_from=task.train, ceiling=False, **keys)
    matched, as_given = (
        {t: evaluate(sized(t), reference, baselines=False, match_cells=m) for t in (0.5, 1, 2)} for m in (True, False)
    )
    scores, raw = ({t: result.vcc["overall"] for t, result in side.items()} for side in (matched, as_given))
    assert max(scores.values()) - min(scores.values()) < 1
    assert max(raw.values()) - min(raw.values()) > 1
    means = ["discrimination_score_l1", "mae", "pearson_delta"]
    for times in (0.5, 2):
        values = [matched[t].summary.loc[means, "value"] for t in (1, times)]
        pd.testing.assert_series_equal(*values, rtol=1e-4)
    # what was predicted is what is reported
    given = sized(2).obs[task.perturbation_key].astype(str).value_counts()
    counts = matched[2].per_perturbation["n_cells_predicted"].droplevel("context")
    assert counts.astype(int).to_dict() == given.to_dict()


def test_the_spread_over_choices_is_kept_and_none_where_there_is_no_choice(sized, task, keys):
    reference = EvaluationReference.from_adata(task.held_out, ceiling=False, **keys)
    options = {"baseline": "control", "baselines": False}
    two = evaluate(sized(2), reference, **options)
    assert two.vcc["sd_draws"] > 0
    assert two.summary.loc["overlap_at_N", "sd_draws"] > 0
    assert two.summary.loc["mae", "sd_draws"] < 1e-6
    assert two.provenance["n_draws"] == 3
    one = evaluate(sized(1), reference, **options)
    assert "sd_draws" not in one.vcc
    assert one.summary["sd_draws"].isna().all()


@pytest.mark.parametrize("form", ["csr", "C"])
def test_matched_cells_have_the_mean_of_all_and_the_number_asked_for(cells_of, form):
    cells = cells_of(["control", "a", "b", "c"], form=form)
    wanted = {("all", "a"): 20, ("all", "b"): 150, ("all", "c"): 60}
    found = with_n_cells(cells, wanted, seed=0)
    assert {key: len(rows) for key, rows in found.rows.items()} == {**wanted, ("all", "control"): 60}
    assert sp.issparse(found.expression) is (form == "csr")
    for label in ("a", "b", "c", "control"):
        one, other = (column_mean(table.block("all", label)) for table in (found, cells))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    same = {key: len(rows) for key, rows in cells.rows.items()}
    assert with_n_cells(cells, same, seed=0) is cells


def test_a_number_of_choices_below_one_is_refused(predicted, reference):
    with pytest.raises(ValueError, match="n_draws=0 must be 1 or more"):
        evaluate(predicted, reference, n_draws=0)
