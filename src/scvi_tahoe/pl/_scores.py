"""Figures of scores: against baseline and ceiling, between predictions, by strength of an effect; and of losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import numpy as np
import pandas as pd

from scvi_tahoe._arguments import checked
from scvi_tahoe.pl._figure import (
    BASELINE,
    CEILING,
    OBSERVED,
    PREDICTED,
    drawn,
    label_points,
    new_figure,
    one_panel,
    register_figure,
    style,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from scvi_tahoe.pl._figure import FigureOutput, Result

#: shares beyond these limits are clipped and marked by an arrow
_LIMITS = (-0.5, 1.5)
#: numbers that are shown as 0
_ZERO = 1e-6
#: diameter of a dot in points
_DOT = 5


@register_figure
@checked()
def bars(result: Result, *, metrics: Sequence[str] | None = None, **output: Unpack[FigureOutput]) -> Figure:
    """Draw how far each score got from the baseline (0) to the ceiling (1), with its 95 % interval and its values.

    Shows ``metrics`` from top to bottom. If None, all that have a share, except those with the same numbers as an
    earlier one, such as DES among the first 100 and 200 genes of a small panel; a ValueError if none has a baseline and
    a ceiling. Above 1, a prediction is closer than a replicate of the observed size, which is noisy itself.
    """
    table = result.summary if metrics is None else result.summary.loc[list(metrics)]
    table = table[table["scaled"].notna()]
    if metrics is None:
        table = table[~table[["value", "baseline", "ceiling"]].round(6).duplicated()]
    table = table.iloc[::-1]
    if table.empty:
        raise ValueError(
            "No score has both a baseline and a ceiling; evaluate with baseline=... and a reference with ceiling=True."
        )
    rows = range(len(table))
    with style():
        figure = new_figure(7.2, 0.27 * len(table) + 1.1)
        ax, right = figure.subplots(1, 2, width_ratios=(3, 1.8), sharey=True)
        share = table["scaled"].clip(*_LIMITS)
        # light, so that the interval shows on the bar, in grey too
        ax.barh(rows, share, color=PREDICTED, alpha=0.55, linewidth=0, height=0.62)
        intervals = table[["scaled_low", "scaled_high"]]
        ax.hlines(rows, *intervals.clip(*_LIMITS).to_numpy().T, color=CEILING, linewidth=0.9)
        ends = [("scaled", PREDICTED, 7), ("scaled_low", CEILING, 4), ("scaled_high", CEILING, 4)]
        for column, color, size in ends:  # beyond the limits
            for limit, marker in zip(_LIMITS, "<>"):
                beyond = table[column] < limit if marker == "<" else table[column] > limit
                places = np.flatnonzero(beyond)
                ax.plot(np.full(len(places), limit), places, marker, color=color, markersize=size, clip_on=False)
        ax.axvline(0, color=BASELINE, linewidth=1.2)
        ax.axvline(1, color=CEILING, linewidth=1.2, linestyle="--")
        ax.set(xlim=_LIMITS, ylim=(-0.6, len(table) - 0.4))
        ax.set_yticks(rows, [result.metric_label(str(name)) for name in table.index])
        ax.set_xticks([0, 0.5, 1], ["0\nbaseline", "0.5", "1\nreplicate"])
        note = "" if intervals.notna().all(axis=None) else "; no line: a single number for all perturbations"
        figure.supxlabel(f"line: 95 % interval{note}", fontsize=8)
        ax.tick_params(axis="y", length=0)
        right.set_axis_off()
        right.set_xlim(-0.5, 2.5)
        for x, name in enumerate(("value", "baseline", "ceiling")):
            right.text(x, len(table) - 0.4, name, ha="center", va="bottom", fontsize=8)
            for y, number in enumerate(table[name]):
                right.text(x, y, f"{0 if abs(number) < _ZERO else number:.3g}", ha="center", va="center", fontsize=8)
        baseline = result.provenance.get("baseline")
        figure.suptitle(f"Share of the way from the baseline ({baseline}) to a replicate experiment", fontsize=10)
    return figure


@drawn
@checked()
def comparison(
    results: Mapping[str, Result],
    *,
    metrics: Sequence[str] | None = None,
    ax: Axes | None = None,
    **output: Unpack[FigureOutput],
) -> Figure:
    """Draw a table with one row per prediction, shaded from the baseline (white) to the ceiling (dark).

    Arrows say which way is better, and the best prediction of each column is bold. Other arguments and errors are those
    of :func:`~scvi_tahoe.evaluate.compare_results`.
    """
    if not results:
        raise ValueError("There is no result to compare.")
    first = next(iter(results.values()))
    table = first.comparison(results, metrics=metrics)
    scaled = pd.DataFrame({name: result.summary["scaled"] for name, result in results.items()}).T
    # NaN in rows and columns that the table adds
    shares = scaled.reindex(index=table.index, columns=table.columns).to_numpy(float)
    direction = first.summary["direction"].reindex(table.columns).fillna("higher")
    arrows = direction.map({"higher": " \N{UPWARDS ARROW}", "lower": " \N{DOWNWARDS ARROW}"}).fillna("")
    labels = [first.metric_label(str(metric)) + arrow for metric, arrow in arrows.items()]
    labels = [s.replace(" (", "\n(").replace(" of ", "\nof ").replace(" to ", "\nto ") for s in labels]
    own = table.loc[table.index.isin(list(results))]
    best = [own[m].min() if way == "lower" else own[m].max() for m, way in direction.items()]
    with style():
        width = max(len(str(name)) for name in table.index) * 0.085 + 0.3
        figure, ax = one_panel(ax, width + 1.05 * len(labels), 0.3 * len(table) + 1.1)
        for (row, column), value in np.ndenumerate(table.to_numpy(float)):
            bold = (
                len(own) > 1 and table.index[row] in own.index and value == best[column] and bool(arrows.iloc[column])
            )
            _draw_entry(ax, row, column, value, float(shares[row, column]), bold=bold)
        if len(own) < len(table):
            ax.axhline(len(own) - 0.5, color=BASELINE, linewidth=0.8)
        ax.set(xlim=(-0.5, len(labels) - 0.5), ylim=(len(table) - 0.5, -0.5))
        ax.set_xticks(range(len(labels)), labels)
        ax.set_yticks(range(len(table)), [str(name) for name in table.index])
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_xlabel("white: at the baseline or below; dark: at the ceiling of a replicate; bold: best", fontsize=8)
    return figure


def _draw_entry(ax: Axes, row: int, column: int, value: float, share: float, *, bold: bool) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    # only the lighter half of the map: black numbers are illegible beyond it
    color = "white" if np.isnan(share) else colormaps["Blues"](0.55 * float(np.clip(share, 0, 1)))
    ax.add_patch(Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, facecolor=color, edgecolor="none"))
    if not np.isnan(value):
        text = f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
        ax.text(column, row, text, ha="center", va="center", fontsize=8, fontweight="bold" if bold else "normal")


@register_figure
@checked()
def ranks(
    result: Result,
    *,
    metric: str = "discrimination_score_l1",
    n_labels: int = 12,
    ax: Axes | None = None,
    **output: Unpack[FigureOutput],
) -> Figure:
    """Draw the discrimination score of each perturbation against its number of differentially expressed genes.

    Without differential expression, the length of the observed delta replaces the number of genes. Another ``metric``
    takes the vertical axis (a KeyError if the result lacks it); the ``n_labels`` lowest scores are named. A dashed line
    marks chance where it is known: 0.5 + 1 / (2 P) for P perturbations with the scores of cell-eval, 0.5 with
    ``"pds_cosine"`` and ``"centroid_accuracy"``. Perturbations on the same spot are drawn side by side.
    """
    from matplotlib.ticker import ScalarFormatter
    from matplotlib.transforms import ScaledTranslation

    scores = result.per_perturbation
    if metric not in scores:
        raise KeyError(f"The result has no metric {metric!r}; it has {list(scores.columns)}.")
    counted = "n_de_observed" in scores
    x = scores["n_de_observed"].to_numpy(float) if counted else np.linalg.norm(result.effects.observed, axis=1)
    y = scores[metric].to_numpy(float)
    several = len(result.provenance["contexts"]) > 1
    names = [f"{perturbation} ({context})" if several else str(perturbation) for context, perturbation in scores.index]
    chance = _chance(metric, scores.index)
    with style():
        figure, ax = one_panel(ax, 5.0, 3.4)
        beside = pd.DataFrame({"x": x, "y": y}).groupby(["x", "y"]).cumcount().to_numpy()
        for i in range(int(beside.max(initial=0)) + 1):
            shift = ScaledTranslation(i * _DOT / 72, 0, figure.dpi_scale_trans)
            here = beside == i
            ax.scatter(
                x[here],
                y[here],
                s=_DOT**2,
                color=PREDICTED,
                linewidths=0,
                clip_on=False,
                transform=ax.transData + shift,
            )
        if counted:
            ax.set_xscale("symlog", linthresh=1)
            ax.xaxis.set_major_formatter(ScalarFormatter())
            ax.set_xlim(-0.2, max(10, 1.6 * x.max()))
        else:
            ax.set_xlim(0, 1.1 * max(float(x.max()), 1e-6))
        low, high = np.nanmin([*y, chance]), np.nanmax([*y, chance])
        ax.set_ylim(low - 0.12 * max(high - low, 1e-3), high + 0.12 * max(high - low, 1e-3))
        ax.set_xlabel("differentially expressed genes, observed" if counted else "length of the observed delta")
        ax.set_ylabel(result.metric_label(metric))
        if not np.isnan(chance):
            ax.axhline(chance, color=BASELINE, linewidth=0.8, linestyle="--")
            ax.text(1.01, chance, f"chance\n{chance:.2f}", transform=ax.get_yaxis_transform(), va="center", fontsize=8)
        ax.set_title("Score of each perturbation and strength of its effect", loc="left")
        figure.draw_without_rendering()
        lowest = np.argsort(y, kind="stable")[:n_labels]
        label_points(ax, x[lowest], y[lowest], [names[i] for i in lowest], avoid=np.column_stack([x, y]))
    return figure


def _chance(metric: str, conditions: pd.Index) -> float:
    """Return the mean score of a prediction that says nothing; NaN if it is not known."""
    if metric.startswith("discrimination_score"):
        sizes = conditions.get_level_values("context").value_counts()
        return float(np.mean(0.5 + 0.5 / sizes))
    return 0.5 if metric in ("pds_cosine", "centroid_accuracy") else np.nan


@drawn
@checked()
def learning_rate_test(
    rates: NDArray,
    losses: NDArray,
    smoothed: NDArray,
    suggestion: float | None = None,
    *,
    ax: Axes | None = None,
    **output: Unpack[FigureOutput],
) -> Figure:
    """Draw the loss and the smoothed loss (NaN where not available yet) of each step, ``[steps]``, against its rate."""
    with style():
        figure, ax = one_panel(ax, 4.2, 2.8)
        ax.plot(rates, losses, color=BASELINE, linewidth=0.6, label="each step")
        ax.plot(rates, smoothed, color=PREDICTED, linewidth=1.4, label="smoothed")
        if suggestion is not None:
            ax.axvline(suggestion, color=OBSERVED, linestyle="--", label=f"suggestion {suggestion:.1e}")
        means = smoothed[np.isfinite(smoothed)]
        if len(means) and means.min() < means[0]:  # an exploding loss would flatten the rest
            fall = means[0] - means.min()
            ax.set_ylim(means.min() - 0.3 * fall, means[0] + fall)
        ax.set_xscale("log")
        ax.set_xlabel("learning rate")
        ax.set_ylabel("training loss")
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return figure
