"""The figure of a learning-rate range test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvi_tahoe.pl._style import BASELINE, OBSERVED, PREDICTED, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["learning_rate_test"]


def learning_rate_test(rates: NDArray, losses: NDArray, smoothed: NDArray, suggestion: float | None = None) -> Figure:
    """Draw the loss against a growing learning rate.

    Parameters
    ----------
    rates, losses, smoothed
        Learning rate, loss and smoothed loss of each step, ``[steps]``.
    suggestion
        Rate to mark; None marks none.

    Returns
    -------
    The figure.
    """
    with style():
        figure = new_figure(3.6, 2.4)
        ax = figure.add_subplot()
        ax.plot(rates, losses, color=BASELINE, linewidth=0.6, label="each step")
        ax.plot(rates, smoothed, color=PREDICTED, linewidth=1.4, label="smoothed")
        if suggestion is not None:
            ax.axvline(suggestion, color=OBSERVED, linestyle="--", label=f"suggestion {suggestion:.1e}")
        low, high = smoothed.min(), smoothed[0]
        ax.set_ylim(low - 0.15 * (high - low), high + 0.6 * (high - low))
        ax.set_xscale("log")
        ax.set_xlabel("learning rate")
        ax.set_ylabel("training loss")
        ax.legend()
    return figure
