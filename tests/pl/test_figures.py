"""Every figure can be drawn from a result, keeps within its frame, and refuses what it cannot show."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.text import Text

from scvi_tahoe import pl
from scvi_tahoe.datasets import papalexi_few_shot, simulate_screen
from scvi_tahoe.evaluate import EvaluationReference, baseline_results


@pytest.fixture(scope="module")
def results():
    task = papalexi_few_shot()
    keys = {"perturbation_key": task.perturbation_key, "control": task.control, "context_key": task.context_key}
    reference = EvaluationReference.from_adata(task.held_out, baseline_from=task.train, **keys)
    return baseline_results(reference, ("train_mean", "context_transfer", "cells_quantile"))


@pytest.fixture(scope="module")
def result(results):
    return results["cells_quantile"]


FIGURES = ("bars", "cells", "comparison", "deltas", "fold_changes", "ranks", "similarity")


def draw(name, results):
    if name == "comparison":
        return pl.comparison(results)
    result = results["context_transfer" if name == "cells" else "cells_quantile"]
    first = result.per_perturbation.index[0][1]
    return result.plot(name, **({"perturbation": first} if name == "fold_changes" else {}))


@pytest.fixture(scope="module")
def drugs():
    """Results on two contexts, perturbations and contexts with long names."""
    screen = simulate_screen(2, 9, n_genes=60, n_cells=30, seed=2)
    names = {f"perturbation_{i}": f"Trametinib (DMSO_TF solvate) {i}.0 uM" for i in range(1, 10)}
    screen.obs["drug"] = screen.obs["perturbation"].astype(str).map(names | {"control": "DMSO_TF"})
    screen.obs["line"] = "NCI-H596 " + screen.obs["context"].astype(str)
    held_out = screen.obs["drug"].isin(list(names.values())[:5])
    sides = screen[held_out | (screen.obs["drug"] == "DMSO_TF")].copy(), screen[~held_out].copy()
    keys = {"perturbation_key": "drug", "control": "DMSO_TF", "context_key": "line"}
    reference = EvaluationReference.from_adata(sides[0], baseline_from=sides[1], **keys)
    found = baseline_results(reference, ("train_mean", "control"))
    return {"context_transfer": found["train_mean"], "cells_quantile": found["control"]}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("screen", ["results", "drugs"])
def test_no_two_texts_overlap_and_none_is_cut(request, screen, name):
    figure = draw(name, request.getfixturevalue(screen))
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    width, height = figure.canvas.get_width_height()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts(figure)]
    assert [t for t, box in boxes if box.x0 <= -1 or box.x1 >= width + 1 or box.y0 <= -1 or box.y1 >= height + 1] == []
    overlaps = [(a, b) for (a, one), (b, two) in itertools.combinations(boxes, 2) if overlap(one, two)]
    assert not overlaps


def texts(figure):
    """Everything written in a figure; matplotlib keeps labels of ticks beyond the limits, which it does not draw."""
    hidden = set()
    for ax in figure.axes:
        for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not ax.axison or not min(limits) <= tick.get_loc() <= max(limits):
                    hidden |= {tick.label1, tick.label2}
    return [t for t in set(figure.findobj(Text)) - hidden if t.get_visible() and t.get_text().strip()]


def overlap(a, b):
    slack = 1.5  # boxes include a little air around the letters
    return min(a.x1, b.x1) - max(a.x0, b.x0) > slack and min(a.y1, b.y1) - max(a.y0, b.y0) > slack


def test_figures_leave_pyplot_and_the_settings_alone(results):
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    before, open_figures = dict(mpl.rcParams), plt.get_fignums()
    for name in FIGURES:
        draw(name, results)
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == open_figures


def test_a_figure_is_shown_by_any_notebook_without_setting_up_pyplot(result):
    assert result.plot("bars")._repr_png_().startswith(b"\x89PNG")


def test_a_figure_is_saved_shown_and_returned_as_in_scanpy(result, tmp_path, monkeypatch):
    from matplotlib import pyplot as plt

    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    assert pl.ranks(result, save=tmp_path / "ranks.pdf") is not None
    assert (tmp_path / "ranks.pdf").read_bytes().startswith(b"%PDF")
    assert pl.ranks(result, save=tmp_path / "ranks") is not None
    assert (tmp_path / "ranks.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"ranks\.docx cannot be drawn; allowed endings are"):
        pl.ranks(result, save=tmp_path / "ranks.docx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ranks.pdf", "ranks.png"]
    assert pl.ranks(result, show=True) is None
    assert pl.ranks(result, show=True, return_fig=True) is not None
    assert [[ax.get_ylabel() for ax in figure.axes] for figure in shown] == [["PDS (L1)"]] * 2
    plt.close("all")


@pytest.mark.parametrize("name", ["ranks", "similarity", "fold_changes"])
def test_a_figure_of_one_panel_is_drawn_into_given_axes(result, name):
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    FigureCanvasSVG(figure)  # a canvas that cannot measure text itself
    first, second = figure.subplots(1, 2)
    arguments = {"perturbation": "JAK2"} if name == "fold_changes" else {}
    assert result.plot(name, ax=second, **arguments) is None
    assert second.has_data()
    assert not first.has_data()


def test_r_is_given_without_the_perturbed_gene_and_next_to_that_of_a_replicate(result):
    (ax,) = pl.deltas(result, ["CMTM6"]).axes
    row = [p for _, p in result.effects.conditions].index("CMTM6")
    others = result.effects.genes != "CMTM6"
    r = np.corrcoef(result.effects.observed[row, others], result.effects.predicted[row, others])[0, 1]
    ceiling = result.ceiling_of_conditions("pearson_without_target")["rep_3", "CMTM6"]
    assert f"r = {r:.2f}" + (f" ({ceiling:.2f})" if ceiling == ceiling else "") in ax.get_title()


@pytest.mark.parametrize(
    ("metric", "chance"),
    [("discrimination_score_l1", "chance\n0.54"), ("pds_cosine", "chance\n0.50"), ("mae", None)],
)
def test_the_line_of_chance_is_that_of_the_score(result, metric, chance):
    texts = [text.get_text() for text in pl.ranks(result, metric=metric).axes[0].texts]
    assert [text for text in texts if text.startswith("chance")] == ([chance] if chance else [])


def test_the_page_of_deltas_shows_the_strongest_first_or_what_is_asked_for(result):
    titles = [ax.get_title().split("\n")[0] for ax in result.plot("deltas", max_panels=2).axes]
    assert titles == ["JAK2", "IFNGR1"]
    titles = [ax.get_title().split("\n")[0] for ax in pl.deltas(result, ["MYC", "STAT2"]).axes]
    assert titles == ["MYC", "STAT2"]


def test_a_long_title_is_cut_in_its_name_and_keeps_the_rest(drugs):
    titles = [ax.get_title() for ax in drugs["context_transfer"].plot("deltas").axes if ax.get_title()]
    assert all(title.startswith("Trametinib (DMSO") for title in titles)
    assert all("NCI-H596 context_" in title.split("\n")[1] for title in titles)


def test_names_tell_the_context_where_there_are_several(drugs, results):
    def names(result):
        return [text.get_text() for text in result.plot("ranks").axes[0].texts]

    assert any("(NCI-H596 context_" in name for name in names(drugs["cells_quantile"]))
    assert "MYC" in names(results["cells_quantile"])


def test_a_prediction_of_no_change_is_said_to_be_one(results):
    result = results["train_mean"]
    nothing = replace(result.effects, predicted=np.zeros_like(result.effects.predicted))
    figure = pl.deltas(replace(result, effects=nothing), max_panels=1)
    assert "no change predicted" in figure.axes[0].get_title()


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        pytest.param(lambda r: r.plot("pie"), ValueError, "kind='pie' is unknown; allowed", id="unknown figure"),
        pytest.param(lambda r: pl.deltas(r, ["nothing"]), KeyError, "were not scored", id="unknown deltas"),
        pytest.param(lambda r: pl.fold_changes(r, "nothing"), KeyError, "was not scored", id="unknown fold changes"),
        pytest.param(lambda r: pl.similarity(r, context="x"), KeyError, "not scored; there are", id="unknown context"),
        pytest.param(lambda r: pl.ranks(r, metric="nothing"), KeyError, "no metric 'nothing'", id="unknown metric"),
        pytest.param(
            *(lambda r: pl.fold_changes(replace(r, de_observed=None), "JAK2"), ValueError, "no differential expr"),
            id="no tests",
        ),
        pytest.param(
            *(lambda r: pl.bars(replace(r, summary=r.summary.assign(scaled=np.nan))), ValueError, "both a baseline"),
            id="no shares",
        ),
        pytest.param(lambda r: pl.comparison({}), ValueError, "no result to compare", id="no results"),
    ],
)
def test_what_cannot_be_shown_is_refused(result, draw, error, message):
    with pytest.raises(error, match=message):
        draw(result)
