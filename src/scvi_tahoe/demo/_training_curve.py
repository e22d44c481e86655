"""The figure of how training went."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["training_curve"]

# Of the palette that the figures of an evaluation use: told apart by the colour-blind, and in grey.
_TRAINING, _VALIDATION = "#E69F00", "#0072B2"


def training_curve(history: pd.DataFrame) -> Figure:
    """Draw training and validation loss by step, each on its own axis, and mark the validation that was kept.

    Two axes, because the two losses are means over different sets of cells: their levels cannot be compared, only their
    courses.

    Parameters
    ----------
    history
        Columns `"step"`, `"train_loss"` and `"validation_loss"`; values may be missing.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for axes, column, color in zip(panels, ("train_loss", "validation_loss"), (_TRAINING, _VALIDATION), strict=True):
        seen = history.dropna(subset=[column])
        axes.plot(seen["step"], seen[column], color=color, lw=1.6, marker="." if len(seen) < 50 else "")
        axes.set_ylabel(column.replace("_", " "))
        axes.spines[["top", "right"]].set_visible(False)
    best = history.sort_values("validation_loss").iloc[0]
    panels[1].plot(best["step"], best["validation_loss"], "o", color=_VALIDATION, ms=7)
    panels[1].set_xlabel("step")
    figure.suptitle(
        f"Training: the weights of step {best['step']:.0f} were kept (validation loss {best['validation_loss']:.4f})",
        fontsize=10,
    )
    return figure
