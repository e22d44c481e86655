"""Comparison with baselines: paired differences with intervals, and a verdict as text.

"Ahead" and "behind" are said only where the interval of the difference excludes zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_tahoe._arguments import checked
from scvi_tahoe.evaluate._metrics import metric_info
from scvi_tahoe.evaluate._prediction_checks import FEWEST_DE
from scvi_tahoe.evaluate._presets import TERMS, overall_of_means
from scvi_tahoe.evaluate._summary import bootstrap_by_context, interval, mean_over_contexts, mean_without_missing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: metrics that a verdict is about, and their short names
VERDICT_METRICS = {
    "overlap_at_N": "DES", "discrimination_score_l1": "PDS", "mae": "MAE", "pearson_delta": "Pearson",
    "overall": "overall score",
}  # fmt: skip
_WORDS = {"ahead": "ahead of", "not told apart": "not distinguishable from", "behind": "behind"}
#: fewest conditions whose bootstrap gives an interval, and fewest for one that is narrow enough to decide often
_FEWEST, _ENOUGH = 5, 30


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Comparison of a prediction with every baseline; ``str`` gives the text.

    Attributes
    ----------
    differences
        One row per baseline and metric, see :func:`paired_differences`.
    best
        The row of the best baseline of each metric; index metric.
    undefined
        Why a metric, or a part of it, says nothing; by the short name of the metric.
    advice
        What to do next.
    n_conditions
        Number of conditions.
    """

    differences: pd.DataFrame
    best: pd.DataFrame
    undefined: Mapping[str, str]
    advice: Sequence[str]
    n_conditions: int

    def __str__(self) -> str:
        lines = [f"Verdict on {self.n_conditions} conditions (95 % intervals over conditions):"]
        lines += [f"  {line}" for metric in self.best.index for line in self._lines(str(metric))]
        lines += [f"  undefined: {name}: {why}" for name, why in self.undefined.items()]
        lines += [f"  next: {line}" for line in self.advice]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain data."""
        differences = self.differences.reset_index().to_dict(orient="records")
        best = self.best.reset_index().to_dict(orient="records")
        return {
            "n_conditions": self.n_conditions, "differences": differences, "best": best,
            "undefined": dict(self.undefined), "advice": list(self.advice), "text": str(self),
        }  # fmt: skip

    @checked()
    def baselines(self, standing: str, metric: str) -> list[str]:
        """Names of the baselines that a prediction is ``"ahead"`` of, ``"behind"``, or ``"not told apart"`` from."""
        table = self.differences.xs(metric, level="metric")
        return [str(name) for name in table.index[table["standing"] == standing]]

    def _lines(self, metric: str) -> list[str]:
        """Line about the best baseline of a metric, and lines about the others by standing."""
        row: pd.Series[Any] = self.best.T[metric]
        name, words = VERDICT_METRICS[metric], {**_WORDS, "undefined": "no interval against"}
        lines = [
            f"{name}: {words[str(row['standing'])]} the best baseline, {row['baseline']} ({_difference(metric, row)})"
        ]
        for standing, word in _WORDS.items():
            if others := [other for other in self.baselines(standing, metric) if other != row["baseline"]]:
                lines.append(f"    {word} {', '.join(others)}")
        return lines


def _difference(metric: str, row: pd.Series) -> str:
    digits = 1 if metric == "overall" else 4 if metric == "mae" else 3
    value, other, by, low, high = (row[name] for name in ("value", "other", "difference", "low", "high"))
    if not np.isfinite([low, high]).all():
        return f"{value:.{digits}f} against {other:.{digits}f}, {by:+.{digits}f}"
    return f"{value:.{digits}f} against {other:.{digits}f}, {by:+.{digits}f}, {low:+.{digits}f} to {high:+.{digits}f}"


@checked()
def paired_differences(
    scores: pd.DataFrame, baselines: pd.DataFrame, *, scaled_from: pd.DataFrame | None = None, seed: int = 0
) -> pd.DataFrame:
    """Compare the scores of a prediction with those of each baseline, metric by metric.

    Parameters
    ----------
    scores, baselines
        One row per (context, perturbation), and per (baseline, context, perturbation).
    scaled_from
        Scores of the baseline that the overall score of 2025 starts from. If None, it is left out.
    seed
        Random seed of the bootstrap over conditions, the same conditions on both sides.

    Returns
    -------
    One row per (baseline, metric): ``value`` of the prediction, ``other``, ``difference`` with ``low`` and ``high``
    (95 %; prediction minus baseline), ``n_conditions`` that count, and ``standing``: ``"ahead"`` or ``"behind"`` if the
    interval excludes zero, ``"not told apart"`` if not, ``"undefined"`` without an interval. Scores of differentially
    expressed genes are over conditions with two observed ones or more.
    """
    metrics = [name for name in VERDICT_METRICS if name in scores and name in baselines]
    names = list(dict.fromkeys(baselines.index.get_level_values("baseline")))
    defined = defined_scores(scores, scores, metrics)
    sides = [defined_scores(baselines.loc[name].reindex(scores.index), scores, metrics) for name in names]
    resampled = bootstrap_by_context([defined, *sides], seed=seed)
    rows = {}
    for name, side, other in zip(names, sides, resampled[1:], strict=True):
        difference = mean_without_missing(resampled[0] - other)
        low, high = interval(difference)
        both = defined.notna() & side.notna()
        values, others = mean_over_contexts(defined.where(both)), mean_over_contexts(side.where(both))
        for i, metric in enumerate(metrics):
            row = (values[metric], others[metric], low[i], high[i], int(both[metric].sum()))
            rows[name, metric] = _row(metric, *row)
    if scaled_from is not None and set(TERMS.values()) <= set(scores) & set(baselines):
        rows |= _overall_rows(scores, baselines, names, scaled_from, seed=seed)
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(list(rows), names=["baseline", "metric"])
    return table


def _overall_rows(
    scores: pd.DataFrame, baselines: pd.DataFrame, names: Sequence[str], scaled_from: pd.DataFrame, *, seed: int
) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of the overall score of 2025, its baseline resampled together with both sides."""
    terms = list(TERMS.values())
    sides = [scaled_from, scores, *(pd.DataFrame(baselines.xs(name)) for name in names)]
    tables = [side[terms].reindex(scores.index) for side in sides]
    base, mine, *others = bootstrap_by_context(tables, seed=seed)
    means = [table.groupby(level="context", sort=False).mean().to_numpy()[:, None] for table in tables]
    value = float(overall_of_means(means[1], means[0])[0])
    rows = {}
    for name, other, mean in zip(names, others, means[2:], strict=True):
        difference = overall_of_means(mine, base) - overall_of_means(other, base)
        low, high = interval(difference[:, None])
        there = float(overall_of_means(mean, means[0])[0])
        rows[name, "overall"] = _row("overall", value, there, low[0], high[0], len(scores))
    return rows


def _row(metric: str, value: float, other: float, low: float, high: float, n: int) -> dict[str, Any]:
    sign = -1 if metric != "overall" and metric_info(metric).best == 0 else 1
    if n < _FEWEST or not np.isfinite([low, high]).all():
        standing, low, high = "undefined", np.nan, np.nan
    elif min(low * sign, high * sign) > 0:
        standing = "ahead"
    else:
        standing = "behind" if max(low * sign, high * sign) < 0 else "not told apart"
    return {
        "value": value, "other": other, "difference": value - other, "low": low, "high": high, "n_conditions": n,
        "standing": standing,
    }  # fmt: skip


def defined_scores(table: pd.DataFrame, scores: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Leave out scores of differentially expressed genes where a condition has none or one."""
    kept = table[list(metrics)].astype(float).copy()
    if "n_de_observed" in scores:
        few = (scores["n_de_observed"] < FEWEST_DE).to_numpy()
        kept.loc[few, [name for name in metrics if metric_info(name).needs_de]] = np.nan
    return kept


def judge(
    scores: pd.DataFrame, baselines: pd.DataFrame | None, *, scaled_from: pd.DataFrame | None = None, seed: int = 0
) -> Verdict:
    """Make the verdict on the scores of a prediction; arguments are those of :func:`paired_differences`."""
    n = len(scores)
    undefined = _undefined(scores)
    columns = ["value", "other", "difference", "low", "high", "n_conditions", "standing"]
    if baselines is None:
        index = pd.MultiIndex.from_arrays([[], []], names=["baseline", "metric"])
        nothing = pd.DataFrame(columns=columns, index=index)
        advice = ["no baseline was scored, so there is nothing to compare with: evaluate with baselines=True"]
        best = pd.DataFrame(columns=["baseline", *columns], index=pd.Index([], name="metric"))
        return Verdict(differences=nothing, best=best, undefined=undefined, advice=advice, n_conditions=n)
    table = paired_differences(scores, baselines, scaled_from=scaled_from, seed=seed)
    best = _best(table)
    for metric, row in best.iterrows():
        if row["standing"] == "undefined" and n >= _FEWEST:
            name, left = VERDICT_METRICS[str(metric)], row["n_conditions"]
            why = f"{left} conditions are left, too few for an interval; {_FEWEST} are needed"
            undefined[name] = f"{undefined[name]}. {why}" if name in undefined else why
    if n < _FEWEST:
        undefined["intervals"] = f"{n} conditions are too few for intervals over conditions; {_FEWEST} are needed"
    from_training = set(table.index.get_level_values("baseline")) - {"control"}
    advice = _advice(best, undefined, n, with_training=bool(from_training))
    return Verdict(differences=table, best=best, undefined=undefined, advice=advice, n_conditions=n)


def _best(table: pd.DataFrame) -> pd.DataFrame:
    """Row of the best baseline of each metric."""
    rows = {}
    for metric in VERDICT_METRICS:
        if metric not in table.index.get_level_values("metric"):
            continue
        side = table.xs(metric, level="metric")
        known = side["other"].dropna()
        if len(known):
            lower = metric != "overall" and metric_info(metric).best == 0
            name = str(known.idxmin() if lower else known.idxmax())
            rows[metric] = {"baseline": name, **side.T[name].to_dict()}
    best = pd.DataFrame.from_dict(rows, orient="index", columns=["baseline", *table.columns])
    best.index.name = "metric"
    return best


def _undefined(scores: pd.DataFrame) -> dict[str, str]:
    """Say which metrics have no meaning on these conditions, and why."""
    found, n = {}, len(scores)
    if "n_de_observed" in scores and "overlap_at_N" in scores:
        none, one = ((scores["n_de_observed"] == k).sum() for k in (0, 1))
        if none + one:
            found["DES"] = (
                f"no differentially expressed gene in {none} of {n} conditions and only one in {one}, so an "
                "overlap of gene lists means nothing for them. They are left out here; in the summary, and so in a "
                "third of the overall score, they count as cell-eval counts them"
            )
    sizes = scores.groupby(level="context").size()
    if (sizes == 1).any():
        found["PDS"] = (
            f"{(sizes == 1).sum()} of {len(sizes)} contexts have only one condition, which is always ranked first"
        )
    return found


def _advice(best: pd.DataFrame, undefined: Mapping[str, str], n: int, *, with_training: bool) -> list[str]:
    """Say what to do next."""
    if not with_training:
        return ["give the training data (train=...), which most baselines are computed from"]
    if n < _FEWEST:
        enough = f"{_ENOUGH} are often enough for a decision"
        return [f"hold out at least {_FEWEST} conditions ({enough}), or score several folds together"]
    advice = []
    behind = best[best["standing"] == "behind"]
    if len(behind):
        metrics, names = ", ".join(behind.index.map(VERDICT_METRICS)), ", ".join(dict.fromkeys(behind["baseline"]))
        advice.append(f"use the baseline where it is better ({metrics}: {names}), or start from it")
    level = best[(best["standing"] == "not told apart") & (best["low"] < best["high"])]
    if len(level):
        more = "score more conditions (folds of the seen ones)" if n < _ENOUGH else "compare several seeds"
        names = ", ".join(level.index.map(VERDICT_METRICS))
        advice.append(f"{more} before you claim a lead over the best baseline in {names}")
    if "DES" in undefined:
        advice.append("read PDS, MAE and Pearson rather than the overall score, or observe more cells")
    if not advice:
        advice.append("repeat with other seeds and folds: intervals are over conditions, not over trainings")
    return advice
