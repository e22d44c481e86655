"""Predicted against observed change of every gene, one small panel a perturbation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.pl._style import BASELINE, PREDICTED, fit_title, label_points, new_figure, style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate import EvaluationResult

__all__ = ["deltas"]


def deltas(
    result: EvaluationResult,
    perturbations: Sequence[str] | None = None,
    *,
    max_panels: int = 12,
    n_columns: int = 4,
    n_labels: int = 4,
    title: str | None = None,
) -> Figure:
    """Draw predicted against observed deltas, one panel a condition, one dot a gene, on a single page.

    Parameters
    ----------
    result
        Result of :func:`~scvi_tahoe.evaluate.evaluate`.
    perturbations
        Perturbations to show; by default those with the largest observed effects, in that order.
    max_panels
        Most panels on the page.
    n_columns
        Panels in a row.
    n_labels
        Genes named in each panel, those that change most.
    title
        Heading of the page.

    Raises
    ------
    KeyError
        If a perturbation was not scored.
    """
    rows = _rows(result, perturbations)[:max_panels]
    n_columns = min(n_columns, len(rows))
    n_rows = -(-len(rows) // n_columns)
    with style():
        several = len({context for context, _ in result.effects.conditions}) > 1
        figure = new_figure(1.9 * n_columns + 0.4, (2.1 if several else 1.95) * n_rows + 0.6)
        axes = figure.subplots(n_rows, n_columns, squeeze=False)
        for ax, row in zip(axes.flat, rows):
            context, perturbation = result.effects.conditions[row]
            name = f"{perturbation}\n{context}" if several else perturbation
            _panel(ax, result.effects.observed[row], result.effects.predicted[row], name)
        for ax in list(axes.flat)[len(rows) :]:
            ax.set_axis_off()
        figure.supxlabel("observed change of mean log1p expression", fontsize=8)
        figure.supylabel("predicted change", fontsize=8)
        figure.suptitle(title or "Predicted against observed change of each gene", fontsize=10)
        figure.draw_without_rendering()  # names are placed in the final layout
        for ax, row in zip(axes.flat, rows):
            fit_title(ax)
            observed, predicted = result.effects.observed[row], result.effects.predicted[row]
            top = np.argsort(-np.abs(observed))[:n_labels]
            names = [str(gene) for gene in result.effects.genes[top]]
            everything = np.column_stack([observed, predicted])
            label_points(ax, observed[top], predicted[top], names, avoid=everything, size=6)
    return figure


def _rows(result: EvaluationResult, perturbations: Sequence[str] | None) -> list[int]:
    conditions = result.effects.conditions
    if perturbations is None:
        return list(np.argsort(-np.linalg.norm(result.effects.observed, axis=1)))
    scored = {p for _, p in conditions}
    unknown = [p for p in perturbations if p not in scored]
    if unknown:
        msg = f"Perturbations {unknown} were not scored; there are {sorted(scored)}."
        raise KeyError(msg)
    return [i for wanted in perturbations for i, (_, p) in enumerate(conditions) if p == wanted]


def _panel(ax: Axes, observed: NDArray[np.floating], predicted: NDArray[np.floating], name: str) -> None:
    # each panel has its own scale: effects differ by an order of magnitude between perturbations
    limit = 1.12 * float(max(np.abs(observed).max(), np.abs(predicted).max(), 1e-6))
    ax.plot([-limit, limit], [-limit, limit], color=BASELINE, linewidth=0.7, linestyle="--", zorder=1)
    ax.axhline(0, color=BASELINE, linewidth=0.4, zorder=1)
    ax.axvline(0, color=BASELINE, linewidth=0.4, zorder=1)
    ax.scatter(observed, predicted, s=5, color=PREDICTED, alpha=0.6, linewidths=0, rasterized=True, zorder=2)
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit))
    ax.locator_params(nbins=3)
    correlation = np.corrcoef(observed, predicted)[0, 1] if np.ptp(predicted) > 0 and np.ptp(observed) > 0 else np.nan
    told = "no change predicted" if np.isnan(correlation) else f"r = {correlation:.2f}"
    ax.set_title(f"{name}, {told}", pad=3)
