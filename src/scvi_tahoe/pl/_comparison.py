"""A table of several predictions, shaded by how far each got."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.evaluate import compare_results, metric_info
from scvi_tahoe.pl._style import new_figure, style

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scvi_tahoe.evaluate import EvaluationResult

__all__ = ["comparison"]


def comparison(results: Mapping[str, EvaluationResult], *, metrics: Sequence[str] | None = None) -> Figure:
    """Draw a table of several predictions, a row each, shaded from the baseline (white) to the ceiling (dark).

    Parameters
    ----------
    results
        Results by name, all against the same truth.
    metrics
        Metrics to show; by default the headline ones.

    Raises
    ------
    ValueError
        If the results cannot be compared.
    """
    table = compare_results(results, metrics=metrics)
    labels = [
        metric_info(str(column)).label.replace(" (", "\n(").replace(" of ", "\nof ").replace(" to ", "\nto ")
        for column in table
    ]
    with style():
        width = max(len(str(name)) for name in table.index) * 0.075 + 0.3
        figure = new_figure(width + 0.95 * len(labels), 0.28 * len(table) + 0.75)
        ax = figure.subplots()
        values = table.to_numpy(float)
        for row, name in enumerate(table.index):
            for column, metric in enumerate(table):
                share = _share(results, name, str(metric))
                _cell(ax, row, column, values[row, column], share)
        ax.set(xlim=(-0.5, len(labels) - 0.5), ylim=(len(table) - 0.5, -0.5))
        ax.set_xticks(range(len(labels)), labels)
        ax.set_yticks(range(len(table)), [str(name) for name in table.index])
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    return figure


def _share(results: Mapping[str, EvaluationResult], name: str, metric: str) -> float:
    """Share of the way from baseline to ceiling; NaN for the ceiling's own row and for the overall score."""
    if name not in results or metric not in results[name].summary.index:
        return float("nan")
    return float(results[name].summary["scaled"][metric])


def _cell(ax: Axes, row: int, column: int, value: float, share: float) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    # half of the map is enough: beyond it black figures could no longer be read
    color = "white" if np.isnan(share) else colormaps["Blues"](0.55 * float(np.clip(share, 0, 1)))
    ax.add_patch(Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, facecolor=color, edgecolor="none"))
    if not np.isnan(value):
        digits = 2 if abs(value) >= 10 else 3 if abs(value) >= 0.1 else 4
        ax.text(column, row, f"{value:.{digits}f}", ha="center", va="center", fontsize=7.5)
