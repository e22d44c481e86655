"""Preset ``"vcc2026"``: the six scores of the Virtual Cell Challenge 2026, by cell-eval2, from raw counts."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_tahoe._compat import require
from scvi_tahoe.evaluate._cells import concatenate
from scvi_tahoe.evaluate._checks import check_if, checks_table
from scvi_tahoe.evaluate._context_truth import installed_versions
from scvi_tahoe.evaluate._differential_expression import LABEL_COLUMN, contained, usable_threads
from scvi_tahoe.evaluate._metrics import METRICS, MetricInfo, metric_info
from scvi_tahoe.evaluate._presets import PRESETS, Preset
from scvi_tahoe.evaluate._summary import bootstrap_means, interval, mean_over_contexts

if TYPE_CHECKING:
    import polars as pl

    from scvi_tahoe.evaluate._cells import CellTable
    from scvi_tahoe.evaluate._context_truth import ContextTruth
    from scvi_tahoe.evaluate._reference import EvaluationReference
    from scvi_tahoe.evaluate._result import EvaluationResult

logger = logging.getLogger(__name__)

_SOURCE = "Virtual Cell Challenge 2026, cell-eval2"

#: five of the scored members, in cell-eval2's names, with their labels and best values; the sixth is one of ours, too
_MEMBERS = {
    "expr_mse_unbiased_capped_norm": ("MSE, noise-corrected (2026)", 0),
    "de_wilcoxon_direction_fidelity_yield_raw": ("Direction fidelity (2026)", 1),
    "de_wilcoxon_direction_reach_raw": ("Direction reach (2026)", 1),
    "de_wilcoxon_sig_jaccard": ("Jaccard of DE genes (2026)", 1),
    "de_wilcoxon_lfc_nmae": ("Error of fold changes (2026)", 0),
}
VCC2026_METRICS = ("pds_cosine", *_MEMBERS)
for _name, (_label, _best) in _MEMBERS.items():
    METRICS.register(_name, MetricInfo(label=_label, best=_best, needs_de=_name.startswith("de_"), source=_SOURCE))


def with_scores_of_2026(
    result: EvaluationResult, predicted: CellTable, reference: EvaluationReference
) -> EvaluationResult:
    """Return the result with the six members in front, and the overall score of 2026 in ``vcc``."""
    scores = {c: _context_scores(truth, predicted.of_context(c), reference) for c, truth in reference.contexts.items()}
    members = pd.concat({c: wide for c, (wide, _) in scores.items()}, names=["context", "perturbation"])
    tables = {c: table for c, (_, table) in scores.items()}
    mean = pd.concat(list(tables.values())).groupby(level=0, sort=False).mean()
    # the mean of the six scaled members, 1 for a replicate; NaN if one has no scale on these data
    overall = {c: float(table["scaled"].mean(skipna=False)) for c, table in tables.items()}
    vcc: dict[str, Any] = {
        "year": 2026,
        **{str(name): float(value) for name, value in mean["value"].items()},
        **{column: mean[column].to_dict() for column in ("baseline", "replicate", "scaled")},
        "overall": float(np.mean(list(overall.values()))),
        "by_context": overall,
    }
    own = result.per_perturbation.drop(columns=members.columns.intersection(result.per_perturbation.columns))
    kept = result.summary.drop(index=result.summary.index.intersection(list(VCC2026_METRICS)))
    theirs = _summary(mean, members, kept.columns, seed=result.provenance["seed"])
    lost = [name for name, share in vcc["scaled"].items() if np.isnan(share)]
    message = (
        f"{', '.join(lost)} have no room between the mean response and a replicate on these data (too few genes or "
        "cells), so there is no overall score of 2026."
    )
    scale = check_if(lost != [], "scale of 2026", 6 - len(lost), "6 members", message)
    return replace(
        result,
        checks=pd.concat([checks_table([scale]), result.checks]),
        per_perturbation=own.join(members),
        summary=pd.concat([theirs, kept]).rename_axis("metric"),
        vcc=vcc,
    )


def _summary(mean: pd.DataFrame, members: pd.DataFrame, columns: pd.Index, *, seed: int) -> pd.DataFrame:
    """Lines of the six members in the form of the summary; the ceiling is the mean of five split-half replicates."""
    table = pd.DataFrame(np.nan, index=list(VCC2026_METRICS), columns=columns, dtype=object)
    table["value"], table["baseline"] = mean["value"], mean["baseline"]
    table["ceiling"], table["scaled"] = mean["replicate"], mean["scaled"]
    low, high = interval(bootstrap_means([members], seed=seed)[0])
    # a member whose value is not the mean over perturbations has no interval
    means = np.isclose(mean_over_contexts(members), table["value"].reindex(members.columns).astype(float))
    for side, ends in (("low", low), ("high", high)):
        table[side] = pd.Series(np.where(means, ends, np.nan), index=members.columns).reindex(table.index)
    table["direction"] = [metric_info(name).direction for name in table.index]
    known = members.notna().sum().reindex(table.index).fillna(len(members)).astype(int)
    table["n_perturbations"], table["n_missing"] = known, len(members) - known
    return table.astype(dict.fromkeys(columns.drop("direction"), float))


def _context_scores(
    truth: ContextTruth, predicted: CellTable, reference: EvaluationReference
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score raw counts of one context as the challenge of 2026 does, with the observed controls on both sides.

    cell-eval2 (MIT), preset ``vcc2026``. A member is scaled so that 0 is the mean response of the reference
    (cell-eval2's generic baseline, which knows the truth) and 1 the mean of five split-half replicates. Returns one row
    per perturbation (a member that is a ratio of sums has no column), and one row per member with ``value``,
    ``baseline``, ``replicate`` and ``scaled``.
    """
    cell_eval2 = require("cell_eval2", "vcc2026")
    config = config_of_2026(truth)
    observed = truth.cells.to_adata(perturbation_key=LABEL_COLUMN)
    both = concatenate(truth.controls, predicted, predicted.perturbation != truth.control)
    with contained():
        scores = cell_eval2.compute_metrics(both.to_adata(perturbation_key=LABEL_COLUMN), observed, config=config)
    ends = _ends(truth, reference, config)
    values = pd.Series(_mean_row(cell_eval2.aggregate_metrics_wide(scores)), dtype=float)
    table = pd.DataFrame({"value": values.reindex(VCC2026_METRICS), **{c: ends[c] for c in ("baseline", "replicate")}})
    table["scaled"] = [_scaled(name, *row) for name, row in zip(table.index, table.to_numpy(float))]
    wide = pd.DataFrame(scores.pivot(on="metric", index="perturbation", values="value").to_dict(as_series=False))
    wide = wide.set_index("perturbation").reindex(list(truth.perturbations))
    return wide[[name for name in VCC2026_METRICS if name in wide]].astype(float), table


def config_of_2026(truth: ContextTruth) -> Any:
    """Return cell-eval2's settings of the challenge for the labels of one context."""
    from cell_eval2 import EvalConfig

    preset = EvalConfig.from_preset("vcc2026")
    # cell-eval2 must be told that labels are no genes (drugs); if some are, it finds them by name
    named = set(truth.perturbations) & set(truth.cells.genes)
    return replace(
        preset,
        pert_col=LABEL_COLUMN,
        control=truth.control,
        num_threads=usable_threads(truth.num_threads),
        device="cpu",
        # on a machine with a GPU "auto" would take another engine, whose numbers differ
        de=replace(preset.de, backend="pdex"),
        target_gene_map=None if named else {"*": None},
    )


def _ends(truth: ContextTruth, reference: EvaluationReference, config: Any) -> pd.DataFrame:
    """Both ends of the scale of each member, index member, columns ``baseline`` and ``replicate``."""

    def compute() -> pl.DataFrame:
        import polars as pl
        from cell_eval2 import build_generic_baseline
        from cell_eval2.anchor import compute_replicate_anchor

        observed = truth.cells.to_adata(perturbation_key=LABEL_COLUMN)
        with contained():
            # degenerate members (a scale without room, as on a few hundred genes) are reported below, not raised
            generic = build_generic_baseline(observed, config=config, allow_degenerate=True)
            try:
                _, anchor = compute_replicate_anchor(observed, config=config)
                replicate = dict(zip(anchor["metric"].to_list(), anchor["replicate"].to_list()))
            except ValueError as error:  # too little effect at this depth: the members have values, and no shares
                logger.warning("The replicates of context %r give no scale: %s", truth.context, error)
                replicate = {}
        sides = {"baseline": _mean_row(generic.agg), "replicate": replicate}
        columns = {side: [found.get(member) for member in VCC2026_METRICS] for side, found in sides.items()}
        return pl.DataFrame({"metric": VCC2026_METRICS, **columns}, schema_overrides=dict.fromkeys(columns, pl.Float64))

    key: dict[str, object] = {"table": "ends of the 2026 scale", "truth": truth.fingerprint}
    key |= {"config": str(sorted(config.to_dict().items())), "versions": installed_versions()}
    return pd.DataFrame(reference.cache.table(key, compute).to_dict(as_series=False)).set_index("metric").astype(float)


def _mean_row(aggregate: pl.DataFrame) -> dict[str, float]:
    row = aggregate.filter(aggregate["statistic"] == "mean").drop("statistic").to_dicts()[0]
    return {name: float("nan") if value is None else float(value) for name, value in row.items()}


def _scaled(member: str, value: float, baseline: float, replicate: float) -> float:
    """Scale a member by cell-eval2's own policy; NaN if baseline and replicate leave no room between them."""
    from cell_eval2.catalog import CATALOG
    from cell_eval2.scoring import is_degenerate, score_one

    if np.isfinite(baseline) and np.isfinite(replicate):
        with suppress(ValueError):  # a replicate as bad as the worst possible value: no scale
            policy = replace(CATALOG[member].scoring, anchor=replicate, allow_negative_baseline=False)
            if not is_degenerate(baseline, policy):
                return float(score_one(value, baseline, policy))
    return float("nan")


PRESETS.register("vcc2026", Preset(from_counts=True, extend=with_scores_of_2026))
