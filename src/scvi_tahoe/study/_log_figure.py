"""The figure of one or several training logs: losses, rate and throughput by step, with the best validation marked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvi_tahoe._arguments import checked
from scvi_tahoe.pl import new_figure, style

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scvi_tahoe.study._training_log import TrainingLog

#: not those of observed and predicted cells
_TRAIN, _VALIDATION, _BEST, _RATE = "#8C8C8C", "#009E73", "#D55E00", "#666666"
_MAX_RATES = 4
_SIDE_BY_SIDE = 3
_FAR = 20  # times the smallest value, from which on an axis is logarithmic


@checked()
def log_figure(log: TrainingLog) -> Figure:
    """Draw the log of one run; panels whose column it lacks are left out."""
    return logs_figure([log])


@checked()
def logs_figure(logs: Sequence[TrainingLog]) -> Figure:
    """Draw logs side by side, one column per run, one row per quantity; more than three of them on the same axes.

    Quantities that no run logged are left out; on the same axes also those that never change, unless none does. Without
    a log it is a ValueError.
    """
    if not logs:
        raise ValueError("there is no log to draw.")
    rows = [name for name in _PANELS if any(_has(log, name) for log in logs)]
    if len(logs) > _SIDE_BY_SIDE:
        return _overlaid(logs, [name for name in rows if any(_varies(log, name) for log in logs)] or rows)
    with style():
        figure = new_figure(max(4.5, 2.6 * len(logs)), 0.5 + 1.5 * len(rows))
        grid = figure.subplots(len(rows), len(logs), squeeze=False, sharex="col")
        for log, column in zip(logs, grid.T, strict=True):
            for axes, name in zip(column, rows, strict=True):
                (_PANELS[name][1] if _has(log, name) else _nothing)(axes, log)
                axes.spines[["top", "right"]].set_visible(False)
            column[0].set_title(log.name, fontsize=8)
            column[-1].set_xlabel("step")
            column[-1].xaxis.set_major_formatter("{x:,.0f}")
        for axes, name in zip(grid[:, 0], rows, strict=True):
            axes.set_ylabel(_PANELS[name][0])
        return figure


def _overlaid(logs: Sequence[TrainingLog], rows: Sequence[str]) -> Figure:
    """Draw all logs in one column, each in its colour."""
    from matplotlib import colormaps

    with style():
        figure = new_figure(7.0, 0.9 + 1.9 * len(rows))
        panels = figure.subplots(len(rows), 1, squeeze=False, sharex=True)[:, 0]
        for axes, name in zip(panels, rows, strict=True):
            axes.set_ylabel(_PANELS[name][0])
            drawn = {log.name: _series(log, name) for log in logs}
            for i, series in enumerate(drawn.values()):
                if not series.empty:
                    _line(axes, series, colormaps["tab10"](i % 10), ls=("-", "--")[i // 10 % 2])
            values = [v for series in drawn.values() for v in (series.min(), series.max()) if v == v]
            if values and min(values) > 0 and max(values) > _FAR * min(values):
                axes.set_yscale("log")
        panels[-1].set_xlabel("step")
        panels[-1].xaxis.set_major_formatter("{x:,.0f}")
        handles = [_handle(colormaps["tab10"](i % 10), ("-", "--")[i // 10 % 2]) for i in range(len(logs))]
        figure.legend(handles, [log.name for log in logs], loc="outside right upper")
        return figure


def _handle(color: Any, line: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, linestyle=line)


def _series(log: TrainingLog, panel: str) -> pd.Series:
    """Return a quantity of a run; of the rates the one of new parameters, or else the first."""
    return next(iter(log.rates.values())) if panel == "rate" and log.rates else log.get(panel)


def _varies(log: TrainingLog, panel: str) -> bool:
    return _has(log, panel) and _series(log, panel).nunique() > 1


def _has(log: TrainingLog, panel: str) -> bool:
    return bool(log.rates) if panel == "rate" else not log.get(panel).empty


def _line(axes: Axes, series: pd.Series, color: Any, **options: Any) -> None:
    marker = "." if len(series) < 40 else ""
    axes.plot(series.index, series.to_numpy(), color=color, lw=1.0, marker=marker, ms=3, **options)


def _train(axes: Axes, log: TrainingLog) -> None:
    series = log.get("train")
    _line(axes, series, _TRAIN)
    if len(series) and series.min() > 0 and series.max() > _FAR * series.min():
        axes.set_yscale("log")


def _validation(axes: Axes, log: TrainingLog) -> None:
    series, (step, value) = log.get("validation"), log.best or (0, 0.0)
    _line(axes, series, _VALIDATION)
    axes.plot([step], [value], "o", color=_BEST, ms=5, zorder=3, clip_on=False)
    # at the end of the panel the words go inwards
    late = step > series.index[0] + 0.7 * (series.index[-1] - series.index[0])
    axes.annotate(
        f"{value:.3f}, step {step:,}", (step, value), xytext=(4 * late, -10), textcoords="offset points",
        ha="right" if late else "center", fontsize=6.5, color=_BEST,
    )  # fmt: skip
    axes.margins(x=0.12, y=0.25)


def _rates(axes: Axes, log: TrainingLog) -> None:
    # groups of parameters that do not decay have the rate of their part, and frozen parts have none
    shown = {name: rate for name, rate in log.rates.items() if not name.endswith("_no_decay") and rate.any()}
    for i, (name, rate) in enumerate(list((shown or log.rates).items())[:_MAX_RATES]):
        _line(axes, rate, _RATE, ls=("-", "--", ":", "-.")[i], label=name.removeprefix("lr_"))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    if len(shown) > 1:
        axes.legend(fontsize=5.5, handlelength=2.2)


def _throughput(axes: Axes, log: TrainingLog) -> None:
    _line(axes, log.get("sets_per_second"), _RATE)
    axes.set_ylim(bottom=0)


def _nothing(axes: Axes, log: TrainingLog) -> None:
    """Say that a quantity was not logged, without a scale that could be read."""
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", va="center", color=_RATE, fontsize=7)


#: series of a log (or its rates) -> label of the axis, and what draws it
_PANELS = {
    "train": ("training loss", _train),
    "validation": ("validation loss", _validation),
    "decoder_validation": (
        "gene decoder,\nvalidation", lambda axes, log: _line(axes, log.get("decoder_validation"), _VALIDATION)
    ),
    "rate": ("learning rate", _rates),
    "sets_per_second": ("sets per second", _throughput),
}  # fmt: skip
