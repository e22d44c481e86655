"""What each score is: its direction, its perfect value, its ceiling rule and its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["METRICS", "MetricInfo", "metric_info"]

CeilingRule = Literal["spearman_brown", "absolute", "squared", "none"]


@dataclass(frozen=True, kw_only=True)
class MetricInfo:
    """How to read one score.

    Attributes
    ----------
    label
        Short name for tables and figures.
    best
        Value of a perfect prediction; ``None`` for a diagnostic that is reported and not scored.
    ceiling
        How a score between two halves of the observed cells becomes that of a replicate at full depth:

        * ``"spearman_brown"`` - ``2 r / (1 + r)``, for agreement (as cell-eval >= 0.8.2);
        * ``"absolute"`` - divided by the square root of 2, ``"squared"`` - divided by 2: differences of two half-depth
          means are noise with twice the variance of those of two full-depth means;
        * ``"none"`` - no rule, no ceiling.
    needs_de
        Whether it is computed from differential expression.
    whole_panel
        Whether it is one number for all perturbations of a context, repeated in each row: then neither a bootstrap over
        perturbations nor groups of them say anything.
    source
        Where the formula comes from.
    """

    label: str
    best: float | None
    ceiling: CeilingRule = "none"
    needs_de: bool = False
    whole_panel: bool = False
    source: str = "cell-eval 0.8.2"

    @property
    def direction(self) -> str:
        """``"higher"``, ``"lower"``, or ``"closer to 1"`` or ``"closer to 0"`` for diagnostics."""
        if self.best is None:
            return "diagnostic"
        return "higher" if self.best == 1 else "lower"


_MEJIA = "Mejia et al., arXiv 2506.22641 (2025)"
_SYSTEMA = "Vinas Torne et al., Nature Biotechnology (2025), Systema"
_VCC2026 = "Virtual Cell Challenge 2026, cell-eval2"
_SB: CeilingRule = "spearman_brown"

METRICS: dict[str, MetricInfo] = {
    "overlap_at_N": MetricInfo(label="DES (overlap at N)", best=1, ceiling=_SB, needs_de=True),
    "discrimination_score_l1": MetricInfo(label="PDS (L1)", best=1, ceiling=_SB),
    "mae": MetricInfo(label="MAE", best=0, ceiling="absolute"),
    "mse": MetricInfo(label="MSE", best=0, ceiling="squared"),
    "mae_delta": MetricInfo(label="MAE of deltas", best=0, ceiling="absolute"),
    "mse_delta": MetricInfo(label="MSE of deltas", best=0, ceiling="squared"),
    "pearson_delta": MetricInfo(label="Pearson of deltas", best=1, ceiling=_SB),
    "discrimination_score_l2": MetricInfo(label="PDS (L2)", best=1, ceiling=_SB),
    "discrimination_score_cosine": MetricInfo(label="PDS (cosine)", best=1, ceiling=_SB),
    "pearson_edistance": MetricInfo(label="Pearson of energy distances", best=1, whole_panel=True),
    "clustering_agreement": MetricInfo(label="Clustering agreement", best=1, whole_panel=True),
    **{
        f"{kind}_at_{n}": MetricInfo(label=f"{kind.title()} at {n}", best=1, ceiling=_SB, needs_de=True)
        for kind in ("overlap", "precision")
        for n in ("N", 50, 100, 200, 500)
        if (kind, n) != ("overlap", "N")
    },
    "de_spearman_sig": MetricInfo(label="Spearman of DE counts", best=1, ceiling=_SB, needs_de=True, whole_panel=True),
    "de_direction_match": MetricInfo(label="Direction of DE genes", best=1, ceiling=_SB, needs_de=True),
    "de_spearman_lfc_sig": MetricInfo(label="Spearman of DE fold changes", best=1, ceiling=_SB, needs_de=True),
    "de_sig_genes_recall": MetricInfo(label="Recall of DE genes", best=1, ceiling=_SB, needs_de=True),
    "de_nsig_counts_real": MetricInfo(label="DE genes, observed", best=None, needs_de=True),
    "de_nsig_counts_pred": MetricInfo(label="DE genes, predicted", best=None, needs_de=True),
    "pr_auc": MetricInfo(label="PR AUC of DE genes", best=1, ceiling=_SB, needs_de=True),
    "roc_auc": MetricInfo(label="ROC AUC of DE genes", best=1, ceiling=_SB, needs_de=True),
    "pds_cosine": MetricInfo(label="PDS (cosine, 2026)", best=1, ceiling=_SB, source=_VCC2026),
    "expr_mse_unbiased_capped_norm": MetricInfo(label="MSE, noise-corrected (2026)", best=0, source=_VCC2026),
    "de_wilcoxon_direction_fidelity_yield_raw": MetricInfo(
        label="Direction fidelity (2026)", best=1, needs_de=True, source=_VCC2026
    ),
    "de_wilcoxon_direction_reach_raw": MetricInfo(
        label="Direction reach (2026)", best=1, needs_de=True, source=_VCC2026
    ),
    "de_wilcoxon_sig_jaccard": MetricInfo(label="Jaccard of DE genes (2026)", best=1, needs_de=True, source=_VCC2026),
    "de_wilcoxon_lfc_nmae": MetricInfo(label="Error of fold changes (2026)", best=0, needs_de=True, source=_VCC2026),
    "pearson_systema": MetricInfo(label="Pearson to mean of perturbations", best=1, ceiling=_SB, source=_SYSTEMA),
    "centroid_accuracy": MetricInfo(label="Centroid accuracy", best=1, ceiling=_SB, source=_SYSTEMA),
    "wmse": MetricInfo(label="Weighted MSE", best=0, ceiling="squared", source=_MEJIA),
    "r2_weighted": MetricInfo(label="Weighted R2 of deltas", best=1, source=_MEJIA),
    "effect_size_ratio": MetricInfo(label="Effect size, predicted / observed", best=None, source="this package"),
    "variance_ratio": MetricInfo(label="Spread, predicted / observed", best=None, source="this package"),
    "zero_fraction_difference": MetricInfo(label="Zeros, predicted - observed", best=None, source="this package"),
    "nsig_ratio": MetricInfo(label="DE genes, predicted / observed", best=None, needs_de=True, source="this package"),
    "energy_distance": MetricInfo(
        label="Energy distance (50 PCs)", best=0, ceiling="squared", source="Szekely and Rizzo (2013)"
    ),
}


def metric_info(name: str) -> MetricInfo:
    """Entry of :data:`METRICS`; a metric of a later cell-eval that is not listed counts as a diagnostic."""
    return METRICS.get(name, MetricInfo(label=name, best=None, source="cell-eval"))
