"""Is each perturbation told apart, and does it depend on how strong it is?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.evaluate import metric_info
from scvi_tahoe.pl._style import BASELINE, PREDICTED, label_points, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from scvi_tahoe.evaluate import EvaluationResult

__all__ = ["ranks"]


def ranks(result: EvaluationResult, *, metric: str = "discrimination_score_l1", n_labels: int = 12) -> Figure:
    """Draw the discrimination score of each perturbation against its number of differentially expressed genes.

    Parameters
    ----------
    result
        Result; without differential expression the length of the observed delta takes the place of the count.
    metric
        Score on the vertical axis.
    n_labels
        Perturbations named, those with the lowest scores first.

    Raises
    ------
    KeyError
        If the result lacks the metric.
    """
    from matplotlib.ticker import ScalarFormatter

    scores = result.per_perturbation
    if metric not in scores:
        msg = f"The result has no metric {metric!r}; it has {list(scores.columns)}."
        raise KeyError(msg)
    counted = "n_de_observed" in scores
    strength = scores["n_de_observed"].to_numpy(float) if counted else np.linalg.norm(result.effects.observed, axis=1)
    value = scores[metric].to_numpy(float)
    with style():
        figure = new_figure(4.4, 3.1)
        ax = figure.subplots()
        ax.axhline(0.5, color=BASELINE, linewidth=0.8, linestyle="--")
        ax.scatter(strength, value, s=22, color=PREDICTED, alpha=0.85, linewidths=0, clip_on=False)
        if counted:
            ax.set_xscale("symlog", linthresh=1)
            ax.xaxis.set_major_formatter(ScalarFormatter())
            ax.set_xlim(-0.2, max(10, 1.6 * strength.max()))
        ax.set_ylim(-0.03, 1.06)
        ax.set_xlabel("differentially expressed genes, observed" if counted else "length of the observed delta")
        ax.set_ylabel(metric_info(metric).label)
        ax.text(0.995, 0.5, "chance", transform=ax.get_yaxis_transform(), ha="right", va="bottom", fontsize=7)
        ax.set_title("Discrimination against strength of the perturbation", loc="left")
        figure.draw_without_rendering()
        lowest = np.argsort(value, kind="stable")[:n_labels]
        label_points(
            ax,
            strength[lowest],
            value[lowest],
            [_name(result, i) for i in lowest],
            avoid=np.column_stack([strength, value]),
        )
    return figure


def _name(result: EvaluationResult, row: int) -> str:
    """Perturbation of a row, and its context where there are several."""
    context, perturbation = result.per_perturbation.index[row]
    return f"{perturbation} ({context})" if len(result.provenance["contexts"]) > 1 else str(perturbation)
