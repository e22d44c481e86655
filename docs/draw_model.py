"""Draw docs/_static/model*.svg: what the model does with a set of control cells, on a page and on a phone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STATIC = Path(__file__).parent / "_static"
GREY, BLUE, ORANGE, GREEN = "#8C8C8C", "#0072B2", "#E69F00", "#009E73"
#: ink, paper and the fill of boxes of each theme
THEMES = {
    "": ("#1f2d3a", "white", "#EEF3F8"),
    "_dark": ("#e6e6e6", "#14181e", "#26303b"),
}


@dataclass(frozen=True)
class Drawing:
    """Boxes, clouds of cells and arrows in the colours of a theme."""

    axes: Axes
    ink: str
    fill: str

    def box(
        self, place: tuple[float, float, float, float], title: str, text: str
    ) -> None:
        """Draw a box at x, y with a width and a height."""
        x, y, width, height = place
        shape = "round,pad=0,rounding_size=0.12"
        self.axes.add_patch(
            FancyBboxPatch(
                (x, y), width, height, boxstyle=shape, fc=self.fill, ec=self.ink, lw=1
            )
        )
        middle = {"x": x + width / 2, "ha": "center", "va": "center"}
        self.axes.text(
            y=y + height - 0.26, s=title, fontsize=11.5, weight="bold", **middle
        )
        self.axes.text(
            y=y + (height - 0.42) / 2, s=text, fontsize=9.5, linespacing=1.35, **middle
        )

    def arrow(self, *places: tuple[float, float]) -> None:
        """Draw an arrow from one place to another."""
        style = {"arrowstyle": "-|>", "color": self.ink, "lw": 1.4}
        self.axes.annotate("", places[1], places[0], arrowprops=style)

    def cells(self, x: float, y: float, color: str, shift: tuple[float, float]) -> None:
        """Draw cells around a place; the controls stay visible, so that the change is."""
        cloud = np.random.default_rng(3).normal(0, (0.24, 0.2), (40, 2)) + (x, y)
        if shift != (0, 0):
            self.axes.scatter(*cloud.T, s=16, color=GREY, alpha=0.35, lw=0)
        self.axes.scatter(*(cloud + shift).T, s=20, color=color, alpha=0.85, lw=0)

    def caption(
        self, x: float, y: float, title: str, note: str, ha: str = "center"
    ) -> None:
        """Write two lines, the first one bold."""
        self.axes.text(x, y, title, ha=ha, fontsize=11.5, weight="bold")
        self.axes.text(x, y - 0.24, note, ha=ha, fontsize=9.5)


CELLS = {
    "control cells": ("a set of one context", GREY, (0, 0)),
    "start cells": ("moved to the expected mean", GREEN, (0.3, -0.3)),
    "predicted cells": ("an AnnData, scored", BLUE, (0.42, -0.42)),
}
BOXES = {
    "response model": "regression over all\nconditions, fitted\nin seconds",
    "set transformer": "the cells of a set attend\nto each other; corrects\nwhere held-out\nconditions agree",
    "perturbation": "gene, combination, or drug and dose; known from\n"
    "other contexts or from tables of genes and drugs",
    "evaluation": "observed cells held out; every score next to simple baselines\n"
    "and to what a replicate experiment would reach",
}
ON_A_PHONE = {
    "perturbation": "gene, combination,\nor drug and dose;\nfrom other contexts\nor from tables",
    "evaluation": "observed cells held out; every score next to\n"
    "simple baselines and to a replicate",
}


def on_a_page(drawing: Drawing) -> None:
    """Draw from left to right, 11 wide and 4.6 high."""
    for (title, (note, color, shift)), x in zip(CELLS.items(), (1.05, 5.0, 9.85)):
        drawing.cells(x, 3.2, color, shift)
        drawing.caption(x, 4.32, title, note)
    places = ((2.15, 2.45, 1.85, 1.5), (6.3, 2.45, 2.3, 1.5), (0.2, 0.45, 3.8, 1.25), (4.6, 0.45, 6.2, 1.25))  # fmt: skip
    for (title, text), place in zip(BOXES.items(), places):
        drawing.box(place, title, text)
    for x, end in ((1.6, 2.12), (4.03, 4.5), (5.75, 6.27), (8.63, 9.2)):
        drawing.arrow((x, 3.2), (end, 3.2))
    drawing.arrow((3.1, 1.73), (3.1, 2.42))
    drawing.arrow((10.1, 2.3), (10.1, 1.73))


def on_a_phone(drawing: Drawing) -> None:
    """Draw from top to bottom, 5 wide and 9.7 high."""
    for (title, (note, color, shift)), y in zip(CELLS.items(), (9.0, 5.95, 2.7)):
        drawing.cells(1.1, y, color, shift)
        drawing.caption(2.15, y + 0.1, title, note, ha="left")
    places = ((0.1, 6.65, 2.1, 1.5), (0.1, 3.4, 2.4, 1.5), (2.85, 6.65, 2.05, 1.5), (0.1, 0.15, 4.8, 1.1))  # fmt: skip
    for (title, text), place in zip((BOXES | ON_A_PHONE).items(), places):
        drawing.box(place, title, text)
    for y, end in ((8.5, 8.18), (6.62, 6.4), (5.25, 4.93), (3.37, 3.15), (1.75, 1.28)):
        drawing.arrow((1.1, y), (1.1, end))
    drawing.arrow((2.82, 7.4), (2.23, 7.4))


def main(name: str, theme: str) -> None:
    """Draw one file."""
    ink, paper, fill = THEMES[theme]
    mpl.rcParams.update(
        {"svg.fonttype": "path", "svg.hashsalt": "scvi-tahoe", "text.color": ink}
    )
    draw, size = LAYOUTS[name]
    figure = Figure(figsize=size, facecolor=paper)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, size[0]), ylim=(0, size[1]))
    axes.set_axis_off()
    draw(Drawing(axes, ink, fill))
    path = STATIC / f"{name}{theme}.svg"
    figure.savefig(path, metadata={"Date": None}, facecolor=paper)


LAYOUTS = {"model": (on_a_page, (11, 4.6)), "model_phone": (on_a_phone, (5, 9.7))}

if __name__ == "__main__":
    for layout in LAYOUTS:
        for theme in THEMES:
            main(layout, theme)
