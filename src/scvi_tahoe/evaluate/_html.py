"""How a result looks in a notebook: warnings first, then the numbers."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from scvi_tahoe.evaluate._metrics import metric_info
from scvi_tahoe.evaluate._text import other_baseline

if TYPE_CHECKING:
    from scvi_tahoe.evaluate._result import EvaluationResult

__all__ = ["result_html"]

_ALERT = "border-left:4px solid #d55e00;padding:2px 8px;margin:2px 0"


def result_html(result: EvaluationResult) -> str:
    """Return the result as HTML: findings of the checks, the challenge's score with its terms, the table of metrics."""
    return "".join(["<div>", _findings(result), _challenge(result), _table(result), _origin(result), "</div>"])


def _findings(result: EvaluationResult) -> str:
    grave = result.checks[result.checks["status"].isin(["warning", "error"])]
    lines = [
        f'<div style="{_ALERT}"><b>{escape(str(name))}</b>: {escape(str(row["message"]))}</div>'
        for name, row in grave.iterrows()
    ]
    return "".join(lines)


def _challenge(result: EvaluationResult) -> str:
    if result.vcc is None:
        return ""
    vcc = result.vcc
    terms = "".join(
        f"<td>{name} {vcc[name]:.4f} <small>(baseline {vcc['baseline'][name]:.4f}, scaled "
        f"{vcc['scaled'][name]:.4f})</small></td>"
        for name in vcc["scaled"]
    )
    overall = f"VCC {vcc['year']} overall {vcc['overall']:.2f}{escape(other_baseline(result))}"
    return f"<table><tr><th>{overall}</th>{terms}</tr></table>"


def _table(result: EvaluationResult) -> str:
    head = "".join(
        f"<th>{name}</th>" for name in ("metric", "value", "baseline", "ceiling", "share of the way", "best")
    )
    rows = []
    for name, row in result.summary.iterrows():
        numbers = "".join(f"<td>{_number(row[column])}</td>" for column in ("value", "baseline", "ceiling", "scaled"))
        rows.append(
            f"<tr><td>{escape(metric_info(str(name)).label)}</td>{numbers}<td>{escape(row['direction'])}</td></tr>"
        )
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _origin(result: EvaluationResult) -> str:
    told = {key: result.provenance.get(key) for key in ("preset", "baseline", "control_cells", "contexts", "truth")}
    told["truth"] = str(told["truth"])[:12]
    versions = ", ".join(f"{name} {number}" for name, number in result.provenance["versions"].items())
    return f"<small>{escape(', '.join(f'{k}: {v}' for k, v in told.items()))}<br>{escape(versions)}</small>"


def _number(value: float) -> str:
    return "" if value != value else f"{value:.4f}"  # NaN is the only number that differs from itself
