"""Do predicted cells look like cells? Totals and zeros of both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.pl._style import OBSERVED, PREDICTED, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scvi_tahoe.evaluate import EvaluationResult

__all__ = ["cells"]


def cells(result: EvaluationResult) -> Figure:
    """Draw the distribution of cell totals (sum of expm1) and of the share of zeros, observed and predicted.

    A wrong normalisation shows as two totals far apart, a decoder of means as cells without zeros.

    Parameters
    ----------
    result
        Result.
    """
    with style():
        figure = new_figure(6.2, 2.6)
        left, right = figure.subplots(1, 2)
        _histogram(left, result, "total", log=True)
        left.set(xlabel="total of a cell (sum of expm1)", ylabel="share of cells")
        _histogram(right, result, "zero_fraction", log=False)
        right.set(xlabel="share of zeros in a cell", xlim=(-0.02, 1.02))
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        figure.suptitle("Cells of both sides", fontsize=9, x=0.01, ha="left")
    return figure


def _histogram(ax: Axes, result: EvaluationResult, column: str, *, log: bool) -> None:
    from matplotlib.ticker import LogLocator, ScalarFormatter

    values = result.cells[column].to_numpy(float)
    if log:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_formatter(ScalarFormatter())
        ax.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        positive = values[values > 0]
        # at least a factor of four across, so that equal totals do not look like a wide distribution
        middle = np.sqrt(positive.min() * positive.max())
        half = max(np.sqrt(positive.max() / positive.min()) * 1.05, 2.0)
        edges = np.geomspace(middle / half, middle * half, 41)
    else:
        edges = np.linspace(0, 1, 41)
    for side, color, line in (("observed", OBSERVED, "-"), ("predicted", PREDICTED, "--")):
        shown = result.cells.loc[result.cells["side"] == side, column]
        weights = np.full(len(shown), 1 / max(len(shown), 1))
        ax.hist(
            shown,
            bins=list(edges),
            weights=weights,
            histtype="step",
            color=color,
            linestyle=line,
            linewidth=1.6,
            label=side,
        )
        ax.hist(shown, bins=list(edges), weights=weights, color=color, alpha=0.15)
