"""Scores of all rounds between baseline and ceiling."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from scvi_tahoe.study._finetune import RunResult

__all__ = ["score_figure"]


def score_figure(runs: Mapping[str, RunResult]) -> Figure | None:
    """Draw one panel a score and one row a round, with lines at the baseline and at a replicate experiment.

    Parameters
    ----------
    runs
        What each round left, by name; those without scores are left out. None comes back if none has any.
    """
    from scvi_tahoe.pl import BASELINE, CEILING, PREDICTED, new_figure, style
    from scvi_tahoe.study._score_table import SCORED

    scores = {name: run.scores for name, run in runs.items() if run.scores is not None}
    if not scores:
        return None
    first = next(iter(scores.values())).summary
    metrics = {name: metric for name, metric in SCORED.items() if metric in first.index}
    overall = {name: s.vcc["overall"] for name, s in scores.items() if s.vcc is not None}
    places = range(len(scores))
    with style():
        figure = new_figure(1.2 + 1.9 * (len(metrics) + bool(overall)), 0.9 + 0.28 * len(scores))
        panels = figure.subplots(1, len(metrics) + bool(overall), sharey=True, squeeze=False)[0]
        for axes, (name, metric) in zip(panels, metrics.items(), strict=False):
            axes.plot([s.summary.loc[metric, "value"] for s in scores.values()], places, "o", color=PREDICTED, ms=5)
            axes.axvline(first.loc[metric, "baseline"], color=BASELINE, ls="--", lw=1, label="baseline")
            if first["ceiling"].notna().get(metric, False):
                axes.axvline(first.loc[metric, "ceiling"], color=CEILING, lw=1, label="replicate")
            axes.margins(x=0.15)
            if first.loc[metric, "direction"] in ("min", "lower", "low", "down"):
                axes.invert_xaxis()
            axes.set_title(name)
        if overall:
            year = next(s.vcc["year"] for s in scores.values() if s.vcc is not None)
            bars = [overall.get(name, 0.0) for name in scores]
            panels[-1].barh(list(places), bars, color=PREDICTED, height=0.6)
            for place, value in zip(places, bars, strict=True):
                panels[-1].annotate(f"{value:.1f}", (value, place), xytext=(3, 0), textcoords="offset points",
                                    va="center", fontsize=7)  # fmt: skip
            panels[-1].margins(x=0.2)
            panels[-1].set_title(f"overall ({year})")
        panels[0].set_yticks(list(places), list(scores))
        panels[0].invert_yaxis()
        panels[0].legend(loc="lower left", bbox_to_anchor=(0, -0.32), ncols=2, fontsize=6.5)
        return figure
