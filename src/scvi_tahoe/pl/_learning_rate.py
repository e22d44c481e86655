"""Figure of a learning-rate range test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.pl._style import BASELINE, OBSERVED, PREDICTED, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


def learning_rate_test(rates: NDArray, losses: NDArray, smoothed: NDArray, suggestion: float | None = None) -> Figure:
    """Draw the loss against a growing learning rate.

    Parameters
    ----------
    rates, losses, smoothed
        Learning rate, loss and smoothed loss (NaN where not available yet) of each step, ``[steps]``.
    suggestion
        Learning rate to mark, if any.
    """
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
