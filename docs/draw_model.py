"""Draw docs/_static/model.svg and model_dark.svg: what the model does with a set of control cells."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

STATIC = Path(__file__).parent / "_static"
GREY, BLUE, ORANGE, GREEN = "#8C8C8C", "#0072B2", "#E69F00", "#009E73"
#: ink, paper and the fill of boxes of each theme
THEMES = {
    "model": ("#1f2d3a", "white", "#EEF3F8"),
    "model_dark": ("#e6e6e6", "#14181e", "#26303b"),
}


def main(name: str) -> None:
    ink, paper, fill = THEMES[name]
    mpl.rcParams.update(
        {"svg.fonttype": "path", "svg.hashsalt": "scvi-tahoe", "text.color": ink}
    )
    figure = Figure(figsize=(11, 4.6), facecolor=paper)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 11), ylim=(0, 4.6))
    axes.set_axis_off()

    def box(
        x: float, y: float, width: float, height: float, title: str, lines: str
    ) -> None:
        shape = "round,pad=0,rounding_size=0.12"
        patch = FancyBboxPatch(
            (x, y), width, height, boxstyle=shape, fc=fill, ec=ink, lw=1
        )
        axes.add_patch(patch)
        middle = x + width / 2
        axes.text(
            middle,
            y + height - 0.26,
            title,
            ha="center",
            va="center",
            fontsize=11.5,
            weight="bold",
        )
        axes.text(
            middle,
            y + (height - 0.42) / 2,
            lines,
            ha="center",
            va="center",
            fontsize=9.5,
            linespacing=1.35,
        )

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        axes.annotate(
            "", end, start, arrowprops={"arrowstyle": "-|>", "color": ink, "lw": 1.4}
        )

    def cells(
        x: float, color: str, title: str, note: str, shift: tuple[float, float]
    ) -> None:
        rng = np.random.default_rng(3)
        cloud = rng.normal(0, (0.24, 0.2), (40, 2))
        if shift != (0, 0):  # the controls stay visible, so that the change is
            axes.scatter(*(cloud + (x, 3.2)).T, s=16, color=GREY, alpha=0.35, lw=0)
        axes.scatter(
            *(cloud + np.add((x, 3.2), shift)).T, s=20, color=color, alpha=0.85, lw=0
        )
        axes.text(x, 4.32, title, ha="center", fontsize=11.5, weight="bold")
        axes.text(x, 4.08, note, ha="center", fontsize=9.5)

    cells(1.05, GREY, "control cells", "a set of one context", (0, 0))
    cells(5.0, GREEN, "start cells", "moved to the expected mean", (0.3, -0.3))
    cells(9.85, BLUE, "predicted cells", "an AnnData, scored", (0.42, -0.42))
    box(
        2.15,
        2.45,
        1.85,
        1.5,
        "response model",
        "regression over all\nconditions, fitted\nin seconds",
    )
    box(
        6.3,
        2.45,
        2.3,
        1.5,
        "set transformer",
        "the cells of a set attend\nto each other; corrects\nwhere held-out\nconditions agree",
    )
    box(
        0.2,
        0.45,
        3.8,
        1.25,
        "perturbation",
        "gene, combination, or drug and dose; known from\nother contexts or from tables of genes and drugs",
    )
    box(4.6, 0.45, 6.2, 1.25, "evaluation",
        "observed cells held out; every score next to simple baselines\n"
        "and to what a replicate experiment would reach")  # fmt: skip
    for start, end in (((1.6, 3.2), (2.12, 3.2)), ((4.03, 3.2), (4.5, 3.2)), ((5.75, 3.2), (6.27, 3.2)),
                       ((8.63, 3.2), (9.2, 3.2)), ((3.1, 1.73), (3.1, 2.42)), ((10.1, 2.3), (10.1, 1.73))):  # fmt: skip
        arrow(start, end)
    figure.savefig(STATIC / f"{name}.svg", metadata={"Date": None}, facecolor=paper)


if __name__ == "__main__":
    for theme in THEMES:
        main(theme)
