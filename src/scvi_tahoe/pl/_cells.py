"""Figure of predicted and observed cells: totals and zeros."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_tahoe.pl._draw import register_figure
from scvi_tahoe.pl._style import OBSERVED, PREDICTED, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from scvi_tahoe.pl._draw import Result


@register_figure
def cells(result: Result) -> Figure:
    """Draw the distribution of cell totals (sum of expm1) and of the share of zeros, observed and predicted.

    A wrong normalisation shows as two totals far apart, a decoder of means as cells without zeros.
    """
    from matplotlib.ticker import LogLocator, ScalarFormatter

    with style():
        figure = new_figure(6.2, 2.6)
        left, right = figure.subplots(1, 2)
        left.set_xscale("log")
        left.xaxis.set_major_formatter(ScalarFormatter())
        left.xaxis.set_minor_formatter(ScalarFormatter())
        left.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        _draw_histogram(left, result, "total", _total_edges(result.cells["total"].to_numpy(float)))
        left.set(xlabel="total of a cell (sum of expm1)", ylabel="share of cells")
        _draw_histogram(right, result, "zero_fraction", np.linspace(0, 1, 41))
        right.set(xlabel="share of zeros in a cell", xlim=(-0.02, 1.02))
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        figure.suptitle("Cells of both sides", fontsize=9, x=0.01, ha="left")
    return figure


def _total_edges(totals: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return bins over a factor of four or more, so that equal totals do not look like a wide distribution."""
    low, high = (positive := totals[totals > 0]).min(), positive.max()
    middle = np.sqrt(low * high)
    half = max(np.sqrt(high / low) * 1.05, 2.0)
    return np.geomspace(middle / half, middle * half, 41)


def _draw_histogram(ax: Axes, result: Result, column: str, edges: NDArray[np.floating]) -> None:
    for side, color, line in (("observed", OBSERVED, "-"), ("predicted", PREDICTED, "--")):
        values = result.cells.loc[result.cells["side"] == side, column]
        bins: dict[str, Any] = {"bins": list(edges), "weights": np.full(len(values), 1 / max(len(values), 1))}
        ax.hist(values, histtype="step", linestyle=line, linewidth=1.6, label=side, color=color, **bins)
        ax.hist(values, alpha=0.15, color=color, **bins)
