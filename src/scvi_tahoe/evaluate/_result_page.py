"""An evaluation as one page for people: verdict first, then checks, scores, figures, baselines and conditions."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from scvi_tahoe.evaluate._metrics import metric_info
from scvi_tahoe.evaluate._summary import metric_columns
from scvi_tahoe.evaluate._verdict import VERDICT_METRICS
from scvi_tahoe.pl import page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from scvi_tahoe.evaluate._result import EvaluationResult

logger = logging.getLogger(__name__)

_COLUMNS = {
    "value": "prediction", "low": "from", "high": "to", "baseline": "baseline", "ceiling": "ceiling", "scaled": "share",
}  # fmt: skip
_FIGURES = {
    "bars": "Each score between baseline and ceiling",
    "ranks": "Discrimination of each perturbation",
    "deltas": "Predicted against observed change of every gene",
}
_MOST_CONDITIONS = 200


def result_page(result: EvaluationResult, *, title: str, command: str | None) -> str:
    """Return the page of :meth:`EvaluationResult.to_html`."""
    verdict, baselines = result.verdict, result.baselines
    columns = [c for c in _COLUMNS if result.summary[c].notna().any()]
    shown = [name for name in VERDICT_METRICS if name in baselines]
    conditions = result.per_perturbation
    metrics = [m for m in ("pearson_delta", "mae", "discrimination_score_l1", "overlap_at_N") if m in conditions]
    metrics = metrics or metric_columns(conditions)[:4]
    worst = conditions.sort_values(metrics[0], ascending=metric_info(metrics[0]).best != 0)
    counts = [c for c in ("n_cells", "n_de") if c in conditions]
    settings = {k: v for k, v in result.provenance.items() if isinstance(v, str | int | float | bool) and str(v)}
    versions = ", ".join(f"{name} {number}" for name, number in result.provenance["versions"].items())
    return page(
        "result.html.jinja",
        title=title,
        overall=result._overall,
        verdict=verdict,
        best=[
            [VERDICT_METRICS[str(m)], str(row["standing"]), row["baseline"]]
            + [_number(row[c]) for c in ("value", "other", "difference", "low", "high")]
            for m, row in verdict.best.iterrows()
        ],
        checks=[
            (row["status"], name, row["message"])
            for name, row in result.checks.iterrows()
            if row["status"] in ("warning", "error")
        ],
        columns=[_COLUMNS[c] for c in columns],
        scores=[
            [result.metric_label(str(m)), *(_number(row[c]) for c in columns)] for m, row in result.summary.iterrows()
        ],
        figures=_figures(result),
        baseline_columns=["", *(VERDICT_METRICS[m] for m in shown)],
        baselines=[[str(name), *(_number(row[m]) for m in shown)] for name, row in baselines.iterrows()],
        condition_columns=[
            "condition",
            *(c.removeprefix("n_") for c in counts),
            *(result.metric_label(m) for m in metrics),
        ],
        conditions=[
            [f"{label} in {context}", *(str(int(row[c])) for c in counts), *(_number(row[m]) for m in metrics)]
            for (context, label), (_, row) in zip(worst.index, worst.head(_MOST_CONDITIONS).iterrows(), strict=False)
        ],
        command=command,
        settings=[*([name, str(value)] for name, value in settings.items()), ["versions", versions]],
    )


def _number(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.4f}"


def _figures(result: EvaluationResult) -> dict[str, Figure]:
    """Figures that the result has the data for, by what they show."""
    found = {}
    for kind, alt in _FIGURES.items():
        try:
            found[alt] = result.plot(kind)
        except (ValueError, KeyError) as reason:
            logger.info("the report has no figure %r: %s", kind, reason)
    return found
