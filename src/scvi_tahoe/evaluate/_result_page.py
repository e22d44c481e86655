"""An evaluation as one page for people: verdict first, then checks, scores, figures, baselines and conditions."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from scvi_tahoe.evaluate._metrics import metric_info
from scvi_tahoe.evaluate._summary import metric_columns
from scvi_tahoe.evaluate._verdict import VERDICT_METRICS
from scvi_tahoe.pl import page

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd
    from matplotlib.figure import Figure

    from scvi_tahoe.evaluate._verdict import Verdict

logger = logging.getLogger(__name__)

_COLUMNS = {
    "value": "prediction", "low": "from", "high": "to", "baseline": "baseline", "ceiling": "ceiling", "scaled": "share",
}  # fmt: skip
_FIGURES = {
    "bars": "Each score between baseline and ceiling",
    "ranks": "Discrimination of each perturbation",
    "deltas": "Predicted against observed change of every gene",
}
_STANDING = {"not told apart": "not distinguishable", "undefined": "without an interval"}
_MOST_CONDITIONS = 200


def result_page(
    summary: pd.DataFrame,
    conditions: pd.DataFrame,
    checks: pd.DataFrame,
    baselines: pd.DataFrame,
    verdict: Verdict,
    provenance: Mapping[str, Any],
    draw: Callable[..., Figure],
    *,
    overall: Sequence[str],
    title: str,
    command: str | None,
) -> str:
    """Return the page of :meth:`EvaluationResult.to_html`; ``draw`` draws a figure of the result by its name."""
    columns = [c for c in _COLUMNS if summary[c].notna().any()]
    shown = [name for name in VERDICT_METRICS if name in baselines]
    metrics = [m for m in ("pearson_delta", "mae", "discrimination_score_l1", "overlap_at_N") if m in conditions]
    metrics = metrics or metric_columns(conditions)[:4]
    worst = conditions.sort_values(metrics[0], ascending=metric_info(metrics[0]).best != 0)
    counts = [c for c in ("n_cells", "n_de") if c in conditions]
    settings = {k: v for k, v in provenance.items() if isinstance(v, str | int | float | bool) and str(v)}
    versions = ", ".join(f"{name} {number}" for name, number in provenance["versions"].items())
    return page(
        "result.html.jinja",
        title=title,
        overall=overall,
        verdict=verdict,
        best=[
            [VERDICT_METRICS[str(m)], _STANDING.get(str(row["standing"]), row["standing"]), row["baseline"]]
            + [_number(row[c]) for c in ("value", "other", "difference", "low", "high")]
            for m, row in verdict.best.iterrows()
        ],
        checks=[
            (row["status"], name, row["message"])
            for name, row in checks.iterrows()
            if row["status"] in ("warning", "error")
        ],
        columns=[_COLUMNS[c] for c in columns],
        scores=[[metric_info(str(m)).label, *(_number(row[c]) for c in columns)] for m, row in summary.iterrows()],
        figures=_figures(draw),
        baseline_columns=["", *(VERDICT_METRICS[m] for m in shown)],
        baselines=[[str(name), *(_number(row[m]) for m in shown)] for name, row in baselines.iterrows()],
        condition_columns=[
            "condition",
            *(c.removeprefix("n_") for c in counts),
            *(metric_info(m).label for m in metrics),
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


def _figures(draw: Callable[..., Figure]) -> dict[str, Figure]:
    """Figures that the result has the data for, by what they show."""
    found = {}
    for kind, alt in _FIGURES.items():
        try:
            found[alt] = draw(kind)
        except (ValueError, KeyError) as reason:
            logger.info("the report has no figure %r: %s", kind, reason)
    return found
