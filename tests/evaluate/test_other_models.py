"""Outputs of other models and files of other benchmarks are read, scored and written."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scvi_tahoe.datasets import norman_k562, papalexi_few_shot
from scvi_tahoe.evaluate import EvaluationReference, as_prediction, evaluate, read_split, write_scperturbench

LABELS = {"perturbation_key": "perturbation", "control": "ctrl"}
TARGETS = ["A", "B", "A+B"]
REAL = Path(__file__).parent.parent / "files" / "other_models"


@pytest.fixture(scope="module")
def observed():
    """Cells of three perturbations and controls, log1p of counts per 1,000."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["ctrl", *TARGETS], [120, 60, 60, 60])
    rate = rng.gamma(0.7, 8, 80) * np.exp(0.8 * rng.normal(size=(4, 80)) * (np.arange(4) > 0)[:, None])
    counts = rng.poisson(rate[pd.Categorical(labels, ["ctrl", *TARGETS]).codes])
    cells = np.log1p(counts * (1000 / counts.sum(axis=1, keepdims=True))).astype(np.float32)
    obs = pd.DataFrame({"perturbation": labels}, index=[f"cell{i}" for i in range(len(labels))])
    adata = AnnData(cells, obs=obs, var=pd.DataFrame(index=[f"g{i:02d}" for i in range(80)]))
    adata.layers["counts"] = counts.astype(np.float32)
    return adata


def means(observed):
    return {t: observed.X[(observed.obs["perturbation"] == t).to_numpy()].mean(axis=0) for t in TARGETS}


def cpa(observed):
    query = observed[observed.obs["perturbation"] != "ctrl"].copy()
    query.obs["perturbation"] = query.obs["perturbation"].replace({"A": "A+ctrl", "B": "ctrl+B"})
    query.obsm["CPA_pred"] = query.X
    query.X = np.zeros(query.shape, np.float32)
    return query, {"place": "CPA_pred"}


def gears(observed):
    return {t.replace("+", "_"): mean for t, mean in means(observed).items()}, {"label": lambda x: x.replace("_", "+")}


def cellflow(observed):
    groups = observed.obs["perturbation"]
    frames = {t: observed[(groups == t).to_numpy()].to_df() for t in TARGETS}
    return {t: frame[frame.columns[::-1]] for t, frame in frames.items()}, {}


def scperturbench(observed):
    cells = observed.copy()
    cells.obs["Expcategory"] = np.where(cells.obs["perturbation"] == "ctrl", "control", "imputed")
    return cells, {}


@pytest.mark.parametrize("model", [cpa, gears, cellflow, scperturbench], ids=lambda model: model.__name__)
def test_the_output_of_a_model_has_the_means_and_labels_that_it_predicts(observed, model):
    output, options = model(observed)
    found = as_prediction(output, observed, **LABELS, **options)
    assert set(found.obs["perturbation"]) == set(TARGETS)
    for target, mean in means(observed).items():
        mine = found[(found.obs["perturbation"] == target).to_numpy(), observed.var_names]
        np.testing.assert_allclose(np.asarray(mine.X.mean(axis=0)).ravel(), mean, atol=1e-5)
    result = evaluate(found, observed, **LABELS, preset="quick", baselines=False, representation_check="off")
    assert result.summary.loc["mae", "value"] == pytest.approx(0, abs=1e-4)


@pytest.mark.filterwarnings("ignore:conditions without a prediction", "ignore:few conditions")
def test_means_that_gears_returned_are_scored():
    screen, keys = norman_k562(), {"perturbation_key": "perturbation", "control": "control"}
    with np.load(REAL / "gears.npz") as file:
        genes, means = file["genes"].tolist(), {name: file[name] for name in file.files if name != "genes"}
    assert genes == screen.var_names.tolist()
    with pytest.warns(UserWarning, match=r"44% of the values of the output are below zero \(lowest -0.15\)"):
        found = as_prediction(means, screen, label=lambda name: name.replace("_", "+"), **keys)
    for name, mean in means.items():
        mine = found[(found.obs["perturbation"] == name.replace("_", "+")).to_numpy()].X.mean(axis=0)
        np.testing.assert_allclose(np.asarray(mine).ravel(), np.maximum(mean, 0), atol=1e-5)
    found = found[found.obs["perturbation"].isin(screen.obs["perturbation"]).to_numpy()].copy()
    result = evaluate(found, screen, preset="quick", baselines=False, combination_separator="+", **keys)
    assert 0 < result.summary.loc["mae", "value"] < 0.1


@pytest.mark.filterwarnings(
    "ignore:conditions without a prediction", "ignore:spread of totals", "ignore:few conditions"
)
def test_cells_that_scgen_returned_are_scored_once_they_are_named():
    task = papalexi_few_shot()
    keys = {"perturbation_key": "target_gene", "control": "non-targeting", "context_key": "replicate"}
    output = anndata.read_h5ad(REAL / "scgen.h5ad")
    with pytest.raises(ValueError, match="all 40 cells of the output are labelled 'non-targeting', as scGen leaves"):
        as_prediction(output, task.train, **keys)
    with pytest.warns(UserWarning, match="are below zero"):
        found = as_prediction({"ATF2": output.to_df()}, task.train, context="rep_3", **keys)
    assert found.X.min() == 0
    options = {"preset": "quick", "baselines": False, "representation_check": "warn"}  # three epochs: totals are off
    with pytest.warns(UserWarning, match="the median cell of the prediction sums to"):
        result = evaluate(found, task.held_out, **options, **keys)
    assert 0 < result.summary.loc["mae", "value"] < 0.5


@pytest.mark.parametrize(("model", "place", "share"), [("cpa", "CPA_pred", "47%"), ("cellflow", "X_recon", "15%")])
@pytest.mark.filterwarnings("ignore::scvi_tahoe.evaluate.EvaluationWarning")
def test_cells_that_cpa_and_cellflow_returned_are_scored(model, place, share):
    screen, keys = norman_k562(), {"perturbation_key": "perturbation", "control": "control"}
    output = anndata.read_h5ad(REAL / f"{model}.h5ad")
    with pytest.warns(UserWarning, match=f"{share} of the values of the output are below zero"):
        found = as_prediction(output, screen, place=place, **keys)
    assert set(found.obs["perturbation"]) == {"KLF1+MAP2K6", "MAP2K3+SLC38A2", "MAPK1"}
    returned = output.obsm[place] if place in output.obsm else output.layers[place]
    np.testing.assert_array_equal(found.X.toarray(), np.maximum(returned, 0))
    options = {"preset": "quick", "baselines": False, "combination_separator": "+", "representation_check": "warn"}
    assert 0 < evaluate(found, screen, **options, **keys).summary.loc["mae", "value"] < 0.3


def test_cells_of_cellflow_in_components_are_refused():
    output = anndata.read_h5ad(REAL / "cellflow.h5ad")
    labels = output.obs["perturbation"]
    components = {name: output.obsm["X_pca"][(labels == name).to_numpy()] for name in labels.unique()}
    with pytest.raises(ValueError, match=r"has the shape \(10, 20\); .* of 500 is needed \(components"):
        as_prediction(components, norman_k562(), perturbation_key="perturbation", control="control")


@pytest.mark.parametrize(
    ("output", "options", "error", "message"),
    [
        ({"A": np.zeros(3)}, {}, ValueError, "has the shape"),
        ({"A": np.zeros(80)}, {"place": "X"}, ValueError, "place is for AnnData"),
        ({"A": np.zeros(80)}, {"control": "DMSO"}, ValueError, "no cell with perturbation='DMSO'"),
        ({"A": np.zeros(80)}, {"context_key": "line"}, ValueError, "does not say the context"),
        (None, {"place": "CPA_pre"}, KeyError, "no 'CPA_pre' in obsm or layers"),
    ],
    ids=["shape", "place of a mapping", "control", "context", "place"],
)
def test_an_output_that_does_not_fit_is_refused(observed, output, options, error, message):
    with pytest.raises(error, match=message):
        as_prediction(observed if output is None else output, observed, **{**LABELS, **options})


def test_scores_of_perturbench_are_those_of_its_formulas(observed):
    rng = np.random.default_rng(1)
    moved = observed[(observed.obs["perturbation"] != "ctrl").to_numpy()].copy()
    moved.X = np.maximum(moved.X + rng.normal(0, 0.3, moved.n_vars), 0).astype(np.float32)
    result = evaluate(moved, observed, **LABELS, preset="perturbench", baselines=False, representation_check="off")
    mean = {"ref": means(observed), "model": means(moved)}
    control = observed.X[(observed.obs["perturbation"] == "ctrl").to_numpy()].mean(axis=0)
    for target in TARGETS:
        row = result.per_perturbation.loc[("all cells", target)]
        x, y = mean["model"][target], mean["ref"][target]
        assert row["rmse_average"] == pytest.approx(np.sqrt(np.mean((x - y) ** 2)), rel=1e-4)
        fold = [np.log2(v + 0.1) - np.log2(control + 0.1) for v in (x, y)]
        cosine = fold[0] @ fold[1] / np.linalg.norm(fold[0]) / np.linalg.norm(fold[1])
        assert row["cosine_logfc"] == pytest.approx(cosine, rel=1e-4)
        nearer = sum(np.mean((mean["model"][t] - y) ** 2) < np.mean((x - y) ** 2) for t in TARGETS)
        assert row["rmse_rank_average"] == pytest.approx(nearer / 3)
    assert result.summary.index[0] == "rmse_average"


def in_two_lines():
    """Return real cells in two lines of different numbers of perturbations, and a prediction with errors."""
    observed = norman_k562()
    labels = sorted(set(observed.obs["perturbation"]) - {"control"})
    observed.obs["line"] = np.where(observed.obs["perturbation"].isin(labels[:5]), "one", "two")
    is_control = (observed.obs["perturbation"] == "control").to_numpy()
    observed.obs.loc[observed.obs_names[np.flatnonzero(is_control)[::2]], "line"] = "one"
    predicted = observed[~is_control].copy()
    by_label = {label: i for i, label in enumerate(labels)}
    factor = 0.6 + (0.08 * predicted.obs["perturbation"].map(by_label).to_numpy(float)) % 0.7
    predicted.X = (predicted.X.toarray() * factor[:, None]).astype(np.float32)
    return observed, predicted


def test_means_of_perturbench_are_those_that_its_own_code_gives():
    """The functions of altoslabs/perturbench, commit 4dd6a03, were run on these cells; the lines have unequal sizes."""
    observed, predicted = in_two_lines()
    result = evaluate(
        predicted, observed, perturbation_key="perturbation", control="control", context_key="line",
        preset="perturbench", baselines=False, representation_check="off",
    )  # fmt: skip
    theirs = [0.0461677610874176, 0.1448051948051948, 0.90009740733186, 0.00541125541125541]
    names = ["rmse_average", "rmse_rank_average", "cosine_logfc", "cosine_rank_logfc"]
    np.testing.assert_allclose(result.summary.loc[names, "value"].astype(float), theirs, rtol=1e-5)


def test_chance_of_a_rank_is_one_half_with_equal_predictions(observed):
    same = observed[(observed.obs["perturbation"] != "ctrl").to_numpy()].copy()
    same.X = np.repeat(same.X[:1], same.n_obs, axis=0)
    result = evaluate(same, observed, **LABELS, preset="perturbench", baselines=False, representation_check="off")
    assert result.summary.loc["rmse_rank_average", "value"] == pytest.approx(1 / 3)  # of three, two ties count half


def test_cells_of_the_truth_have_its_co_expression(observed):
    pytest.importorskip("cell_eval2")
    counts = observed.copy()
    counts.X = counts.layers["counts"]
    reference = EvaluationReference.from_adata(counts, **LABELS)
    result = evaluate(counts[counts.obs["perturbation"] != "ctrl"].copy(), reference, preset="cell", baselines=False)
    scores = result.per_perturbation[["cell_cov_corr", "cell_cov_eig_ratio"]].dropna()
    assert len(scores)
    np.testing.assert_allclose(scores, 1, atol=1e-6)


@pytest.mark.parametrize("header", [False, True], ids=["no header", "header"])
def test_a_split_of_perturbench_is_read_by_cell(observed, tmp_path, header):
    parts = pd.Series(np.resize(["train", "val", "test"], observed.n_obs), index=observed.obs_names)
    parts.sample(frac=1, random_state=0).to_csv(tmp_path / "split.csv", header=header)
    pd.testing.assert_series_equal(read_split(tmp_path / "split.csv", observed), parts, check_names=False)
    other = observed.copy()
    other.obs_names = "x" + other.obs_names
    with pytest.raises(ValueError, match="no part for 300 of 300 cells"):
        read_split(tmp_path / "split.csv", other)
    parts.replace("val", "dev").to_csv(tmp_path / "split.csv", header=header)
    with pytest.raises(ValueError, match="has the parts"):
        read_split(tmp_path / "split.csv", observed)


def test_a_file_of_scperturbench_is_read_back_as_the_same_prediction(observed, tmp_path):
    prediction = as_prediction(means(observed), observed, **LABELS)
    path = write_scperturbench(prediction, observed, tmp_path / "result.h5ad", **LABELS)
    table = anndata.read_h5ad(path)
    assert table.obs["Expcategory"].value_counts().to_dict() == {"imputed": 360, "stimulated": 180, "control": 120}
    assert set(table.obs.loc[table.obs["Expcategory"] == "control", "perturbation"]) == {"control"}
    again = as_prediction(table, observed, **LABELS)
    np.testing.assert_array_equal(again[:, prediction.var_names].X.toarray(), prediction.X.toarray())
    prediction.obs["perturbation"] = "C"
    with pytest.raises(ValueError, match="share 80 genes and 0 perturbations"):
        write_scperturbench(prediction, observed, path, **LABELS)
