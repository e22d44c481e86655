"""The six scores of the Virtual Cell Challenge 2026, by cell-eval2, from raw counts."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_tahoe.evaluate._cache import installed_versions
from scvi_tahoe.evaluate._cells import concatenate
from scvi_tahoe.evaluate._differential_expression import LABEL_COLUMN, contained, usable_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

    from scvi_tahoe.evaluate._cells import CellTable
    from scvi_tahoe.evaluate._reference import EvaluationReference
    from scvi_tahoe.evaluate._scoring import ContextTruth

__all__ = ["VCC2026_METRICS", "Vcc2026Scores", "vcc2026_scores"]

logger = logging.getLogger(__name__)

#: the six scored members, in cell-eval2's names
VCC2026_METRICS = (
    "pds_cosine",
    "expr_mse_unbiased_capped_norm",
    "de_wilcoxon_direction_fidelity_yield_raw",
    "de_wilcoxon_direction_reach_raw",
    "de_wilcoxon_sig_jaccard",
    "de_wilcoxon_lfc_nmae",
)


class Vcc2026Scores:
    """Scores of one context.

    Parameters
    ----------
    per_perturbation
        One row a perturbation; a member that is a ratio of sums has no column.
    table
        Index member; columns ``value``, ``baseline``, ``replicate`` and ``scaled``.
    """

    def __init__(self, per_perturbation: pd.DataFrame, table: pd.DataFrame) -> None:
        self.per_perturbation = per_perturbation
        self.table = table

    @property
    def overall(self) -> float:
        """Mean of the six scaled members, 1 for a replicate; NaN if one has no scale on these data."""
        return float(self.table["scaled"].mean(skipna=False))


def vcc2026_scores(truth: ContextTruth, predicted: CellTable, reference: EvaluationReference) -> Vcc2026Scores:
    """Score raw counts of one context as the challenge of 2026 does.

    Parameters
    ----------
    truth
        Observed cells of the context, raw counts, controls included.
    predicted
        Predicted cells of its perturbations, raw counts; the observed controls are used on both sides.
    reference
        What the truth is part of; its cache keeps the baseline and the replicates.

    Notes
    -----
    cell-eval2 (MIT), preset ``vcc2026``. A member is scaled so that 0 is the mean response of the reference
    (cell-eval2's generic baseline, which knows the truth) and 1 the mean of five split-half replicates.

    Raises
    ------
    ImportError
        If cell-eval2 is not installed.
    """
    cell_eval2 = _cell_eval2()
    config = _config(truth)
    observed = truth.cells.to_adata(perturbation_key=LABEL_COLUMN)
    both = concatenate(truth.controls, predicted, predicted.perturbation != truth.control)
    with contained(), _quiet():
        scores = cell_eval2.compute_metrics(both.to_adata(perturbation_key=LABEL_COLUMN), observed, config=config)
    ends = _ends(truth, reference, config)
    values = _means(scores)
    table = pd.DataFrame({"value": values.reindex(VCC2026_METRICS), **{c: ends[c] for c in ("baseline", "replicate")}})
    table["scaled"] = [_scaled(name, *row) for name, row in zip(table.index, table.to_numpy(float))]
    wide = pd.DataFrame(scores.pivot(on="metric", index="perturbation", values="value").to_dict(as_series=False))
    wide = wide.set_index("perturbation").reindex(list(truth.perturbations))
    return Vcc2026Scores(wide[[name for name in VCC2026_METRICS if name in wide]].astype(float), table)


def _cell_eval2() -> Any:
    try:
        import cell_eval2
    except ImportError as error:
        msg = 'preset="vcc2026" runs on cell-eval2, which is not installed: pip install "scvi-tahoe[vcc2026]".'
        raise ImportError(msg) from error
    return cell_eval2


def _config(truth: ContextTruth) -> Any:
    from cell_eval2 import EvalConfig

    preset = EvalConfig.from_preset("vcc2026")
    # pdex stated: on a machine with a GPU "auto" would take another engine, whose numbers differ
    de = replace(preset.de, backend="pdex")
    threads = usable_threads(truth.num_threads)
    # cell-eval2 wants to be told that labels are no genes (drugs); where some are, it finds them by name
    named = set(truth.perturbations) & set(truth.cells.genes)
    return replace(
        preset,
        pert_col=LABEL_COLUMN,
        control=truth.control,
        num_threads=threads,
        device="cpu",
        de=de,
        target_gene_map=None if named else {"*": None},
    )


def _ends(truth: ContextTruth, reference: EvaluationReference, config: Any) -> pd.DataFrame:
    """Both ends of the scale of each member, index member, columns ``baseline`` and ``replicate``."""

    def compute() -> pl.DataFrame:
        import polars as pl
        from cell_eval2 import build_generic_baseline
        from cell_eval2.anchor import compute_replicate_anchor

        observed = truth.cells.to_adata(perturbation_key=LABEL_COLUMN)
        with contained(), _quiet():
            # degenerate members (a scale without room, as on a few hundred genes) are told of below, not raised on
            generic = build_generic_baseline(observed, config=config, allow_degenerate=True)
            try:
                _, anchor = compute_replicate_anchor(observed, config=config)
                replicate = dict(zip(anchor["metric"].to_list(), anchor["replicate"].to_list()))
            except (
                ValueError
            ) as error:  # too little effect at this depth for a scale: the members have values, no shares
                logger.warning("The replicates of context %r give no scale: %s", truth.context, error)
                replicate = {}
        baseline = _mean_row(generic.agg)
        members = list(VCC2026_METRICS)
        columns = {"baseline": [baseline.get(m) for m in members], "replicate": [replicate.get(m) for m in members]}
        return pl.DataFrame({"metric": members, **columns}, schema_overrides=dict.fromkeys(columns, pl.Float64))

    key: dict[str, object] = {
        "table": "ends of the 2026 scale",
        "truth": truth.fingerprint,
        "config": str(sorted(config.to_dict().items())),
        "versions": installed_versions(),
    }
    return pd.DataFrame(reference.cache.table(key, compute).to_dict(as_series=False)).set_index("metric").astype(float)


def _means(scores: pl.DataFrame) -> pd.Series:
    from cell_eval2 import aggregate_metrics_wide

    return pd.Series(_mean_row(aggregate_metrics_wide(scores)), dtype=float)


def _mean_row(aggregate: pl.DataFrame) -> dict[str, float]:
    row = aggregate.filter(aggregate["statistic"] == "mean").drop("statistic").to_dicts()[0]
    return {name: float("nan") if value is None else float(value) for name, value in row.items()}


def _scaled(member: str, value: float, baseline: float, replicate: float) -> float:
    """Score of a member by cell-eval2's own policy; NaN where baseline and replicate leave no room between them."""
    from cell_eval2.catalog import CATALOG
    from cell_eval2.scoring import is_degenerate, score_one

    if not (np.isfinite(baseline) and np.isfinite(replicate)):
        return float("nan")
    try:
        policy = replace(CATALOG[member].scoring, anchor=replicate, allow_negative_baseline=False)
    except ValueError:  # a replicate as bad as the worst possible value: no scale
        return float("nan")
    return float("nan") if is_degenerate(baseline, policy) else float(score_one(value, baseline, policy))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep cell-eval2's log to errors: what it warns of is in our checks."""
    log = logging.getLogger("cell_eval2")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
