"""What a study left, and its scores as a table and as a figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from scvi_tahoe.pl import BASELINE, CEILING, PREDICTED, new_figure, style
from scvi_tahoe.study._run_config import TahoeRun
from scvi_tahoe.study._run_files import CONFIG

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.figure import Figure

    from scvi_tahoe.study._finetune import RunResult
    from scvi_tahoe.study._study_config import Lesson, StudyConfig

#: Column -> metric in the summary of an evaluation, where no overall score names it.
SCORED = {"DES": "overlap_at_N", "PDS": "discrimination_score_l1", "MAE": "mae"}


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """What a study left in its folder: ``runs`` by the name of their round, and ``table``, a row per scored round.

    ``lesson`` says whether the scores are in the order that the study expects.
    """

    folder: Path
    config: StudyConfig
    runs: dict[str, RunResult]
    table: pd.DataFrame
    lesson: Lesson


def score_table(config: StudyConfig, runs: Mapping[str, RunResult]) -> pd.DataFrame:
    """Return one row per scored round.

    Columns are ``DES`` (differential expression score), ``PDS`` (perturbation discrimination score), ``MAE`` (mean
    absolute error), ``overall`` with the ``year`` of the challenge it is defined by, ``best_step``, ``steps``,
    ``seconds``, and ``published_*`` where the study has numbers to compare with.
    """
    rows: dict[str, dict[str, Any]] = {}
    for one in config.rounds:
        if one.role == "pretraining":
            continue
        result = runs[one.name]
        row: dict[str, Any] = dict.fromkeys([*SCORED, "overall", "year"])
        if result.scores is not None:
            summary = result.scores.summary["value"]
            row |= {name: summary[metric] for name, metric in SCORED.items() if metric in summary.index}
            if result.scores.vcc is not None:
                row |= {"overall": result.scores.vcc["overall"], "year": result.scores.vcc.get("year")}
        row |= {
            "best_step": result.best_step,
            "steps": TahoeRun.from_yaml(result.folder / CONFIG).train.max_steps,
            "seconds": round(result.seconds["total"], 1),
        }
        row |= {f"published_{name}": value for name, value in one.published.items()}
        rows[one.name] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("round")


def score_figure(runs: Mapping[str, RunResult]) -> Figure | None:
    """Draw a panel per score, a row per round, and lines at the baseline and a replicate; None without scores."""
    scores = {name: run.scores for name, run in runs.items() if run.scores is not None}
    if not scores:
        return None
    first = next(iter(scores.values())).summary
    metrics = {name: metric for name, metric in SCORED.items() if metric in first.index}
    overall = {name: s.vcc["overall"] for name, s in scores.items() if s.vcc is not None}
    places = range(len(scores))
    with style():
        figure = new_figure(1.4 + 2.0 * (len(metrics) + bool(overall)), 1.2 + 0.3 * len(scores))
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
            year = next(s.vcc for s in scores.values() if s.vcc is not None).get("year")
            bars = [overall.get(name, 0.0) for name in scores]
            panels[-1].barh(list(places), bars, color=PREDICTED, height=0.6)
            panels[-1].bar_label(panels[-1].containers[0], fmt="%.1f", padding=3, fontsize=8)
            panels[-1].margins(x=0.2)
            panels[-1].set_title("overall" if year is None else f"overall ({year})")
        panels[0].set_yticks(list(places), list(scores))
        panels[0].invert_yaxis()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=2)
        figure.supxlabel("further to the right is better", fontsize=8)
        return figure
