"""Figures of conditions show what tables say."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scvi_tahoe import pl
from scvi_tahoe.effects import condition_embedding, dose_response, interactions


@pytest.fixture(scope="module")
def effects():
    labels = ["A", "B", "A+B"]
    changes = np.random.default_rng(0).normal(size=(3, 30)).astype(np.float32)
    var = pd.DataFrame(index=[f"gene_{i}" for i in range(30)])
    obs = pd.DataFrame({"perturbation": labels}, index=labels)
    return AnnData(changes, obs=obs, var=var, layers={"sd": np.full_like(changes, 0.2)})


def test_a_volcano_names_the_surest_genes(effects):
    figure = pl.volcano(effects, "A", n_genes=3)
    surest = effects.var_names[np.argsort(-np.abs(effects["A"].X[0]))[0]]
    assert surest in {text.get_text() for text in figure.axes[0].texts}
    with pytest.raises(KeyError, match="no condition 'C'"):
        pl.volcano(effects, "C")


def test_a_ranked_plot_has_the_largest_and_the_smallest_values_in_order(effects):
    axes = pl.ranked(effects, "B", n=4).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    order = effects.var_names[np.argsort(-effects["B"].X[0])]
    assert names == [*order[:4], *order[-4:]]
    ranking = pd.DataFrame({"score": [0.9, 0.1, -0.5], "sd": 0.1}, index=["x", "y", "z"])
    assert [label.get_text() for label in pl.ranked(ranking).axes[0].get_yticklabels()] == ["x", "y", "z"]
    with pytest.raises(KeyError, match="no condition"):
        pl.ranked(effects, "C")


def test_a_map_has_a_point_for_every_condition_and_names_the_largest(effects):
    embedding = condition_embedding(effects)
    embedding.obs["kind"] = ["single", "single", "pair"]
    axes = pl.condition_map(embedding, "kind", n_names=1).axes[0]
    assert sum(len(points.get_offsets()) for points in axes.collections) == 3
    largest = embedding.obs_names[embedding.obs["effect_size"].argmax()]
    assert [text.get_text() for text in axes.texts] == [largest]
    with pytest.raises(KeyError, match="no column 'line'"):
        pl.condition_map(embedding, "line")
    embedding.obs["many"] = "a"
    with pytest.raises(ValueError, match="one component"):
        pl.condition_map(embedding[:, :1].copy())


def test_the_heat_map_has_the_score_of_every_pair_on_both_sides(effects):
    pairs = interactions(effects, perturbation_key="perturbation", separator="+")
    shown = np.asarray(pl.interactions(pairs).axes[0].images[0].get_array(), dtype=float)
    assert shown[0, 1] == shown[1, 0] == pytest.approx(pairs.obs["magnitude"].iloc[0])
    assert np.isnan(shown[0, 0])


def test_a_dose_response_shades_what_was_not_measured():
    doses = np.array([0.1, 1.0, 10.0, 100.0])
    obs = pd.DataFrame({"drug": ["D"] * 4, "dose": doses}, index=list("abcd"))
    effects = AnnData((doses / (1 + doses))[:, None], obs=obs, var=pd.DataFrame(index=["MDM2"]))
    fits = dose_response(effects, ["MDM2"], perturbation_key="drug", dose_key="dose")
    axes = pl.dose_response(effects, fits, "MDM2", dose_key="dose", perturbation_key="drug").axes[0]
    assert axes.get_xlim() == pytest.approx((0.01, 1000))
    assert len(axes.patches) == 2
    with pytest.raises(KeyError, match="TP53"):
        pl.dose_response(effects, fits, "TP53")
    with pytest.raises(KeyError, match="perturbation_key"):
        pl.dose_response(effects, fits, "MDM2", perturbation_key="compound")


def test_a_dose_response_of_a_model_needs_no_names_of_columns():
    doses = np.array([0.1, 1.0, 10.0, 100.0])
    obs = pd.DataFrame({"drug": ["D"] * 4, "dose": doses}, index=list("abcd"))
    effects = AnnData((doses / (1 + doses))[:, None], obs=obs, var=pd.DataFrame(index=["MDM2"]))
    effects.uns["scvi_tahoe_effects"] = {"perturbation_key": "drug", "dose_key": "dose"}
    fits = dose_response(effects, ["MDM2"])
    for table in (fits, fits[fits["drug"] == "D"]):
        (points,) = pl.dose_response(effects, table, "MDM2").axes[0].containers
        np.testing.assert_allclose(points.lines[0].get_xdata(), doses)
    from_a_file = pd.read_csv(io.StringIO(fits.to_csv(index=False)))
    with pytest.raises(ValueError, match="give dose_key"):
        pl.dose_response(effects, from_a_file, "MDM2")
    assert pl.dose_response(effects, from_a_file, "MDM2", dose_key="dose")


def test_a_dose_response_has_the_points_of_its_own_context():
    doses = np.array([0.1, 1.0, 10.0, 100.0] * 2)
    obs = pd.DataFrame({"drug": ["D"] * 8, "line": ["A"] * 4 + ["B"] * 4, "dose": doses}, index=list("abcdefgh"))
    change = doses / (1 + doses) * np.repeat([1.0, -1.0], 4)
    effects = AnnData(change[:, None], obs=obs, var=pd.DataFrame(index=["MDM2"]))
    fits = dose_response(effects, ["MDM2"], perturbation_key="drug", dose_key="dose", context_key="line")
    axes = pl.dose_response(effects, fits, "MDM2").axes[0]
    assert [text.get_text().split(",")[0] for text in axes.get_legend().get_texts()] == ["D in A", "D in B"]
    for container, sign in zip(axes.containers, (1, -1), strict=True):
        np.testing.assert_allclose(np.sign(container.lines[0].get_ydata()), [sign] * 4)


def test_knock_downs_are_sorted_and_coloured_by_their_marks():
    report = pd.DataFrame({
        "target_gene": ["A", "B"], "target": ["A", "B"], "target_change": [-0.1, -1.0],
        "marks": ["target unchanged", ""],
    })  # fmt: skip
    axes = pl.knock_downs(report).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["B", "A"]
    assert len({patch.get_facecolor() for patch in axes.patches}) == 2
    with pytest.raises(ValueError, match="nothing to draw"):
        pl.knock_downs(report.assign(target=None))
