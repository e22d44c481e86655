"""What does scaling predicted effects gain, and what does it cost?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.pl._style import BASELINE, CEILING, OBSERVED, PREDICTED, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from scvi_tahoe.evaluate import EffectCalibration

__all__ = ["calibration"]

_PANELS = {
    "mae": "mean absolute error of the delta",
    "effect_size_ratio": "effect size, predicted / observed",
    "discrimination_score_l1": "discrimination (PDS, L1)",
}
_NAMES = {1: ("all",), 2: ("weaker", "stronger"), 3: ("weak", "medium", "strong")}
_COLOURS = (PREDICTED, OBSERVED, CEILING)


def calibration(result: EffectCalibration) -> Figure:
    """Draw error, effect size and discrimination of the validation conditions against the factor on their effects.

    Parameters
    ----------
    result
        Of :meth:`scvi_tahoe.TahoeST.calibrate`. Every bin of strength has a line; its chosen factor is the dot.
    """
    names = _NAMES[len(result.factors)]
    with style():
        figure = new_figure(7.0, 2.4)
        for ax, (score, label) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
            ax.axvline(1, color=BASELINE, linewidth=0.8, linestyle="--")
            if score == "effect_size_ratio":
                ax.axhline(1, color=BASELINE, linewidth=0.8, linestyle="--")
            for (_, rows), name, colour in zip(result.table.groupby("bin"), names, _COLOURS):
                values = rows[score].to_numpy(float)
                ax.plot(rows["factor"], values, color=colour, linewidth=1.2, label=f"{name} effects")
                chosen = np.flatnonzero(rows["chosen"].to_numpy(bool))
                ax.scatter(rows["factor"].iloc[chosen], values[chosen], s=24, color=colour, zorder=3)
            ax.set_xlabel("factor on the effect")
            ax.set_title(label, loc="left")
        ax.legend(loc="best")
        title = f"{result.n_conditions} validation conditions; dots: chosen; dashed: as predicted"
        figure.suptitle(title, fontsize=8, x=0.01, ha="left")
    return figure
