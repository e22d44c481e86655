"""The response model of a table of responses: predictions, uncertainty, report, and what is kept in a folder."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scvi_tahoe.effects import dose_response, interactions
from scvi_tahoe.files import UnsafeFileError
from scvi_tahoe.response import ResponseModel

N, N_GENES, NOISE = 24, 40, 0.2


def screen(n=N, contexts=("x", "y"), noise=NOISE, seed=0):
    """Linear effects of a table, known noise, and the truth in a layer."""
    rng = np.random.default_rng(seed)
    names = [f"P{i}" for i in range(n)]
    table = pd.DataFrame(rng.normal(size=(n, 3)), index=names)
    loadings = rng.normal(size=(3, N_GENES))
    shared = rng.normal(size=N_GENES)
    truth = [table.to_numpy() @ (loadings + 0.3 * rng.normal(size=loadings.shape)) + shared for _ in contexts]
    truth = np.concatenate(truth)
    obs = pd.DataFrame([(p, c) for c in contexts for p in names], columns=["gene", "line"]).rename(str)
    adata = AnnData(truth + noise * rng.normal(size=truth.shape), obs=obs)
    adata.layers["truth"], adata.layers["variance"] = truth, np.full(truth.shape, noise**2)
    return adata, table


def fit(adata, **options):
    keys = {"perturbation_key": "gene", "context_key": "line", "progress": False}
    return ResponseModel.fit(adata, **{**keys, **options})


@pytest.fixture(scope="module")
def unseen():
    """A model that has not seen P0 to P5 anywhere, nor P6 to P9 in x."""
    adata, table = screen()
    number = adata.obs["gene"].str[1:].astype(int)
    hidden = (number < 6) | ((number < 10) & (adata.obs["line"] == "x"))
    return fit(adata[~hidden].copy(), tables={"t": table}, variance_layer="variance"), adata, hidden.to_numpy()


def asked(model, adata, rows):
    predicted = model.predict(sorted(set(adata.obs["gene"][rows])), ["x", "y"])
    return predicted[[f"{g} in {c}" for g, c in adata.obs[rows].itertuples(index=False)]]


def test_predictions_are_changes_with_deviations_and_support(unseen):
    model, adata, hidden = unseen
    predicted = asked(model, adata, hidden)
    assert predicted.X.dtype == predicted.layers["sd"].dtype == np.float32
    assert predicted.obs.columns.tolist() == ["gene", "line", "support", "starts_from"]
    assert (predicted.layers["sd"] > 0).all()
    assert ((predicted.layers["p_direction"] >= 0.5) & (predicted.layers["p_direction"] <= 1)).all()
    assert predicted.obs["support"].between(0, 1).all()
    truth = adata.layers["truth"][hidden]
    error = np.abs(predicted.X - truth).mean()
    assert error < 0.6 * np.abs(truth - truth.mean(0)).mean()
    starts = predicted.obs.groupby("gene")["starts_from"].unique()
    assert starts["P0"].tolist() == ["the nearest perturbations by embedding"]
    assert starts["P6"].tolist() == ["the same perturbation in other contexts"]


def test_intervals_hold_what_they_should(unseen):
    model, adata, hidden = unseen
    predicted = asked(model, adata, hidden)
    total = np.sqrt(np.square(predicted.layers["sd"]) + NOISE**2)
    covered = (np.abs(predicted.X - adata.X[hidden]) < 1.645 * total).mean()
    assert 0.8 < covered < 0.98


def test_a_measured_condition_uses_its_own_measurement(unseen):
    model, adata, hidden = unseen
    predicted, truth = asked(model, adata, ~hidden), adata.layers["truth"][~hidden]
    mine = predicted.obs["starts_from"] == "its own measurement"
    assert mine.all()
    error = np.abs(predicted.X - truth).mean()
    assert error < 0.95 * np.abs(adata.X[~hidden] - truth).mean()
    assert (predicted.layers["sd"] <= NOISE + 1e-6).all()
    others = model.predict(use_measured=False)
    assert "its own measurement" not in set(others.obs["starts_from"])
    assert predicted.obs["support"].mean() > asked(model, adata, hidden).obs["support"].mean()


def test_noise_decides_how_much_of_a_measurement_is_kept():
    adata, table = screen(12)
    variance = np.full(adata.shape, NOISE**2)
    variance[0], variance[1] = 1e-8, 1e4
    adata.layers["variance"] = variance
    adata.X[:2] += 50
    predicted = fit(adata, tables=table, variance_layer="variance").predict(["P0", "P1"], ["x"])
    np.testing.assert_allclose(predicted.X[0], adata.X[0], rtol=1e-3)
    assert np.abs(predicted.X[1] - adata.X[1]).min() > 30


def test_support_grows_with_what_is_known():
    adata, table = screen()
    shuffled = table.sample(frac=1, random_state=0).set_axis(table.index)
    some = adata[adata.obs["gene"] != "P0"].copy()
    by_table, by_nothing = (fit(some, tables=t).predict(["P0"]).obs["support"].mean() for t in (table, shuffled))
    assert by_table > 0.6
    assert by_nothing < 0.3


def test_a_prediction_without_support_says_so(caplog):
    adata, table = screen(8, ("x",))
    lone = pd.DataFrame(np.ones((9, 1)), index=[*table.index, "new"])
    model = fit(adata, tables=lone)
    with caplog.at_level("WARNING", "scvi_tahoe"):
        predicted = model.predict(["new"])
    assert predicted.obs["support"].tolist() == [0]
    assert "1 of 1 predictions have no support" in caplog.text


def test_discrimination_unshrinks_what_is_specific_and_says_what_it_costs():
    adata, table = screen(noise=1.5)
    number = adata.obs["gene"].str[1:].astype(int)
    some = adata[number > 3].copy()
    models = {c: fit(some, tables=table, criterion=c) for c in ("error", "discrimination")}
    assert models["error"]._fitted.unshrinking == {}
    factors = models["discrimination"]._fitted.unshrinking
    assert factors
    assert all(f >= 1 for f in factors.values())
    report = models["discrimination"].report()
    scores = report[report["part"] == "member"].set_index(["question", "name"])
    for question, of_question in scores.groupby(level=0):
        (changed,) = [n for _, n in of_question.index if n.startswith("response model x ")]
        before, after = scores.loc[(question, "response model")], scores.loc[(question, changed)]
        assert after["pds"] >= before["pds"]
        if changed != "response model x 1":
            assert f"times {changed.rpartition(' ')[2]}: PDS" in report.attrs["text"]
    first, second = (models[c].predict(["P0"]).X for c in ("error", "discrimination"))
    if factors[next(iter(factors))] == 1 == max(factors.values()):
        np.testing.assert_allclose(first, second)


def test_the_report_has_kernels_tables_and_members(unseen):
    report = unseen[0].report()
    assert report.columns.tolist() == [
        "part", "question", "name", "weight", "pearson", "pds", "mae", "rmse", "n_conditions", "loss",
    ]  # fmt: skip
    weights = report.groupby("part")["weight"].sum()
    assert weights["kernel"] == pytest.approx(1)
    assert report[report["part"] == "table"]["name"].tolist() == ["t"]
    assert report[report["part"] == "table"]["weight"].item() > 0.3
    members = report[report["part"] == "member"]
    for _, of_question in members.groupby("question"):
        assert of_question["weight"].sum() == pytest.approx(1)
        assert {"response model", "kernels", "mean"} <= set(of_question["name"])
    elsewhere = members[members["question"] == "the same perturbation in other contexts"].set_index("name")
    assert elsewhere.loc["response model", "mae"] < elsewhere.loc["mean", "mae"]
    assert "Response model of" in report.attrs["text"]
    assert repr(unseen[0]) == report.attrs["text"]


def test_the_loss_without_a_table_tells_good_ones_from_bad_ones():
    adata, table = screen(contexts=("x",))
    bad = pd.DataFrame(np.random.default_rng(9).normal(size=table.shape), index=table.index)
    report = fit(adata, tables={"good": table, "bad": bad}).report(losses=True)
    losses = report[report["part"] == "table"].set_index("name")["loss"]
    assert losses["good"] > 0.3
    assert losses["bad"] < 0.1  # nothing is lost without it, and with few conditions something gained
    assert "without these kernels: good +" in report.attrs["text"]


def test_a_saved_model_predicts_the_same_to_the_last_bit(unseen, tmp_path):
    model = unseen[0]
    model.save(tmp_path / "model")
    loaded = ResponseModel.load(tmp_path / "model")
    first, second = model.predict(["P0", "P6", "P20"]), loaded.predict(["P0", "P6", "P20"])
    assert (first.X == second.X).all()
    assert (first.layers["sd"] == second.layers["sd"]).all()
    pd.testing.assert_frame_equal(first.obs, second.obs)
    assert repr(loaded) == repr(model)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["checksums.json", "response.json", "response.npz"]
    with pytest.raises(FileExistsError, match="overwrite"):
        model.save(tmp_path / "model")
    model.save(tmp_path / "model", overwrite=True)


def test_nothing_in_a_saved_model_is_pickled(unseen, tmp_path):
    unseen[0].save(tmp_path / "model")
    with np.load(tmp_path / "model" / "response.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].dtype.kind in "fbiu" for name in arrays.files)


@pytest.mark.parametrize("damage", ["array", "json", "version", "missing"])
def test_a_damaged_folder_is_refused_in_one_line(unseen, tmp_path, damage):
    folder = tmp_path / "model"
    unseen[0].save(folder)
    text = json.loads((folder / "response.json").read_text())
    if damage == "array":
        with np.load(folder / "response.npz") as stored:
            arrays = dict(stored)
        np.savez(folder / "response.npz", **{**arrays, "fit_basis": arrays["fit_basis"][:, :-1]})
    elif damage == "json":
        (folder / "response.json").write_text(json.dumps({**text, "fit": {}}))
    elif damage == "version":
        (folder / "response.json").write_text(json.dumps({**text, "version": 99}))
    else:
        (folder / "response.npz").unlink()
    with pytest.raises((ValueError, FileNotFoundError, UnsafeFileError)) as raised:
        ResponseModel.load(folder)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize(
    ("labels", "contexts", "options", "says"),
    [
        (["P99"], None, {}, "was not measured nor in a table"),
        (["p3"], None, {}, "did you mean 'P3'"),
        (["P3"], ["X"], {}, "did you mean 'x'"),
        ([], None, {}, "perturbations is empty"),
    ],
)
def test_unknown_labels_are_refused(unseen, labels, contexts, options, says):
    with pytest.raises(ValueError, match=says):
        unseen[0].predict(labels, contexts, **options)


def test_a_new_context_is_asked_for_on_purpose(unseen):
    predicted = unseen[0].predict(["P20"], ["new"], new_contexts=True)
    assert predicted.obs["line"].tolist() == ["new"]
    known = unseen[0].predict(["P20"], ["x"])
    assert predicted.layers["sd"].mean() > known.layers["sd"].mean()


@pytest.mark.parametrize(("n", "contexts"), [(1, "x"), (1, "xy"), (2, "x"), (2, "xy"), (3, "x")])
def test_few_conditions_are_predicted(n, contexts):
    adata, _ = screen(n, tuple(contexts))
    model = fit(adata, variance_layer="variance")
    predicted = model.predict()
    assert np.isfinite(predicted.X).all()
    assert np.isfinite(predicted.layers["sd"]).all()
    assert len(model.report())


def test_a_context_with_one_perturbation_and_genes_of_zeros_are_predicted():
    adata, _ = screen(8)
    adata.X[:, :3] = 0
    keep = (adata.obs["line"] == "x") | (adata.obs["gene"] == "P2")
    predicted = fit(adata[keep].copy()).predict()
    assert predicted.shape == (16, N_GENES)
    assert np.isfinite(predicted.layers["sd"]).all()
    np.testing.assert_allclose(predicted.X[:, :3], 0, atol=1e-6)


def test_missing_responses_change_little():
    adata, table = screen()
    model = fit(adata, tables=table)
    rng = np.random.default_rng(0)
    holes = adata.copy()
    holes.X[rng.random(holes.shape) < 0.1] = np.nan
    found = fit(holes, tables=table)
    assert any("missing" in note for note in found.notes)
    truth = adata.layers["truth"]
    before, after = (np.abs(m.predict().X - truth).mean() for m in (model, found))
    assert after < 1.4 * before


def test_pairs_and_doses_are_asked_in_any_spelling():
    adata, _ = screen(6, ("x",))
    adata.obs["gene"] = ["A", "B", "C", "A+B", "A+C", "D"]
    predicted = fit(adata, combination_separator="+").predict(["C+B", "B+C", "B+A"])
    assert predicted.obs["gene"].tolist() == ["B+C", "A+B"]
    assert predicted.obs["starts_from"].tolist() == ["its parts", "its own measurement"]
    adata.obs["gene"], adata.obs["dose"] = ["A"] * 3 + ["B"] * 3, [1, 10, 100] * 2
    predicted = fit(adata, dose_key="dose").predict(["A@30"])
    assert predicted.obs["dose"].tolist() == [30]
    assert predicted.obs["starts_from"].tolist() == ["the nearest doses of the same perturbation"]


def test_predictions_say_where_their_labels_are_to_what_reads_effects():
    rng = np.random.default_rng(0)
    singles = rng.normal(size=(4, 12))
    labels = ["A", "B", "C", "D", "A+B", "C+D", "A+D"]
    changes = np.vstack([singles, [singles[i] + singles[j] for i, j in ((0, 1), (2, 3), (0, 3))]])
    pairs = ResponseModel.fit(
        AnnData(changes, obs=pd.DataFrame({"ko": labels}, index=labels)),
        perturbation_key="ko", combination_separator="+", progress=False,
    ).predict()  # fmt: skip
    assert sorted(interactions(pairs).obs["ko"]) == ["A+B", "A+D", "C+D"]
    doses = np.tile([0.1, 1.0, 10.0, 100.0, 1000.0], 3)
    obs = pd.DataFrame({"drug": np.repeat(["x", "y", "z"], 5), "uM": doses, "line": "one"}).rename(str)
    curves = (doses / (1 + doses))[:, None] * np.repeat(singles[:3], 5, axis=0)
    model = ResponseModel.fit(
        AnnData(curves, obs=obs), perturbation_key="drug", dose_key="uM", context_key="line", progress=False
    )
    assert dose_response(model.predict(), ["0"])[["drug", "line"]].drop_duplicates().shape == (3, 2)


@pytest.mark.parametrize("knows_expression", [True, False])
def test_a_perturbed_gene_falls_itself(knows_expression):
    adata, _ = screen(12)
    adata.var_names = [f"P{i}" for i in range(N_GENES)]
    expression = pd.DataFrame(np.full((2, N_GENES), 2.0), index=["x", "y"], columns=adata.var_names)
    for row, label in enumerate(adata.obs["gene"]):
        adata.X[row, int(label[1:])] = -1.8
    seen = adata[adata.obs["gene"] != "P3"].copy()
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(12, 2)), index=[f"P{i}" for i in range(12)])
    model = fit(seen, control_expression=expression if knows_expression else None, tables=table)
    predicted = model.predict(["P3"])
    assert predicted[:, "P3"].X.ravel() == pytest.approx(-1.8, abs=0.01)
    assert (predicted[:, "P3"].layers["sd"] < 0.01).all()
    measured = model.predict(["P4"], ["x"])
    assert measured[:, "P4"].X.item() == pytest.approx(-1.8, abs=0.01)


def test_the_same_seed_gives_the_same_model():
    adata, table = screen(10)
    first, second = (fit(adata, tables=table, seed=3).predict().X for _ in range(2))
    assert (first == second).all()


def test_a_negative_size_of_an_effect_is_an_error(unseen):
    with pytest.raises(ValueError, match="min_change=-1"):
        unseen[0].predict(["P0"], min_change=-1)


def test_noise_of_a_single_context_is_not_carried_to_another():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"gene": [f"P{i:02d}" for i in range(20)], "line": "x"}).rename(str)
    adata = AnnData(rng.normal(size=(20, 200)), obs=obs)
    adata.layers["variance"] = np.ones(adata.shape)
    predicted = fit(adata, variance_layer="variance").predict(contexts="y", new_contexts=True)
    assert np.square(predicted.X).mean() < 0.05
    adata.X += 3 * rng.normal(size=adata.shape)  # effects, at the same noise
    predicted = fit(adata, variance_layer="variance").predict(contexts="y", new_contexts=True)
    assert np.corrcoef(predicted.X.ravel(), adata.X.ravel())[0, 1] > 0.9
    assert np.square(predicted.X).mean() > 5


def zeros_in(name, rows):
    def change(adata, table):
        values = adata.X if name == "X" else adata.layers[name]
        values[rows] = 0
        return adata, table

    return change


LITTLE = {
    "one condition": lambda adata, table: (adata[:1].copy(), table),
    "two conditions": lambda adata, table: (adata[:2].copy(), table),
    "one perturbation in two contexts": lambda adata, table: (adata[[0, 8]].copy(), table),
    "a context with one perturbation": lambda adata, table: (adata[:9].copy(), table),
    "one gene": lambda adata, table: (adata[:, :1].copy(), table),
    "genes of zeros": zeros_in("X", (slice(None), slice(0, 5))),
    "a condition without any change": zeros_in("X", 0),
    "variances of zero": zeros_in("variance", slice(None)),
    "a variance of zero": zeros_in("variance", 0),
    "a constant table": lambda adata, table: (adata, 0 * table + 1),
    "the same row for all": lambda adata, table: (adata, table * 0 + table.iloc[0]),
    "a row of a table twice": lambda adata, table: (adata, pd.concat([table, table.iloc[:1]])),
}


@pytest.mark.parametrize("make", LITTLE.values(), ids=LITTLE.keys())
def test_little_data_and_odd_values_give_finite_predictions(make):
    adata, table = make(*screen(n=8))
    model = fit(adata, tables=table, variance_layer="variance")
    for use_measured in (True, False):
        predicted = model.predict(use_measured=use_measured)
        assert np.isfinite(predicted.X).all()
        assert (np.isfinite(predicted.layers["sd"]) & (predicted.layers["sd"] >= 0)).all()
    assert model.report(losses=False).attrs["text"]
