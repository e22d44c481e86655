"""What an evaluation returns: shown, kept in a folder, and set side by side."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_tahoe._arguments import checked
from scvi_tahoe.evaluate._baselines import BASELINES, find_baseline
from scvi_tahoe.evaluate._metrics import metric_info, to_full_depth
from scvi_tahoe.evaluate._presets import PRESETS, overall_title
from scvi_tahoe.evaluate._result_page import result_page
from scvi_tahoe.evaluate._summary import mean_over_contexts, metric_columns, shares_of_the_way
from scvi_tahoe.evaluate._verdict import VERDICT_METRICS, judge
from scvi_tahoe.files import (
    MALFORMED,
    UnsafeFileError,
    atomic_folder,
    atomic_write_text,
    member,
    one_line,
    read_csv,
    read_json,
    restore,
    verify_checksums,
    write_checksums,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._verdict import Verdict
    from scvi_tahoe.pl import FigureName

#: metrics that a comparison shows by default, where all results have them
_HEADLINE_METRICS = (
    *("overlap_at_N", "discrimination_score_l1", "mae", "pearson_delta"),
    *("de_direction_match", "pds_cosine", "pearson_systema", "wmse"),
)
#: columns of the summary that are shown
_NUMBERS = ["value", "baseline", "ceiling", "scaled"]
_ALERT = "border-left:4px solid #d55e00;padding:2px 8px;margin:2px 0"
#: release of the format of saved results
_FORMAT = 1
#: tables written as CSV, for people to read, with the number of their index columns
_CSV = {
    **dict.fromkeys(("summary", "checks"), 1),
    **dict.fromkeys(("per_perturbation", "baseline_per_perturbation", "halves_per_perturbation"), 2),
    "baselines_per_perturbation": 3,
    "cells": 0,
}
_STRATA_NAMES = {2: ("weak", "strong"), 3: ("weak", "medium", "strong")}
_PARQUET = ("de_observed", "de_predicted")


@dataclass(frozen=True)
class Effects:
    """Observed and predicted deltas of every condition."""

    #: (context, perturbation) of each row
    conditions: tuple[tuple[str, str], ...]
    #: gene of each column
    genes: NDArray[np.str_]
    #: mean log1p expression minus that of the controls, ``[conditions, genes]``, float32
    observed: NDArray[np.float32]
    predicted: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Scores of one prediction, with everything needed to judge them."""

    #: one row per metric, with ``value``, ``low``, ``high`` (95 % bootstrap interval over perturbations), ``baseline``,
    #: ``ceiling``, ``scaled`` (share of the way from baseline to ceiling), ``scaled_low``, ``scaled_high`` (its
    #: interval, prediction and baseline resampled together), ``direction``, ``n_perturbations``, ``n_missing``.
    #: Contexts are scored one by one and then averaged
    summary: pd.DataFrame
    #: one row per condition, with its cells, its differentially expressed genes and its scores
    per_perturbation: pd.DataFrame
    #: overall score of the challenge with its year, raw and scaled terms, and the value of each context; ``None`` if
    #: the preset or the baseline does not provide it
    vcc: Mapping[str, Any] | None
    #: one row per check, most severe first: ``status``, ``value``, ``allowed``, ``message``
    checks: pd.DataFrame
    #: versions, hashes and settings, which decide whether two results can be compared
    provenance: Mapping[str, Any]
    #: observed and predicted deltas
    effects: Effects
    #: totals and shares of zeros of a sample of cells of both sides; columns ``side`` and ``context``
    cells: pd.DataFrame
    #: scores of the baseline and of the split halves, like ``per_perturbation``
    baseline_per_perturbation: pd.DataFrame | None = None
    #: scores of every baseline that applies; index baseline, context, perturbation
    baselines_per_perturbation: pd.DataFrame | None = None
    halves_per_perturbation: pd.DataFrame | None = None
    #: differential expression, one row per (context, perturbation, gene), if it was tested
    de_observed: pd.DataFrame | None = None
    de_predicted: pd.DataFrame | None = None

    def __repr__(self) -> str:
        preset, baseline = self.provenance["preset"], self.provenance["baseline"]
        head = f"EvaluationResult: preset {preset!r}, {len(self.per_perturbation)} conditions, baseline {baseline!r}"
        table = self.summary[["value", "low", "high", *_NUMBERS[1:]]]
        # on small panels many scores of cell-eval are the same number
        table = table[~table.round(6).duplicated()].rename(columns={"scaled": "share"})
        scores = table.round(4).to_string(na_rep="")
        return "\n".join([head, *self.findings, *self._overall, scores, *self._beside, str(self.verdict)])

    def _repr_html_(self) -> str:
        alerts = [f'<div style="{_ALERT}">{escape(line)}</div>' for line in self.findings]
        overall = [f"<p>{escape(line)}</p>" for line in self._overall]
        titles = {"scaled": "share of the way", "direction": "best"}
        table = self.summary[[*_NUMBERS, "direction"]].rename(index=self.metric_label, columns=titles)
        scores = table.rename_axis(None).to_html(float_format="{:.4f}".format, na_rep="", border=0)
        beside = f"<pre>{escape(chr(10).join([*self._beside, str(self.verdict)]))}</pre>"
        settings = {k: self.provenance.get(k) for k in ("preset", "baseline", "control_cells", "contexts", "truth")}
        settings["truth"] = str(settings["truth"])[:12]
        origin = ", ".join(f"{name}: {value}" for name, value in settings.items())
        versions = ", ".join(f"{name} {number}" for name, number in self.provenance["versions"].items())
        end = f"<small>{escape(origin)}<br>{escape(versions)}</small>"
        return "".join(["<div>", *alerts, *overall, scores, beside, end, "</div>"])

    @property
    def findings(self) -> list[str]:
        """One line per warning and error of the checks, most severe first."""
        found = self.checks[self.checks["status"].isin(["warning", "error"])]
        return [f"{row['status']}: {name}: {row['message']}" for name, row in found.iterrows()]

    @cached_property
    def verdict(self) -> Verdict:
        """Comparison with every baseline, as text and as data."""
        scaled_from = self.baseline_per_perturbation if (self.vcc or {}).get("year") == 2025 else None
        table, seed = self.baselines_per_perturbation, self.provenance["seed"]
        return judge(self.per_perturbation, table, scaled_from=scaled_from, seed=seed)

    @property
    def baselines(self) -> pd.DataFrame:
        """Mean scores of the prediction and of every baseline, one row each, and the overall score if there is one."""
        tables = {"prediction": self.per_perturbation}
        if (table := self.baselines_per_perturbation) is not None:
            tables |= {str(name): side.droplevel("baseline") for name, side in table.groupby(level=0, sort=False)}
        means = pd.DataFrame({name: mean_over_contexts(side) for name, side in tables.items()}).T
        preset, base = PRESETS.get(self.provenance["preset"]), self.baseline_per_perturbation
        if preset is not None and (self.vcc or {}).get("year") == 2025:
            overall = {
                name: (preset.aggregate(side, base) or {}).get("overall", np.nan) for name, side in tables.items()
            }
            means["overall"] = pd.Series(overall)
        return means.rename_axis("prediction")

    @property
    def _beside(self) -> list[str]:
        """Lines of the table of baselines, with the metrics that a verdict is about."""
        if self.baselines_per_perturbation is None:
            return []
        table = self.baselines
        shown = table[[name for name in VERDICT_METRICS if name in table]].rename(columns=VERDICT_METRICS)
        return ["", shown.rename_axis(None).round(4).to_string(), ""]

    @property
    def _overall(self) -> list[str]:
        """Line with the overall score and its terms, if there are some."""
        vcc, baseline = self.vcc, self.provenance["baseline"]
        if vcc is None:
            return []
        terms = [
            f"{name} {vcc[name]:.4f} (baseline {vcc['baseline'][name]:.4f}, counts {share:.4f} of 1)"
            for name, share in vcc.get("scaled", {}).items()
        ]
        other = vcc.get("year") == 2025 and baseline != "train_mean"
        note = f" (from {baseline!r}, not from 'train_mean')" if other else ""
        spread = f" (sd over choices of cells {vcc['sd_draws']:.2f})" if "sd_draws" in vcc else ""
        lines = [f"{overall_title(vcc)} {vcc['overall']:.2f}{spread}{': ' if terms else ''}{', '.join(terms)}{note}"]
        if "challenge" in vcc:
            lines.append(f"With the baseline that the challenge prescribes: {vcc['challenge']['overall']:.2f}")
        return lines

    def ceiling_of_conditions(self, metric: str) -> pd.Series:
        """Return what a replicate would score in each condition, from halves of the cells; empty without halves."""
        halves = self.halves_per_perturbation
        if halves is None or metric not in halves:
            return pd.Series(dtype=float)
        return halves[metric].map(lambda score: to_full_depth(pd.Series({metric: score})).iloc[0])

    @checked()
    def metric_label(self, metric: str) -> str:
        """Return the short name of a metric, for tables and figures."""
        return metric_info(metric).label

    @checked()
    def strata(self, *, n_groups: int = 3) -> pd.DataFrame:
        """Return the mean scores of weak, medium and strong perturbations, see :func:`~scvi_tahoe.evaluate.strata`."""
        return strata(self, n_groups=n_groups)

    @checked()
    def compare(self, other: EvaluationResult, *, names: tuple[str, str] = ("this", "other")) -> pd.DataFrame:
        """Put two results side by side under ``names``, see :func:`~scvi_tahoe.evaluate.compare_results`."""
        return compare_results({names[0]: self, names[1]: other})

    @staticmethod
    @checked()
    def comparison(results: Mapping[str, EvaluationResult], *, metrics: Sequence[str] | None = None) -> pd.DataFrame:
        """Put results side by side, see :func:`~scvi_tahoe.evaluate.compare_results`."""
        return compare_results(results, metrics=metrics)

    @checked()
    def plot(self, kind: FigureName = "bars", **kwargs: Any) -> Figure:
        """Draw one of the figures of :mod:`scvi_tahoe.pl`, see :func:`scvi_tahoe.pl.draw`."""
        from scvi_tahoe import pl

        return pl.draw(kind, self, **kwargs)

    def to_anndata(self) -> AnnData:
        """Return conditions by genes as AnnData, for scanpy and for your own figures.

        Returns
        -------
        ``X`` and ``layers["observed"]`` with predicted and observed deltas (change of mean log1p expression, float32),
        every score of each condition in ``obs``, and ``uns["scvi_tahoe_evaluation"]`` with preset, baseline, versions,
        the verdict and the mean of each score.
        """
        from anndata import AnnData

        scores = self.per_perturbation.loc[list(self.effects.conditions)]
        obs = scores.reset_index()
        obs.index = pd.Index([f"{perturbation} in {context}" for context, perturbation in scores.index])
        record = {
            "preset": self.provenance["preset"], "baseline": str(self.provenance["baseline"]),
            "versions": dict(self.provenance["versions"]), "verdict": str(self.verdict),
            "summary": self.summary["value"].to_dict(),
        }  # fmt: skip
        return AnnData(
            self.effects.predicted, obs=obs, var=pd.DataFrame(index=self.effects.genes.astype(str)),
            layers={"observed": self.effects.observed}, uns={"scvi_tahoe_evaluation": record},
        )  # fmt: skip

    @checked()
    def to_html(self, path: str | os.PathLike[str], *, title: str = "Evaluation", command: str | None = None) -> None:
        """Write a report as one HTML file: verdict, checks, scores with figures, every baseline, and each condition.

        Parameters
        ----------
        path
            File to write; an earlier one is replaced.
        title
            Heading of the page.
        command
            What made the prediction or the scores, shown as it is.
        """
        text = result_page(
            self.summary, self.per_perturbation, self.checks, self.baselines, self.verdict, self.provenance, self.plot,
            overall=self._overall, title=title, command=command,
        )  # fmt: skip
        atomic_write_text(Path(path), text)

    @checked()
    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the result to a folder: CSV for the scores, parquet for large tables, JSON and NPZ for the rest.

        The folder appears complete or not at all; an earlier result of the same name is replaced, anything else there
        is a FileExistsError.
        """
        with atomic_folder(folder, overwrite=True, kind="evaluation result", signatures=["result.json"]) as partial:
            for name in (*_CSV, *_PARQUET):
                if (table := getattr(self, name)) is not None and name in _CSV:
                    table.to_csv(partial / f"{name}.csv", index=_CSV[name] > 0)
                elif table is not None:
                    table.to_parquet(partial / f"{name}.parquet")
            np.savez_compressed(partial / "effects.npz", **vars(self.effects))
            record = {"format": _FORMAT, "vcc": self.vcc, "provenance": dict(self.provenance)}
            (partial / "verdict.txt").write_text(f"{self.verdict}\n")
            (partial / "result.json").write_text(json.dumps(record, indent=1, default=float))
            write_checksums(partial)

    @classmethod
    @checked()
    def load(cls, folder: str | os.PathLike[str]) -> EvaluationResult:
        """Read a result that :meth:`save` wrote.

        Raises
        ------
        FileNotFoundError
            If the folder holds none.
        ValueError
            If it is damaged, or of a later format.
        """
        folder = Path(folder)
        restore(folder)
        if not (folder / "result.json").exists():
            raise FileNotFoundError(f"{folder} holds no evaluation result (no result.json).")
        record = read_json(member(folder, "result.json"))
        if record.get("format") != _FORMAT:
            raise ValueError(
                f"{folder} has format {record.get('format')} and this release reads format {_FORMAT}; update "
                "scvi-tahoe."
            )
        verify_checksums(folder)
        try:
            parquet = {name: folder / f"{name}.parquet" for name in _PARQUET}
            with np.load(folder / "effects.npz", allow_pickle=False) as arrays:
                conditions = tuple((str(c), str(p)) for c, p in arrays["conditions"])
                effects = Effects(conditions, arrays["genes"], arrays["observed"], arrays["predicted"])
            tables: dict[str, Any] = {name: _read_csv(folder / f"{name}.csv", name) for name in _CSV}
            tables |= {name: pd.read_parquet(path) if path.exists() else None for name, path in parquet.items()}
            return cls(vcc=record["vcc"], provenance=record["provenance"], effects=effects, **tables)
        except MALFORMED as error:
            raise UnsafeFileError(f"the evaluation result in {folder} is damaged: {one_line(error)}") from None


def _read_csv(path: Path, name: str) -> pd.DataFrame | None:
    if not path.exists():
        return None
    # labels such as "1" or "NA" are names, not numbers or gaps
    types: dict[Any, Any] = {"side": str, "context": str} if name == "cells" else dict.fromkeys(range(_CSV[name]), str)
    table = read_csv(path, dtype=types, keep_default_na=False, na_values=[""])
    if name == "checks":
        table[["allowed", "message"]] = table[["allowed", "message"]].fillna("")
    return table.set_index(list(table.columns[: _CSV[name]])) if _CSV[name] else table


@checked()
def strata(result: EvaluationResult, *, n_groups: int = 3) -> pd.DataFrame:
    """Return the mean scores of groups of perturbations of similar observed effect size.

    Strong perturbations are easy to distinguish and saturate a score, weak ones are mostly noise; a mean over both
    hides progress on either.

    The groups, ``n_groups`` of equal size, are by the length of the observed delta within each context; a ValueError if
    there are fewer than two, or fewer perturbations than groups.

    Returns
    -------
    One row per group, ``"weak"`` to ``"strong"`` (numbers for other than 2 or 3 groups); columns are pairs of a metric
    and ``"value"``, ``"baseline"``, ``"ceiling"`` or ``"scaled"`` (those that the result has), and ``n_perturbations``.
    As in the summary, contexts are averaged one by one and then together. Scores of the whole panel are left out.
    """
    scores, baseline, halves = result.per_perturbation, result.baseline_per_perturbation, result.halves_per_perturbation
    if n_groups < 2 or len(scores) < n_groups:
        raise ValueError(f"n_groups must be between 2 and the number of perturbations, {len(scores)}; got {n_groups}.")
    effect_size = np.linalg.norm(result.effects.observed, axis=1)
    by_context = pd.Series(effect_size, index=scores.index).groupby(level="context")
    rank = by_context.rank(method="first").astype(int)
    group = -(-rank * n_groups // by_context.transform("size"))  # 1 for the weakest
    metrics = [m for m in metric_columns(scores) if not metric_info(m).whole_panel]
    sides = {"value": _group_means(scores[metrics], group)}
    if baseline is not None:
        sides["baseline"] = _group_means(baseline.reindex(columns=metrics), group)
    if halves is not None:
        sides["ceiling"] = _group_means(halves.reindex(columns=metrics), group, full_depth=True)
    if len(sides) == 3:
        rows = [
            shares_of_the_way(metrics, *(side.loc[g].to_numpy() for side in sides.values()))
            for g in sides["value"].index
        ]
        sides["scaled"] = pd.DataFrame(rows, index=sides["value"].index, columns=metrics)
    table = pd.DataFrame({(m, name): side[m] for m in metrics for name, side in sides.items()})
    counts = group.value_counts().reindex(range(1, n_groups + 1), fill_value=0)
    table.insert(0, ("n_perturbations", ""), counts.to_numpy())
    table.index = pd.Index(_STRATA_NAMES.get(n_groups, tuple(range(1, n_groups + 1))), name="effect size")
    return table


def _group_means(table: pd.DataFrame, group: pd.Series, *, full_depth: bool = False) -> pd.DataFrame:
    """Return means over the perturbations of a group in each context, then over contexts."""
    table = table.reindex(group.index)
    means = table.groupby([table.index.get_level_values("context"), group.to_numpy()], sort=False).mean()
    if full_depth:
        means = means.apply(to_full_depth, axis=1)
    return means.groupby(level=1).mean().reindex(range(1, int(group.max()) + 1))


@checked()
def compare_results(
    results: Mapping[str, EvaluationResult],
    *,
    metrics: Sequence[str] | None = None,
    baseline: bool = True,
    ceiling: bool = True,
) -> pd.DataFrame:
    """Return one row per prediction and one column per metric, with the overall score of the challenge if any has one.

    Parameters
    ----------
    results
        Results by name, all against the same truth under the same settings; a ValueError says what differs.
    metrics
        Metrics to show, which all results must have. If None, the headline metrics that they have.
    baseline
        Add a row with the baseline that shares of the way and overall scores start from, unless one of the predictions
        is that baseline.
    ceiling
        Add a last row with what a replicate experiment would reach.
    """
    _verify_comparable(results)
    first = next(iter(results.values()))
    if metrics is None:
        metrics = [m for m in _HEADLINE_METRICS if all(m in r.summary.index for r in results.values())]
    absent = [m for m in metrics if any(m not in r.summary.index for r in results.values())]
    if absent:
        raise KeyError(f"Metrics {absent} are not in every result; they have {list(first.summary.index)}.")
    rows = {name: result.summary.loc[list(metrics), "value"] for name, result in results.items()}
    scaled = next((r for r in results.values() if r.provenance["baseline"] is not None), first)
    base = scaled.summary.loc[list(metrics), "baseline"]
    if baseline and base.notna().any() and not any(_close(base, row) for row in rows.values()):
        # further scores, as those of 2026, have a baseline of their own beside the named one
        preset = PRESETS.get(scaled.provenance["preset"])
        several = preset is not None and preset.extend is not None
        rows["baseline" if several else f"baseline ({scaled.provenance['baseline']})"] = base
    if ceiling and first.summary["ceiling"].notna().any():
        rows["ceiling (replicate)"] = first.summary.loc[list(metrics), "ceiling"]
    table = pd.DataFrame(rows).T
    challenges = {name: result.vcc for name, result in results.items() if result.vcc is not None}
    if challenges:
        title = overall_title(next(iter(challenges.values())))
        table[title] = [challenges[n]["overall"] if n in challenges else np.nan for n in table.index]
    table.index.name = "prediction"
    return table


def _verify_comparable(results: Mapping[str, EvaluationResult]) -> None:
    """Reject results that differ in truth, settings, baseline or release of cell-eval."""
    if not results:
        raise ValueError("There is no result to compare.")
    (first_name, first), *others = results.items()
    for name, other in others:
        one, two = first.provenance, other.provenance
        different = [key for key in ("truth", "preset", "control_cells", "match_cells") if one.get(key) != two.get(key)]
        packages = ("cell-eval", "pdex", "cell-eval2")
        different += [p for p in packages if one["versions"].get(p) != two["versions"].get(p)]
        if not different and not _same_baseline(first, other):
            different = ["baseline"]
        if different:
            raise ValueError(
                f"Results {first_name!r} and {name!r} cannot be compared: they differ in {', '.join(different)}."
            )


def _same_baseline(one: EvaluationResult, other: EvaluationResult) -> bool:
    """Return whether scaled and overall scores start from the same baseline; without one there are none to compare.

    A named baseline is the same with another seed: its cells are drawn anew, from the same training data.
    """
    names = [side.provenance["baseline"] for side in (one, other)]
    if None in names:
        return True
    if all(str(name).partition(":")[0] in BASELINES for name in names):
        from_training = find_baseline(names[0])[0].needs_train
        return names[0] == names[1] and not (from_training and one.provenance["train"] != other.provenance["train"])
    return _close(one.summary["baseline"], other.summary["baseline"])


def _close(one: pd.Series, other: pd.Series) -> bool:
    return bool(np.allclose(one.to_numpy(float), other.to_numpy(float), rtol=1e-6, atol=0, equal_nan=True))
