"""Where each score lies between the baseline and a replicate experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvi_tahoe.evaluate import metric_info
from scvi_tahoe.pl._style import BASELINE, CEILING, PREDICTED, new_figure, style

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate import EvaluationResult

__all__ = ["bars"]

#: shares beyond this are cut off and marked by an arrow
_LIMITS = (-0.5, 1.5)


def bars(result: EvaluationResult, *, metrics: Sequence[str] | None = None) -> Figure:
    """Draw the share of the way from baseline (0) to ceiling (1) of each score, with its 95 % interval and its numbers.

    Parameters
    ----------
    result
        Result with a baseline and a ceiling.
    metrics
        Scores to show, from the top down; by default all that have a share.

    Raises
    ------
    ValueError
        If no score has both a baseline and a ceiling.
    """
    table = result.summary if metrics is None else result.summary.loc[list(metrics)]
    table = table[table["scaled"].notna()].iloc[::-1]
    if table.empty:
        msg = (
            "No score has both a baseline and a ceiling; evaluate with baseline=... and a reference with ceiling=True."
        )
        raise ValueError(msg)
    with style():
        figure = new_figure(6.8, 0.25 * len(table) + 0.9)
        ax, right = figure.subplots(1, 2, width_ratios=(3, 1.6), sharey=True)
        share = table["scaled"].clip(*_LIMITS)
        # light, so that the interval is seen on the bar, in grey too
        ax.barh(range(len(table)), share, color=PREDICTED, alpha=0.55, linewidth=0, height=0.62)
        whiskers = table[["scaled_low", "scaled_high"]].clip(*_LIMITS).to_numpy()
        ax.hlines(range(len(table)), *whiskers.T, color=CEILING, linewidth=0.9)
        for position, (value, shown) in enumerate(zip(table["scaled"], share)):
            if value != shown:  # an arrow at the end of a bar that goes on
                ax.plot(shown, position, marker=">" if value > 0 else "<", color=PREDICTED, markersize=7, clip_on=False)
        ax.axvline(0, color=BASELINE, linewidth=1.2)
        ax.axvline(1, color=CEILING, linewidth=1.2, linestyle="--")
        ax.set(xlim=_LIMITS, ylim=(-0.6, len(table) - 0.4))
        ax.set_yticks(range(len(table)), [metric_info(str(name)).label for name in table.index])
        ax.set_xticks([0, 0.5, 1], ["0\nbaseline", "0.5", "1\nreplicate"])
        ax.tick_params(axis="y", length=0)
        _numbers(right, table[["value", "baseline", "ceiling"]].to_numpy())
        baseline = result.provenance.get("baseline")
        figure.suptitle(f"Share of the way from the baseline ({baseline}) to a replicate experiment", fontsize=9)
    return figure


def _numbers(ax: Axes, numbers: NDArray[np.floating]) -> None:
    """Write value, baseline and ceiling in three columns."""
    ax.set_axis_off()
    ax.set_xlim(-0.5, 2.5)
    for x, name in enumerate(("value", "baseline", "ceiling")):
        ax.text(x, len(numbers) - 0.4, name, ha="center", va="bottom", fontsize=7)
        for y, number in enumerate(numbers[:, x]):
            ax.text(x, y, f"{number:.3g}", ha="center", va="center", fontsize=7)
