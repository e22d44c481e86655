"""The report of a study: one HTML file that needs nothing else, neither files nor a network."""

from __future__ import annotations

import base64
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from scvi_tahoe.study._files import read_json, read_mapping
from scvi_tahoe.study._finding import LEVELS
from scvi_tahoe.study._log_diagnosis import diagnose
from scvi_tahoe.study._run_folder import CONFIG, FIGURES, PROVENANCE, REPORT
from scvi_tahoe.study._scores import SCORED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from scvi_tahoe.study._scores import StudyResult
    from scvi_tahoe.study._training_log import TrainingLog

_HIDDEN_KEYS = ("name", "data.sha256", "start.source")


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
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


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
    note = (
        "<p>DES and PDS: higher is better. MAE: lower is better. Baseline: the mean of the training perturbations. "
        "Replicate: half of the observed cells as a prediction of the other half. "
        + ("Published numbers are of other cells and of an earlier release of the evaluator." if published else "")
        + "</p>"
    )
    figure = _image(result.folder / "scores.png", "Scores of all rounds between baseline and replicate")
    return _table(head, rows) + figure + note


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
        start = f"from {one.source}, {one.start.get('checkpoint', 'best')}" if one.source else "from scratch"
        cards.append(
            f"<article><h3>{escape(one.name)}</h3><p>{escape(one.title)}<br><small>{escape(start)}</small></p>{figure}"
            f"<details><summary>Loading report</summary><pre>{escape(report)}</pre></details></article>"
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _guards(result: StudyResult) -> str:
    checks = {name: run.scores.checks for name, run in result.runs.items() if run.scores is not None}
    items = [
        _item(row["status"], f"{name}, {check}", str(row["message"]))
        for name, table in checks.items()
        for check, row in table[table["status"].isin(["warning", "error"])].iterrows()
    ]
    return f'<ul class="findings">{"".join(items)}</ul>' if items else "<p>None.</p>"


def _findings(logs: Mapping[str, TrainingLog]) -> str:
    items = []
    for diagnosis in diagnose(list(logs.values())):
        ordered = sorted(diagnosis.findings, key=lambda f: LEVELS.index(f.level))
        listed = "".join(_item(f.level, f.where, f.message) for f in ordered)
        n = sum(f.level != "note" for f in ordered)
        summary = f"{escape(diagnosis.log.name)}: {n} warning{'s' * (n != 1)}, {len(ordered) - n} notes"
        shown = " open" if any(f.level == "error" for f in ordered) else ""
        items.append(f'<details{shown}><summary>{summary}</summary><ul class="findings">{listed}</ul></details>')
    return "".join(items)


def _item(level: str, where: str, message: str) -> str:
    return f'<li class="{escape(level)}"><b>{escape(where)}</b>: {escape(message)}</li>'


def _configs(result: StudyResult) -> str:
    configs = {name: read_mapping(run.folder / CONFIG) for name, run in result.runs.items()}
    found = {key: values for key, values in differences(configs).items() if key not in _HIDDEN_KEYS}
    texts = {list: lambda value: ", ".join(map(str, value)), type(None): lambda value: ""}
    rows = [[key, *(texts.get(type(v), str)(v) for v in values)] for key, values in found.items()]
    return _table(["key", *configs], rows)


def _origin(result: StudyResult) -> str:
    first = read_json(next(iter(result.runs.values())).folder / PROVENANCE)
    versions = ", ".join(f"{name} {number}" for name, number in first["versions"].items())
    machine = ", ".join(f"{name} {value}" for name, value in first["machine"].items())
    rows = []
    for name, run in result.runs.items():
        data = read_json(run.folder / PROVENANCE)["data"]
        train = data["train"]
        rows.append([name, f"{train['n_cells']:,}", f"{train['n_genes']:,}", str(data["n_perturbations"]),
                     str(len(data["contexts"])), data["sha256"][:12]])  # fmt: skip
    table = _table(["round", "cells", "genes", "perturbations", "contexts", "sha256"], rows)
    return f"<p>{escape(versions)}</p><p>{escape(machine)}</p>{table}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _image(path: Path, alt: str) -> str:
    if not path.exists():
        return ""
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<div class="wide"><img alt="{escape(alt)}" src="data:image/png;base64,{content}"></div>'


def _flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the keys whose value is not the same in all runs, with the value of each run in order."""
    flat = [_flattened(config) for config in configs.values()]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = {key: [values.get(key) for values in flat] for key in keys}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}
