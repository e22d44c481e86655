"""The report of a study: one HTML file that needs nothing else, neither files nor a network."""

from __future__ import annotations

import base64
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from scvi_tahoe.study._files import read_json, read_mapping
from scvi_tahoe.study._finding import LEVELS
from scvi_tahoe.study._log_diagnosis import diagnose
from scvi_tahoe.study._plain_values import differences
from scvi_tahoe.study._run_folder import CONFIG, FIGURES, PROVENANCE, REPORT
from scvi_tahoe.study._scores import SCORED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from scvi_tahoe.study._scores import StudyResult
    from scvi_tahoe.study._training_log import TrainingLog

_HIDDEN_KEYS = ("name", "data.sha256", "start.source")
_NOTE = (
    "DES and PDS: higher is better. MAE: lower is better. Baseline: the mean of the training perturbations. "
    "Replicate: half of the observed cells as a prediction of the other half."
)
_NOTE_ON_PUBLISHED = " Published numbers are of other cells and of an earlier release of the evaluator."


def report_html(result: StudyResult, logs: Mapping[str, TrainingLog]) -> str:
    """Return the report of a finished study, whose folder holds the figures, with the training log of every round."""
    parts = [
        _opening(result),
        _section("Scores", _scores(result)),
        _section("Learning curves", _image(result.folder / "curves.png", "Losses, rates and throughput of all rounds")),
        _section("Rounds side by side", _rounds(result)),
        _section("Guards that fired", _guards(result)),
        _section("What the logs say", _findings(logs)),
        _section("Configurations, where they differ", _configs(result)),
        _section("Releases, machine and data", _origin(result)),
    ]
    title = escape(result.config.title or result.config.name)
    style = (files("scvi_tahoe.study") / "report.css").read_text("utf-8")
    view = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f"<head>{view}<title>{title}</title><style>{style}</style></head>"
    return f'<!doctype html>\n<html lang="en">{head}<body><main>{"".join(parts)}</main></body></html>\n'


def _section(title: str, body: str) -> str:
    anchor = title.lower().replace(" ", "-").replace(",", "")
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>{body}</section>' if body else ""


def _opening(result: StudyResult) -> str:
    config, lesson = result.config, result.lesson
    kind = "good" if lesson.holds else "alert"
    text = f"<p>{escape(config.text)}</p>" if config.text else ""
    verdict = f'<p class="verdict {kind}">{escape(str(lesson))}</p>' if lesson.groups else ""
    return f"<header><h1>{escape(config.title or config.name)}</h1>{text}{verdict}</header>"


def _scores(result: StudyResult) -> str:
    table = result.table
    published = [c for c in table.columns if c.startswith("published_")]
    columns = [c for c in table.columns if c not in (*published, "year") and table[c].notna().any()]
    years: Any = table["year"].dropna().unique() if "year" in table else []
    year = f" ({int(years[0])})" if len(years) else ""
    names = {"best_step": "best step", "seconds": "time", "overall": f"overall{year}"}
    head = ["round", *(names.get(c, c) for c in columns), *(c.replace("published_", "published ") for c in published)]
    rows = [[str(name), *(_cell(c, row[c]) for c in [*columns, *published])] for name, row in table.iterrows()]
    rows += _reference_rows(result, columns, len(published))
    figure = _image(result.folder / "scores.png", "Scores of all rounds between baseline and replicate")
    return f"{_table(head, rows)}{figure}<p>{_NOTE}{_NOTE_ON_PUBLISHED if published else ''}</p>"


def _reference_rows(result: StudyResult, columns: list[str], n_published: int) -> list[list[str]]:
    scored = next((r.scores for r in result.runs.values() if r.scores is not None), None)
    if scored is None:
        return []
    return [
        [title, *(_cell(c, scored.summary[source].get(SCORED.get(c, ""))) for c in columns), *[""] * n_published]
        for title, source in (("baseline", "baseline"), ("replicate", "ceiling"))
        if scored.summary[source].notna().any()
    ]


def _cell(column: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return ""
    if column == "seconds":
        return f"{value:.0f} s" if value < 120 else f"{value / 60:.1f} min"
    if "step" in column:
        return f"{int(value):,}"
    return f"{value:.2f}" if column.endswith("overall") else f"{value:.4f}"


def _rounds(result: StudyResult) -> str:
    cards = []
    for one in result.config.rounds:
        folder = result.folder / one.name
        report = (folder / REPORT).read_text() if (folder / REPORT).exists() else ""
        figure = _image(folder / FIGURES / "deltas.png", f"Predicted against observed change, {one.name}")
        about = f"<p>{escape(one.title)}<br><small>{escape(one.origin)}</small></p>"
        cards.append(
            f"<article><h3>{escape(one.name)}</h3>{about}{figure}"
            f"<details><summary>Loading report</summary><pre>{escape(report)}</pre></details></article>"
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _guards(result: StudyResult) -> str:
    checks = {name: run.scores.checks for name, run in result.runs.items() if run.scores is not None}
    items = [
        (row["status"], f"{name}, {check}", str(row["message"]))
        for name, table in checks.items()
        for check, row in table[table["status"].isin(["warning", "error"])].iterrows()
    ]
    return _list(items) if items else "<p>None.</p>"


def _findings(logs: Mapping[str, TrainingLog]) -> str:
    items = []
    for diagnosis in diagnose(list(logs.values())):
        ordered = sorted(diagnosis.findings, key=lambda f: LEVELS.index(f.level))
        n = sum(f.level != "note" for f in ordered)
        summary = f"{escape(diagnosis.log.name)}: {n} warning{'s' * (n != 1)}, {len(ordered) - n} notes"
        shown = " open" if any(f.level == "error" for f in ordered) else ""
        listed = _list((f.level, f.where, f.message) for f in ordered)
        items.append(f"<details{shown}><summary>{summary}</summary>{listed}</details>")
    return "".join(items)


def _list(items: Iterable[tuple[str, str, str]]) -> str:
    """Return levels, places and messages as a list."""
    lines = (f'<li class="{escape(level)}"><b>{escape(a)}</b>: {escape(text)}</li>' for level, a, text in items)
    return f'<ul class="findings">{"".join(lines)}</ul>'


def _configs(result: StudyResult) -> str:
    configs = {name: read_mapping(run.folder / CONFIG) for name, run in result.runs.items()}
    found = {key: values for key, values in differences(configs.values()).items() if key not in _HIDDEN_KEYS}
    texts = {list: lambda value: ", ".join(map(str, value)), type(None): lambda value: ""}
    return _table(["key", *configs], [[key, *(texts.get(type(v), str)(v) for v in found[key])] for key in found])


def _origin(result: StudyResult) -> str:
    records = {name: read_json(run.folder / PROVENANCE) for name, run in result.runs.items()}
    first, rows = next(iter(records.values())), []
    for name, data in ((name, record["data"]) for name, record in records.items()):
        sizes = (data["train"]["n_cells"], data["train"]["n_genes"], data["n_perturbations"], len(data["contexts"]))
        rows.append([name, *(f"{size:,}" for size in sizes), data["sha256"][:12]])
    table = _table(["round", "cells", "genes", "perturbations", "contexts", "sha256"], rows)
    texts = (", ".join(f"{name} {value}" for name, value in first[part].items()) for part in ("versions", "machine"))
    return "".join(f"<p>{escape(text)}</p>" for text in texts) + table


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _image(path: Path, alt: str) -> str:
    if not path.exists():
        return ""
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<div class="wide"><img alt="{escape(alt)}" src="data:image/png;base64,{content}"></div>'
