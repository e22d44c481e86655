"""The report of a study: one HTML file that needs nothing else, neither files nor a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvi_tahoe.files import read_json
from scvi_tahoe.pl import page
from scvi_tahoe.study._files import read_mapping
from scvi_tahoe.study._finding import LEVELS
from scvi_tahoe.study._log_diagnosis import diagnose
from scvi_tahoe.study._plain_values import differences
from scvi_tahoe.study._run_files import CONFIG, FIGURES, PROVENANCE, REPORT
from scvi_tahoe.study._scores import SCORED

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    config = result.config
    published = any(c.startswith("published_") for c in result.table.columns)
    return page(
        "study.html.jinja", title=config.title or config.name, text=config.text, lesson=result.lesson,
        folder=result.folder, scores=_scores(result), note=_NOTE + (_NOTE_ON_PUBLISHED if published else ""),
        rounds=_rounds(result), checks=_checks(result), best=_best(result), logs=_logs(logs), configs=_configs(result),
        **_origin(result),
    )  # fmt: skip


def _scores(result: StudyResult) -> dict[str, Any]:
    table = result.table
    published = [c for c in table.columns if c.startswith("published_")]
    columns = [c for c in table.columns if c not in (*published, "year") and table[c].notna().any()]
    years: Any = table["year"].dropna().unique() if "year" in table else []
    year = f" ({int(years[0])})" if len(years) else ""
    names = {"best_step": "best step", "seconds": "time", "overall": f"overall{year}"}
    head = ["round", *(names.get(c, c) for c in columns), *(c.replace("published_", "published ") for c in published)]
    rows = [[str(name), *(_cell(c, row[c]) for c in [*columns, *published])] for name, row in table.iterrows()]
    return {"head": head, "rows": rows + _reference_rows(result, columns, len(published))}


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


def _rounds(result: StudyResult) -> list[dict[str, Any]]:
    rounds = []
    for one in result.config.rounds:
        folder = result.folder / one.name
        report = (folder / REPORT).read_text() if (folder / REPORT).exists() else ""
        figure = folder / FIGURES / "deltas.png"
        rounds.append({"name": one.name, "title": one.title, "origin": one.origin, "figure": figure, "report": report})
    return rounds


def _best(result: StudyResult) -> str:
    """Name the round with the highest overall score, or the last one."""
    overall = result.table["overall"].dropna().astype(float) if "overall" in result.table else result.table.iloc[:0]
    return str(overall.idxmax()) if len(overall) else result.config.rounds[-1].name


def _checks(result: StudyResult) -> list[tuple[str, str, str]]:
    checks = {name: run.scores.checks for name, run in result.runs.items() if run.scores is not None}
    return [
        (row["status"], f"{name}, {check}", str(row["message"]))
        for name, table in checks.items()
        for check, row in table[table["status"].isin(["warning", "error"])].iterrows()
    ]


def _logs(logs: Mapping[str, TrainingLog]) -> list[dict[str, Any]]:
    found = []
    for diagnosis in diagnose(list(logs.values())):
        ordered = sorted(diagnosis.findings, key=lambda f: LEVELS.index(f.level))
        n = sum(f.level != "note" for f in ordered)
        found.append({
            "summary": f"{diagnosis.log.name}: {n} warning{'s' * (n != 1)}, {len(ordered) - n} notes",
            "is_open": any(f.level == "error" for f in ordered),
            "findings": [(f.level, f.where, f.message) for f in ordered],
        })  # fmt: skip
    return found


def _configs(result: StudyResult) -> dict[str, Any]:
    configs = {name: read_mapping(run.folder / CONFIG) for name, run in result.runs.items()}
    found = {key: values for key, values in differences(configs.values()).items() if key not in _HIDDEN_KEYS}
    texts = {list: lambda value: ", ".join(map(str, value)), type(None): lambda value: ""}
    rows = [[key, *(texts.get(type(v), str)(v) for v in found[key])] for key in found]
    return {"head": ["key", *configs], "rows": rows}


def _origin(result: StudyResult) -> dict[str, Any]:
    records = {name: read_json(run.folder / PROVENANCE) for name, run in result.runs.items()}
    first, rows = next(iter(records.values())), []
    for name, data in ((name, record["data"]) for name, record in records.items()):
        sizes = (data["train"]["n_cells"], data["train"]["n_genes"], data["n_perturbations"], len(data["contexts"]))
        rows.append([name, *(f"{size:,}" for size in sizes), data["sha256"][:12]])
    texts = [", ".join(f"{name} {value}" for name, value in first[part].items()) for part in ("versions", "machine")]
    return {"origin": texts, "data": rows}
