"""Fold changes of one perturbation, predicted against observed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.pl._style import BASELINE, CEILING, OBSERVED, PREDICTED, label_points, new_figure, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from scvi_tahoe.evaluate import EvaluationResult

__all__ = ["fold_changes"]

_FDR = 0.05


def fold_changes(
    result: EvaluationResult, perturbation: str, *, context: str | None = None, n_labels: int = 6
) -> Figure:
    """Draw log2 fold changes of all genes, marked by the side on which they are differentially expressed.

    Parameters
    ----------
    result
        Result of a preset with differential expression.
    perturbation
        Perturbation to show.
    context
        Its context; by default the first in which it was scored.
    n_labels
        Genes named, of those differentially expressed in the observed cells. Infinite fold changes (zero on one side)
        are drawn at the edge.

    Raises
    ------
    ValueError
        If the result has no differential expression.
    KeyError
        If the perturbation was not scored in the context.
    """
    table = _table(result, perturbation, context)
    x, y = table["log2_fold_change_observed"].to_numpy(), table["log2_fold_change_predicted"].to_numpy()
    finite = np.concatenate([x[np.isfinite(x)], y[np.isfinite(y)]])
    edge = 1.15 * max(float(np.abs(finite).max(initial=0)), 0.1)
    x, y = np.clip(x, -edge, edge), np.clip(y, -edge, edge)
    in_observed, in_predicted = table["fdr_observed"] < _FDR, table["fdr_predicted"] < _FDR
    groups = [
        ("neither", ~in_observed & ~in_predicted, BASELINE, ".", 8),
        ("predicted only", ~in_observed & in_predicted, PREDICTED, "v", 14),
        ("observed only", in_observed & ~in_predicted, OBSERVED, "s", 14),
        ("both", in_observed & in_predicted, CEILING, "o", 16),
    ]
    with style():
        figure = new_figure(4.6, 3.9)
        ax = figure.subplots()
        ax.plot([-edge, edge], [-edge, edge], color=BASELINE, linewidth=0.7, linestyle="--", zorder=1)
        for name, chosen, color, marker, size in groups:
            mask = chosen.to_numpy()
            ax.scatter(
                x[mask],
                y[mask],
                s=size,
                c=color,
                marker=marker,
                linewidths=0,
                alpha=0.8,
                label=f"{name} ({mask.sum()})",
                zorder=2,
            )
        ax.set(xlim=(-edge * 1.04, edge * 1.04), ylim=(-edge * 1.04, edge * 1.04))
        ax.set(xlabel="log2 fold change, observed", ylabel="log2 fold change, predicted")
        ax.set_title(f"{perturbation}, {table.attrs['context']}", loc="left")
        figure.legend(
            *ax.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            title=f"FDR < {_FDR:g}",
            title_fontsize=7,
        )
        figure.draw_without_rendering()
        strongest = np.argsort(-np.where(in_observed, np.abs(x), -1))[: min(n_labels, int(in_observed.sum()))]
        label_points(ax, x[strongest], y[strongest], list(table.index[strongest]), avoid=np.column_stack([x, y]))
    return figure


def _table(result: EvaluationResult, perturbation: str, context: str | None) -> pd.DataFrame:
    if result.de_observed is None or result.de_predicted is None:
        msg = 'The result has no differential expression; evaluate with preset="vcc2025", "minimal" or "full".'
        raise ValueError(msg)
    contexts = [c for c, p in result.per_perturbation.index if p == perturbation]
    if not contexts or (context is not None and context not in contexts):
        msg = f"Perturbation {perturbation!r} was not scored" + (
            "." if context is None else f" in context {context!r}."
        )
        raise KeyError(msg)
    context = contexts[0] if context is None else context
    sides = [
        side[(side["context"] == context) & (side["perturbation"] == perturbation)].set_index("gene")
        for side in (result.de_observed, result.de_predicted)
    ]
    columns = ["log2_fold_change", "fdr"]
    table = sides[0][columns].join(sides[1][columns], lsuffix="_observed", rsuffix="_predicted")
    table.attrs["context"] = context
    return table
