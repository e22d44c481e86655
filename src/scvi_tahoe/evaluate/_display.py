"""How a result looks in a terminal and in a notebook: warnings first, then the challenge's score, then the metrics."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from scvi_tahoe.evaluate._metrics import metric_info

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

_ALERT = "border-left:4px solid #d55e00;padding:2px 8px;margin:2px 0"
_NUMBERS = ["value", "baseline", "ceiling", "scaled"]


def result_text(
    summary: pd.DataFrame, vcc: Mapping[str, Any] | None, findings: pd.DataFrame, provenance: Mapping[str, Any], n: int
) -> str:
    """Return a result with ``n`` conditions as text."""
    head = f"EvaluationResult: preset {provenance['preset']!r}, {n} conditions, baseline {provenance['baseline']!r}"
    lines = [head, *finding_lines(findings)]
    if vcc is not None:
        terms = [
            f"{name} {vcc[name]:.4f} (baseline {vcc['baseline'][name]:.4f}, scaled {share:.4f})"
            for name, share in vcc["scaled"].items()
        ]
        overall = f"VCC {vcc['year']} overall {vcc['overall']:.2f}"
        lines.append(f"{overall}: {', '.join(terms)}{_other_baseline(vcc, provenance)}")
    return "\n".join([*lines, summary[_NUMBERS].round(4).to_string()])


def finding_lines(findings: pd.DataFrame) -> list[str]:
    """Return one line for each warning and error."""
    return [f"{row['status']}: {name}: {row['message']}" for name, row in findings.iterrows()]


def _other_baseline(vcc: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """Return a note on an overall score of 2025 that does not start from the challenge's own baseline."""
    name = provenance["baseline"]
    if vcc["year"] != 2025 or name == "train_mean":
        return ""
    return f" (from {name!r}, not from 'train_mean' as in the challenge)"


def result_html(
    summary: pd.DataFrame, vcc: Mapping[str, Any] | None, findings: pd.DataFrame, provenance: Mapping[str, Any]
) -> str:
    """Return a result as HTML."""
    alerts = [
        f'<div style="{_ALERT}"><b>{escape(str(name))}</b>: {escape(str(row["message"]))}</div>'
        for name, row in findings.iterrows()
    ]
    challenge = "" if vcc is None else _challenge_html(vcc, provenance)
    return "".join(["<div>", *alerts, challenge, _table_html(summary), _origin_html(provenance), "</div>"])


def _challenge_html(vcc: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    terms = "".join(
        f"<td>{name} {vcc[name]:.4f} <small>(baseline {vcc['baseline'][name]:.4f}, scaled {share:.4f})</small></td>"
        for name, share in vcc["scaled"].items()
    )
    overall = f"VCC {vcc['year']} overall {vcc['overall']:.2f}{escape(_other_baseline(vcc, provenance))}"
    return f"<table><tr><th>{overall}</th>{terms}</tr></table>"


def _table_html(summary: pd.DataFrame) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("metric", *_NUMBERS[:3], "share of the way", "best"))
    rows = []
    for name, row in summary.iterrows():
        values = [row[column] for column in _NUMBERS]
        numbers = "".join("<td></td>" if value != value else f"<td>{value:.4f}</td>" for value in values)  # NaN: empty
        label, direction = escape(metric_info(str(name)).label), escape(row["direction"])
        rows.append(f"<tr><td>{label}</td>{numbers}<td>{direction}</td></tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _origin_html(provenance: Mapping[str, Any]) -> str:
    settings = {key: provenance.get(key) for key in ("preset", "baseline", "control_cells", "contexts", "truth")}
    settings["truth"] = str(settings["truth"])[:12]
    versions = ", ".join(f"{name} {number}" for name, number in provenance["versions"].items())
    return f"<small>{escape(', '.join(f'{k}: {v}' for k, v in settings.items()))}<br>{escape(versions)}</small>"
