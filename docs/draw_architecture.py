"""Draw docs/_static/architecture.svg: the path of a cell from AnnData to a score. Run it when the path changes."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

INK, SOFT = "#1f2d3a", "#6b7885"
COLORS = {
    "data": "#dbe9f4",
    "nn": "#fbe3cd",
    "train": "#e4edd5",
    "evaluate": "#eadff0",
    "user": "#f1f1f1",
}

#: Left and lower edge, width, title, lines, and the folder that gives the colour.
BOXES = [
    (
        0.0,
        3.2,
        2.5,
        "AnnData",
        "expression [cells, G]|perturbation, context, batch|embedding table [labels, P]",
        "user",
    ),
    (
        3.0,
        3.2,
        2.7,
        "data/ register, verify",
        "fields, gene and label tables|refusals in one sentence",
        "data",
    ),
    (
        6.2,
        3.2,
        2.7,
        "data/ index, split",
        "rows of each condition|train, validation, test; audit",
        "data",
    ),
    (
        9.4,
        3.2,
        2.7,
        "data/ sample, read",
        "S sets of N cells + controls|control_SNG, observed_SNG",
        "data",
    ),
    (
        9.4,
        1.2,
        2.7,
        "_module, nn/ network",
        "control + perturbation encoder|backbone over the N cells, head",
        "nn",
    ),
    (
        6.2,
        1.2,
        2.7,
        "nn/ losses, training/ plan",
        "distance of two sets|freezing, schedule, history|run by scvi-tools",
        "train",
    ),
    (
        3.0,
        1.2,
        2.7,
        "prediction/ predict",
        "same index, sampler, reader|AnnData of predicted cells",
        "user",
    ),
    (
        0.0,
        1.2,
        2.5,
        "evaluate/, pl/",
        "cell-eval, baselines, ceiling|scores and figures",
        "evaluate",
    ),
]
HEIGHT = 1.4


def main(path: Path) -> None:
    mpl.rcParams.update(
        {
            "svg.fonttype": "none",
            "font.family": "sans-serif",
            "svg.hashsalt": "scvi-tahoe",
        }
    )
    figure = Figure(figsize=(12.4, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.15, 12.35), ylim=(0.4, 4.7), aspect="equal")
    axes.set_axis_off()
    for x, y, width, title, lines, folder in BOXES:
        box = FancyBboxPatch(
            (x, y),
            width,
            HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.12",
            fc=COLORS[folder],
            ec=INK,
            lw=1,
        )
        axes.add_patch(box)
        axes.text(
            x + 0.14,
            y + HEIGHT - 0.3,
            title,
            fontsize=10.5,
            weight="bold",
            color=INK,
            va="center",
        )
        for i, line in enumerate(lines.split("|")):
            axes.text(
                x + 0.14,
                y + HEIGHT - 0.64 - 0.25 * i,
                line,
                fontsize=8.6,
                color=INK,
                va="center",
            )

    def arrow(
        start: tuple[float, float], end: tuple[float, float], style: str = "-|>"
    ) -> None:
        axes.annotate(
            "",
            end,
            start,
            arrowprops={
                "arrowstyle": style,
                "color": INK,
                "lw": 1.2,
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )

    top, low = 3.2 + HEIGHT / 2, 1.2 + HEIGHT / 2
    arrow((2.5, top), (3.0, top))
    arrow((5.7, top), (6.2, top))
    arrow((8.9, top), (9.4, top))
    arrow((10.75, 3.2), (10.75, 1.2 + HEIGHT))
    axes.text(10.85, 2.9, "minibatch of sets", fontsize=8, color=SOFT, va="center")
    arrow((9.4, low), (8.9, low), "<|-|>")
    axes.text(
        8.65,
        2.9,
        "prediction_SNG, gradients",
        fontsize=8,
        color=SOFT,
        va="center",
        ha="center",
    )
    axes.plot([9.15, 9.15], [2.03, 2.78], color=SOFT, lw=0.6)
    # Prediction leaves the network below the boxes: it needs no loss.
    axes.plot(
        [10.75, 10.75, 4.35],
        [1.2, 0.75, 0.75],
        color=INK,
        lw=1.2,
        solid_capstyle="butt",
    )
    arrow((4.35, 0.75), (4.35, 1.2))
    axes.text(
        7.55, 0.55, "prediction_SNG", fontsize=8, color=SOFT, ha="center", va="center"
    )
    arrow((3.0, low), (2.5, low))
    arrow((1.25, 3.2), (1.25, 1.2 + HEIGHT))
    axes.text(1.35, 2.9, "observed cells", fontsize=8, color=SOFT, va="center")
    figure.savefig(
        path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110
    )


if __name__ == "__main__":
    main(
        Path(sys.argv[1])
        if len(sys.argv) > 1
        else Path(__file__).parent / "_static" / "architecture.svg"
    )
