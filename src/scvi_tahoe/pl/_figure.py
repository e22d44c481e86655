"""What figures share: their names, what they read of a result, colours that are safe and readable in grey, labels."""

from __future__ import annotations

import sys
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, TypeVar, cast, runtime_checkable

import numpy as np

from scvi_tahoe._arguments import checked, verify_path
from scvi_tahoe._names import Registry
from scvi_tahoe.files import atomic_write

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

# Okabe and Ito's palette, picked so that the shades of grey differ too
PREDICTED = "#0072B2"
OBSERVED = "#E69F00"
BASELINE = "#8C8C8C"
CEILING = "#1A1A1A"
COLORS = (PREDICTED, OBSERVED, "#009E73", "#CC79A7", "#D55E00", "#56B4E9", CEILING, BASELINE)

_RC: dict[Any, Any] = {
    **{"font.family": "sans-serif", "font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9},
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor", "savefig.facecolor"), "white"),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), "black"),
    "figure.dpi": 150,
}

#: smallest font size of a title
_SMALLEST = 5.5
#: places for a name: distance and direction from its point, nearest first
_PLACES = [
    (distance, dx, dy)
    for distance in (1, 4, 8)
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
]


class EffectsLike(Protocol):
    """Deltas ``[conditions, genes]`` of (context, perturbation) pairs, as in :class:`scvi_tahoe.evaluate.Effects`."""

    @property
    def conditions(self) -> tuple[tuple[str, str], ...]: ...
    @property
    def genes(self) -> NDArray[np.str_]: ...
    @property
    def observed(self) -> NDArray[np.float32]: ...
    @property
    def predicted(self) -> NDArray[np.float32]: ...


@runtime_checkable
class Result(Protocol):
    """Scores and effects of one prediction, as in :class:`scvi_tahoe.evaluate.EvaluationResult`."""

    @property
    def summary(self) -> pd.DataFrame: ...
    @property
    def per_perturbation(self) -> pd.DataFrame: ...
    @property
    def effects(self) -> EffectsLike: ...
    @property
    def cells(self) -> pd.DataFrame: ...
    @property
    def de_observed(self) -> pd.DataFrame | None: ...
    @property
    def de_predicted(self) -> pd.DataFrame | None: ...
    @property
    def provenance(self) -> Mapping[str, Any]: ...
    def metric_label(self, metric: str) -> str: ...
    def ceiling_of_conditions(self, metric: str) -> pd.Series: ...
    @staticmethod
    def comparison(results: Mapping[str, Any], *, metrics: Sequence[str] | None = None) -> pd.DataFrame: ...


Draw = TypeVar("Draw", bound="Callable[..., Figure]")

FIGURES: Registry[Callable[..., Figure]] = Registry("figure")
#: figures of a result, for type checkers
FigureName = Literal["bars", "cells", "deltas", "fold_changes", "ranks", "similarity"]


class FigureOutput(TypedDict, total=False):
    """What every figure takes in addition, as in scanpy."""

    #: show the figure now, in a notebook or a window
    show: bool
    #: file to write: png, pdf or svg by its ending
    save: str | os.PathLike[str] | None
    #: return the figure; by default, unless it was shown or ``ax`` was given
    return_fig: bool | None


def drawn(function: Draw) -> Draw:
    """Show, save and return the figure that a function draws as :class:`FigureOutput` says."""

    @wraps(function)
    def wrapper(
        *args: Any,
        show: bool = False,
        save: str | os.PathLike[str] | None = None,
        return_fig: bool | None = None,
        **kwargs: Any,
    ) -> Figure | None:
        figure = function(*args, **kwargs)
        if save is not None:
            save_figure(figure, save)
        if show:
            _show(figure)
        return figure if return_fig or (return_fig is None and not show and kwargs.get("ax") is None) else None

    return cast(Draw, wrapper)


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 300) -> None:
    """Write a figure, complete or not at all, in the format of its ending; PNG if it has none.

    Raises
    ------
    ValueError
        If the ending is not that of a picture.
    """
    path, formats = Path(path), figure.canvas.get_supported_filetypes()
    verify_path(path)
    path = path if path.suffix else path.with_name(f"{path.name}.png")
    if path.suffix[1:].lower() not in formats:
        raise ValueError(f"{path.name} cannot be drawn; allowed endings are {', '.join(formats)}.")
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=dpi, bbox_inches="tight")


def _show(figure: Figure) -> None:
    """Show a figure in the notebook that is running, or in a window of pyplot."""
    if (ipython := sys.modules.get("IPython")) is not None and hasattr(ipython.get_ipython(), "kernel"):
        ipython.display.display(figure)
        return
    from matplotlib import pyplot as plt

    if figure.canvas.manager is None:  # not of pyplot: takes the window of an empty figure that is
        window = plt.figure(figsize=figure.get_size_inches()).canvas
        window.figure = figure
        figure.set_canvas(window)
    plt.show()


def register_figure(function: Draw) -> Draw:
    """Register a function that draws a result under its own name."""
    function = drawn(function)
    FIGURES.register(function.__name__, function)
    return function


@checked()
def draw(kind: str, result: Result, **kwargs: Any) -> Figure:
    """Draw ``"bars"``, ``"cells"``, ``"deltas"``, ``"fold_changes"``, ``"ranks"`` or ``"similarity"``.

    ``kwargs`` are those of the function with that name; a ValueError if there is none.
    """
    return FIGURES.find(kind)(result, **kwargs)


def style() -> AbstractContextManager[None]:
    """Draw with the package's settings; those of the user are restored afterwards."""
    from matplotlib import rc_context

    return rc_context(_RC)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, ``width`` by ``height`` inches, that shows itself in notebooks and is not of pyplot."""
    from scvi_tahoe.pl._notebook_figure import NotebookFigure

    return NotebookFigure(width, height)


def one_panel(ax: Axes | None, width: float, height: float) -> tuple[Figure, Axes]:
    """Return the figure of ``ax`` and ``ax``; if None, a new figure with one panel."""
    if ax is not None:
        return ax.figure.canvas.figure, ax
    figure = new_figure(width, height)
    return figure, figure.subplots()


def _renderer(figure: Any) -> Any:
    """Return what measures text in a figure, whose canvas may be of any backend."""
    from matplotlib.backends.backend_agg import RendererAgg

    canvas = figure.canvas
    if hasattr(canvas, "get_renderer"):
        return canvas.get_renderer()
    width, height = canvas.figure.bbox.size
    return RendererAgg(width, height, canvas.figure.dpi)


def fit_title(ax: Axes) -> None:
    """Make the title of a panel no wider than the panel: first by smaller letters, then by cutting its first line."""
    renderer = _renderer(ax.figure)
    title, room = ax.title, ax.get_window_extent(renderer).width
    size = float(title.get_fontsize())
    while title.get_window_extent(renderer).width > room and size > _SMALLEST:
        size -= 0.5
        title.set_fontsize(size)
    first, *rest = title.get_text().split("\n")
    kept = len(first)
    while title.get_window_extent(renderer).width > room and kept > 1:
        kept -= 1
        title.set_text("\n".join([first[:kept].rstrip() + "\N{HORIZONTAL ELLIPSIS}", *rest]))


def label_points(
    ax: Axes,
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    names: Sequence[str],
    *,
    avoid: NDArray[np.floating] | None = None,
    size: float = 7.5,
) -> None:
    """Write names next to points, each at the freest place inside the panel, with a line to a point further away.

    Points are in data units, the most important first; a name that fits nowhere is left out. Names cover as few of the
    points ``avoid``, ``[n, 2]``, as possible. The limits of the panel are set and its figure is laid out.
    """
    figure = ax.figure
    renderer = _renderer(figure)
    frame = ax.get_window_extent(renderer)
    points = ax.transData.transform(np.column_stack([x, y]))
    others = points if avoid is None else ax.transData.transform(avoid)
    pad = 3 * figure.dpi / 72
    taken: list[tuple[float, ...]] = []
    lines = np.empty((0, 2))  # places along the lines that are drawn
    for (px, py), name in zip(points, names):
        text = ax.text(0, 0, name, fontsize=size, transform=None, ha="center", va="center", zorder=5)
        box = text.get_window_extent(renderer)
        free = []
        for distance, dx, dy in _PLACES:
            cx = px + dx * (box.width / 2 + distance * pad)
            cy = py + dy * (box.height / 2 + distance * pad)
            area = (cx - box.width / 2, cy - box.height / 2, cx + box.width / 2, cy + box.height / 2)
            inside = area[0] > frame.x0 and area[2] < frame.x1 and area[1] > frame.y0 and area[3] < frame.y1
            line = np.linspace((px, py), (cx, cy), 24) if distance > 1 else np.empty((0, 2))
            crossed = any(_within(line, other).any() for other in taken) or _within(lines, area).any()
            if inside and not crossed and not any(_overlap(area, other) for other in taken):
                covered = int(_within(others, area).sum())
                covered += 3 * int((_gaps(points, area) < _gaps([(px, py)], area) - 1).any())  # nearer to another name
                free.append((covered + 0.7 * distance, distance, cx, cy, area))
        if not free:
            text.remove()
            continue
        _, distance, cx, cy, area = min(free)
        text.set_transform(ax.transData)
        text.set_position(tuple(ax.transData.inverted().transform((cx, cy))))
        if distance > 1:  # too far away to tell its point without a line
            ends = ax.transData.inverted().transform([(px, py), (cx, cy)])
            ax.plot(*ends.T, color="black", linewidth=0.4, zorder=2.5)
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.3})
            lines = np.concatenate([lines, np.linspace((px, py), (cx, cy), 24)])
        taken.append(area)


def _within(points: NDArray[np.floating], area: tuple[float, ...]) -> NDArray[np.bool_]:
    """Return whether each of the points ``[n, 2]`` lies in a box."""
    return np.all((points > area[:2]) & (points < area[2:]), axis=1)


def _gaps(points: ArrayLike, area: tuple[float, ...]) -> NDArray[np.floating]:
    """Return the distance of each of the points ``[n, 2]`` from a box."""
    points = np.asarray(points)
    return np.hypot(*np.maximum(np.maximum(area[:2] - points, points - area[2:]), 0).T)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
