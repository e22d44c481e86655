"""Figures of scores: against baseline and ceiling, between predictions, by strength of an effect; and of losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_tahoe._arguments import checked
from scvi_tahoe.pl._figure import (
    BASELINE,
    CEILING,
    OBSERVED,
    PREDICTED,
    label_points,
    new_figure,
    register_figure,
    style,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from scvi_tahoe.pl._figure import Result

#: shares beyond these limits are clipped and marked by an arrow
_LIMITS = (-0.5, 1.5)


@register_figure
@checked()
def bars(result: Result, *, metrics: Sequence[str] | None = None) -> Figure:
    """Draw how far each score got from the baseline (0) to the ceiling (1), with its 95 % interval and its values.

    Shows ``metrics`` from top to bottom. If None, all that have a share; a ValueError if none has a baseline and a
    ceiling.
    """
    table = result.summary if metrics is None else result.summary.loc[list(metrics)]
    table = table[table["scaled"].notna()].iloc[::-1]
    if table.empty:
        raise ValueError(
            "No score has both a baseline and a ceiling; evaluate with baseline=... and a reference with ceiling=True."
        )
    rows = range(len(table))
    with style():
        figure = new_figure(6.8, 0.25 * len(table) + 0.9)
        ax, right = figure.subplots(1, 2, width_ratios=(3, 1.6), sharey=True)
        share = table["scaled"].clip(*_LIMITS)
        # light, so that the interval shows on the bar, in grey too
        ax.barh(rows, share, color=PREDICTED, alpha=0.55, linewidth=0, height=0.62)
        intervals = table[["scaled_low", "scaled_high"]].clip(*_LIMITS).to_numpy()
        ax.hlines(rows, *intervals.T, color=CEILING, linewidth=0.9)
        for row, (value, shown) in enumerate(zip(table["scaled"], share)):
            if value != shown:
                ax.plot(shown, row, marker=">" if value > 0 else "<", color=PREDICTED, markersize=7, clip_on=False)
        ax.axvline(0, color=BASELINE, linewidth=1.2)
        ax.axvline(1, color=CEILING, linewidth=1.2, linestyle="--")
        ax.set(xlim=_LIMITS, ylim=(-0.6, len(table) - 0.4))
        ax.set_yticks(rows, [result.metric_label(str(name)) for name in table.index])
        ax.set_xticks([0, 0.5, 1], ["0\nbaseline", "0.5", "1\nreplicate"])
        ax.tick_params(axis="y", length=0)
        right.set_axis_off()
        right.set_xlim(-0.5, 2.5)
        for x, name in enumerate(("value", "baseline", "ceiling")):
            right.text(x, len(table) - 0.4, name, ha="center", va="bottom", fontsize=7)
            for y, number in enumerate(table[name]):
                right.text(x, y, f"{number:.3g}", ha="center", va="center", fontsize=7)
        baseline = result.provenance.get("baseline")
        figure.suptitle(f"Share of the way from the baseline ({baseline}) to a replicate experiment", fontsize=9)
    return figure


@checked()
def comparison(results: Mapping[str, Result], *, metrics: Sequence[str] | None = None) -> Figure:
    """Draw a table with one row per prediction, shaded from the baseline (white) to the ceiling (dark).

    Arguments and errors are those of :func:`~scvi_tahoe.evaluate.compare_results`.
    """
    if not results:
        raise ValueError("There is no result to compare.")
    first = next(iter(results.values()))
    table = first.comparison(results, metrics=metrics)
    scaled = pd.DataFrame({name: result.summary["scaled"] for name, result in results.items()}).T
    # NaN in rows and columns that the table adds
    shares = scaled.reindex(index=table.index, columns=table.columns).to_numpy(float)
    labels = [first.metric_label(str(metric)) for metric in table]
    labels = [s.replace(" (", "\n(").replace(" of ", "\nof ").replace(" to ", "\nto ") for s in labels]
    with style():
        width = max(len(str(name)) for name in table.index) * 0.075 + 0.3
        figure = new_figure(width + 0.95 * len(labels), 0.28 * len(table) + 0.75)
        ax = figure.subplots()
        for (row, column), value in np.ndenumerate(table.to_numpy(float)):
            _draw_entry(ax, row, column, value, float(shares[row, column]))
        ax.set(xlim=(-0.5, len(labels) - 0.5), ylim=(len(table) - 0.5, -0.5))
        ax.set_xticks(range(len(labels)), labels)
        ax.set_yticks(range(len(table)), [str(name) for name in table.index])
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    return figure


def _draw_entry(ax: Axes, row: int, column: int, value: float, share: float) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    # only the lighter half of the map: black numbers are illegible beyond it
    color = "white" if np.isnan(share) else colormaps["Blues"](0.55 * float(np.clip(share, 0, 1)))
    ax.add_patch(Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, facecolor=color, edgecolor="none"))
    if not np.isnan(value):
        digits = 2 if abs(value) >= 10 else 3 if abs(value) >= 0.1 else 4
        ax.text(column, row, f"{value:.{digits}f}", ha="center", va="center", fontsize=7.5)


@register_figure
@checked()
def ranks(result: Result, *, metric: str = "discrimination_score_l1", n_labels: int = 12) -> Figure:
    """Draw the discrimination score of each perturbation against its number of differentially expressed genes.

    Without differential expression, the length of the observed delta replaces the number of genes. Another ``metric``
    takes the vertical axis (a KeyError if the result lacks it); the ``n_labels`` lowest scores are named.
    """
    from matplotlib.ticker import ScalarFormatter

    scores = result.per_perturbation
    if metric not in scores:
        raise KeyError(f"The result has no metric {metric!r}; it has {list(scores.columns)}.")
    counted = "n_de_observed" in scores
    x = scores["n_de_observed"].to_numpy(float) if counted else np.linalg.norm(result.effects.observed, axis=1)
    y = scores[metric].to_numpy(float)
    several = len(result.provenance["contexts"]) > 1
    names = [f"{perturbation} ({context})" if several else str(perturbation) for context, perturbation in scores.index]
    with style():
        figure = new_figure(4.4, 3.1)
        ax = figure.subplots()
        ax.axhline(0.5, color=BASELINE, linewidth=0.8, linestyle="--")
        ax.scatter(x, y, s=22, color=PREDICTED, alpha=0.85, linewidths=0, clip_on=False)
        if counted:
            ax.set_xscale("symlog", linthresh=1)
            ax.xaxis.set_major_formatter(ScalarFormatter())
            ax.set_xlim(-0.2, max(10, 1.6 * x.max()))
        ax.set_ylim(-0.03, 1.06)
        ax.set_xlabel("differentially expressed genes, observed" if counted else "length of the observed delta")
        ax.set_ylabel(result.metric_label(metric))
        ax.text(0.995, 0.5, "chance", transform=ax.get_yaxis_transform(), ha="right", va="bottom", fontsize=7)
        ax.set_title("Discrimination against strength of the perturbation", loc="left")
        figure.draw_without_rendering()
        lowest = np.argsort(y, kind="stable")[:n_labels]
        label_points(ax, x[lowest], y[lowest], [names[i] for i in lowest], avoid=np.column_stack([x, y]))
    return figure


@checked()
def learning_rate_test(rates: NDArray, losses: NDArray, smoothed: NDArray, suggestion: float | None = None) -> Figure:
    """Draw the loss and the smoothed loss (NaN where not available yet) of each step, ``[steps]``, against its rate."""
    with style():
        figure = new_figure(3.6, 2.4)
        ax = figure.add_subplot()
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
        figure.legend(loc="outside upper center", ncols=3)
    return figure
