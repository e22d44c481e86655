"""Figures of cells and effects: totals and zeros, changes of genes, and the similarity of perturbations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from scvi_tahoe._arguments import checked
from scvi_tahoe._names import perturbed_genes
from scvi_tahoe.pl._figure import (
    BASELINE,
    CEILING,
    OBSERVED,
    PREDICTED,
    fit_title,
    label_points,
    new_figure,
    one_panel,
    register_figure,
    style,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from scvi_tahoe.pl._figure import EffectsLike, FigureOutput, Result

_FDR = 0.05
_CHANGE = "change of mean log1p expression"
#: cosines below are marked, since the map's red and blue are alike in print
_OPPOSITE = -0.15
#: with more perturbations than this, none is named
_MAX_NAMES = 60
#: width of a letter of a name in inches
_LETTER_WIDTH = 0.08


@register_figure
@checked()
def deltas(
    result: Result,
    perturbations: Sequence[str] | None = None,
    *,
    max_panels: int = 12,
    n_columns: int = 4,
    n_labels: int = 4,
    share_scale: bool = False,
    title: str | None = None,
    **output: Unpack[FigureOutput],
) -> Figure:
    """Draw predicted against observed deltas: one panel per condition, one dot per gene.

    Shows the given perturbations (a KeyError if one was not scored), or those with the largest observed effects, on at
    most ``max_panels`` panels, ``n_columns`` in a row. In each panel ``n_labels`` genes are named, the largest observed
    or predicted change first. The perturbed gene itself is drawn as a diamond and left out of the correlation r, as a
    knock-down alone can carry it; in brackets is the r of a replicate of the same size, estimated from halves of the
    observed cells. Every panel has its own scale unless ``share_scale``.
    """
    effects = result.effects
    rows = _chosen_rows(effects, perturbations)[:max_panels]
    n_columns = min(n_columns, len(rows))
    n_rows = -(-len(rows) // n_columns)
    several = len({context for context, _ in effects.conditions}) > 1
    replicate = result.ceiling_of_conditions("pearson_without_target")
    with style():
        figure = new_figure(2.2 * n_columns + 0.4, (2.55 if several else 2.35) * n_rows + 0.8)
        axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
        shared = max(np.abs(side[rows]).max() for side in (effects.observed, effects.predicted)) if share_scale else 0
        for ax, row in zip(axes, rows):
            context, perturbation = effects.conditions[row]
            own = perturbed_genes([perturbation], effects.genes)[0]
            limit = 1.12 * max(np.abs([effects.observed[row], effects.predicted[row]]).max(), shared, 1e-6)
            agreement = _draw_panel(ax, effects.observed[row], effects.predicted[row], own, float(limit))
            ceiling = replicate.get((context, perturbation), np.nan)
            agreement += "" if np.isnan(ceiling) else f" ({ceiling:.2f})"
            ax.set_title(f"{perturbation}\n{context + ', ' if several else ''}{agreement}", pad=3)
        for ax in axes[len(rows) :]:
            ax.set_axis_off()
        note = "r without the perturbed gene (\N{BLACK DIAMOND})" + (
            "; in brackets: of a replicate" if len(replicate) else ""
        )
        figure.supxlabel(f"observed {_CHANGE}\n{note}", fontsize=9)
        figure.supylabel(f"predicted {_CHANGE}", fontsize=9)
        figure.suptitle(title or f"Predicted against observed change of {len(effects.genes):,} genes", fontsize=10.5)
        figure.draw_without_rendering()  # names are placed in the final layout
        for ax, row in zip(axes, rows):
            fit_title(ax)
            observed, predicted = effects.observed[row], effects.predicted[row]
            top = np.argsort(-np.maximum(np.abs(observed), np.abs(predicted)))[:n_labels]
            points = np.column_stack([observed, predicted])
            label_points(ax, observed[top], predicted[top], list(map(str, effects.genes[top])), avoid=points, size=7)
    return figure


def _chosen_rows(effects: EffectsLike, perturbations: Sequence[str] | None) -> list[int]:
    if perturbations is None:
        return list(np.argsort(-np.linalg.norm(effects.observed, axis=1)))
    scored = {p for _, p in effects.conditions}
    unknown = [p for p in perturbations if p not in scored]
    if unknown:
        raise KeyError(f"Perturbations {unknown} were not scored; there are {sorted(scored)}.")
    return [i for wanted in perturbations for i, (_, p) in enumerate(effects.conditions) if p == wanted]


def _draw_panel(
    ax: Axes, observed: NDArray[np.floating], predicted: NDArray[np.floating], own: list[int], limit: float
) -> str:
    """Draw the genes of a condition, those in the columns ``own`` as the perturbed ones, and return their r as text."""
    others = np.ones(len(observed), dtype=bool)
    others[own] = False
    _draw_diagonal(ax, limit)
    ax.axhline(0, color=BASELINE, linewidth=0.4, zorder=1)
    ax.axvline(0, color=BASELINE, linewidth=0.4, zorder=1)
    dots: dict[str, Any] = {"alpha": 0.6, "linewidths": 0, "rasterized": True, "zorder": 2}
    ax.scatter(observed[others], predicted[others], s=8, color=PREDICTED, **dots)
    if own:
        ax.scatter(observed[own], predicted[own], s=30, marker="D", color=OBSERVED, zorder=3)
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit))
    ax.locator_params(nbins=3)
    x, y = observed[others], predicted[others]
    varied = len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0
    return f"r = {np.corrcoef(x, y)[0, 1]:.2f}" if varied else "no change predicted"


def _draw_diagonal(ax: Axes, limit: float) -> None:
    ax.plot([-limit, limit], [-limit, limit], color=BASELINE, linewidth=0.7, linestyle="--", zorder=1)


@register_figure
@checked()
def fold_changes(
    result: Result,
    perturbation: str,
    *,
    context: str | None = None,
    n_labels: int = 6,
    ax: Axes | None = None,
    **output: Unpack[FigureOutput],
) -> Figure:
    """Draw log2 fold changes of all genes, marked by the side on which they are differentially expressed.

    If ``context`` is None, it is the first in which the perturbation was scored. Of the genes differentially expressed
    in the observed cells, ``n_labels`` are named. Fold changes beyond the frame, infinite ones among them (no
    expression on one side), are drawn as open circles at its edge and counted below it.

    Raises
    ------
    ValueError
        If the result has no differential expression.
    KeyError
        If the perturbation was not scored in the context.
    """
    table, context = _fold_change_table(result, perturbation, context)
    given = table[["log2_fold_change_observed", "log2_fold_change_predicted"]].to_numpy(float)
    finite = given[np.isfinite(given).all(axis=1)]
    # a few genes with next to no expression must not squeeze all others into the middle
    edge = 1.15 * max(float(np.quantile(np.abs(finite), 0.995)) if finite.size else 0.0, 0.1)
    beyond = (np.abs(given) > edge).any(axis=1)
    x, y = np.clip(given, -edge, edge).T
    in_observed, in_predicted = ((table[f"fdr_{side}"] < _FDR).to_numpy() for side in ("observed", "predicted"))
    groups = [
        ("neither", ~in_observed & ~in_predicted, BASELINE, ".", 12),
        ("predicted only", ~in_observed & in_predicted, PREDICTED, "v", 18),
        ("observed only", in_observed & ~in_predicted, OBSERVED, "s", 18),
        ("both", in_observed & in_predicted, CEILING, "o", 20),
    ]
    varied = len(finite) > 1 and (np.ptp(finite, axis=0) > 0).all()
    r = f"r = {np.corrcoef(finite.T)[0, 1]:.2f}, " if varied else ""
    with style():
        figure, ax = one_panel(ax, 4.8, 4.6)
        _draw_diagonal(ax, edge)
        for name, mask, color, marker, size in groups:
            look: dict[str, Any] = {"s": size, "c": color, "marker": marker, "linewidths": 0, "alpha": 0.8, "zorder": 2}
            ax.scatter(x[mask & ~beyond], y[mask & ~beyond], label=f"{name} ({mask.sum()})", **look)
            ax.scatter(x[mask & beyond], y[mask & beyond], s=22, facecolors="none", edgecolors=color, clip_on=False)
        ax.set(xlim=(-edge, edge), ylim=(-edge, edge))
        ax.set(xlabel="log2 fold change, observed", ylabel="log2 fold change, predicted")
        note = f"\nopen circles: {beyond.sum()} beyond the frame" if beyond.any() else ""
        ax.set_title(f"{perturbation}, {context}\n{r}{len(table):,} genes{note}", loc="left")
        legend: dict[str, Any] = {"title": f"differentially expressed (FDR < {_FDR:g})", "title_fontsize": 8}
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, **legend)
        figure.draw_without_rendering()
        strongest = np.argsort(-np.where(in_observed, np.abs(x), -1))[: min(n_labels, int(in_observed.sum()))]
        label_points(ax, x[strongest], y[strongest], list(table.index[strongest]), avoid=np.column_stack([x, y]))
    return figure


def _fold_change_table(result: Result, perturbation: str, context: str | None) -> tuple[pd.DataFrame, str]:
    """Return fold changes and FDR of both sides, one row per gene, and the context they are from."""
    if result.de_observed is None or result.de_predicted is None:
        raise ValueError(
            'The result has no differential expression; evaluate with preset="vcc2025", "minimal" or "full".'
        )
    contexts = [c for c, p in result.per_perturbation.index if p == perturbation]
    if not contexts or (context is not None and context not in contexts):
        where = "" if context is None else f" in context {context!r}"
        raise KeyError(f"Perturbation {perturbation!r} was not scored{where}.")
    context = contexts[0] if context is None else context
    observed, predicted = (
        side[(side["context"] == context) & (side["perturbation"] == perturbation)].set_index("gene")
        for side in (result.de_observed, result.de_predicted)
    )
    columns = ["log2_fold_change", "fdr"]
    return observed[columns].join(predicted[columns], lsuffix="_observed", rsuffix="_predicted"), context


@register_figure
@checked()
def similarity(
    result: Result, *, context: str | None = None, ax: Axes | None = None, **output: Unpack[FigureOutput]
) -> Figure:
    """Draw the cosine similarity of every observed with every predicted delta; ideally, the diagonal is dark.

    Opposite deltas are marked by a dash. If ``context`` is None, the first is shown; one that was not scored is a
    KeyError.
    """
    from matplotlib.patches import Rectangle
    from scipy.cluster.hierarchy import leaves_list, linkage
    from sklearn.preprocessing import normalize

    contexts = list(dict.fromkeys(c for c, _ in result.effects.conditions))
    context = contexts[0] if context is None else context
    if context not in contexts:
        raise KeyError(f"Context {context!r} was not scored; there are {contexts}.")
    rows = [i for i, (c, _) in enumerate(result.effects.conditions) if c == context]
    observed, predicted = (normalize(side[rows]) for side in (result.effects.observed, result.effects.predicted))
    order = np.arange(len(rows))
    if len(rows) > 2:  # similar observed perturbations are neighbours
        order = leaves_list(linkage(observed, method="average", optimal_ordering=True))
    names = [result.effects.conditions[rows[i]][1] for i in order]
    size = min(2.4 + 0.16 * len(names), 9)
    named = len(names) <= _MAX_NAMES
    margin = _LETTER_WIDTH * max(max(map(len, names)) - 10, 0) if named else 0.0  # long names must not squeeze the map
    with style():
        alone = ax is None
        figure, ax = one_panel(ax, size + 0.7 + margin, size + margin)
        cosine = (observed @ predicted.T)[np.ix_(order, order)]
        image = ax.imshow(cosine, cmap="RdBu_r", vmin=-1, vmax=1)
        if named:
            opposite_rows, opposite_columns = np.nonzero(cosine < _OPPOSITE)
            ax.scatter(opposite_columns, opposite_rows, s=14, marker="_", color="#202020", linewidths=0.8)
            ax.set_xticks(range(len(names)), names, rotation=90)
            ax.set_yticks(range(len(names)), names)
        for i in range(len(names)):  # where a prediction meets its own observation
            ax.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=0.6))
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        ax.set(xlabel="predicted", ylabel="observed")
        title = "Similarity of deltas" + (f", {context}" if len(contexts) > 1 else "")
        if alone:  # a title of the panel would be cut where long names leave it little width
            figure.suptitle(title, x=0.01, ha="left")
        else:
            ax.set_title(title, loc="left")
        bar = figure.colorbar(image, ax=ax, shrink=0.6, label=f"cosine (\N{EN DASH} below {_OPPOSITE:g})")
        bar.outline.set_visible(False)
    return figure


@register_figure
@checked()
def cells(result: Result, **output: Unpack[FigureOutput]) -> Figure:
    """Draw the distribution of cell totals (sum of expm1) and of the share of zeros, observed and predicted.

    A wrong normalisation shows as two totals far apart, a decoder of means as cells without zeros. A side whose cells
    all have the same total, as after normalisation to a fixed one, is drawn as a line.
    """
    from matplotlib.ticker import LogLocator, ScalarFormatter

    with style():
        figure = new_figure(6.6, 2.9)
        left, right = figure.subplots(1, 2)
        left.set_xscale("log")
        left.xaxis.set_major_formatter(ScalarFormatter())
        left.xaxis.set_minor_formatter(ScalarFormatter())
        left.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        _draw_histogram(left, result, "total", _total_edges(result.cells["total"].to_numpy(float)))
        left.set(xlabel="total of a cell (sum of expm1)", ylabel="share of cells in bin")
        _draw_histogram(right, result, "zero_fraction", np.linspace(0, 1, 41))
        right.set(xlabel="share of zeros in a cell", ylabel="share of cells in bin", xlim=(-0.02, 1.02))
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        figure.suptitle("Totals and zeros of observed and predicted cells", fontsize=9.5, x=0.01, ha="left")
    return figure


def _total_edges(totals: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return bins over a factor of four or more, so that equal totals do not look like a wide distribution."""
    low, high = (positive := totals[totals > 0]).min(), positive.max()
    middle = np.sqrt(low * high)
    half = max(np.sqrt(high / low) * 1.05, 2.0)
    return np.geomspace(middle / half, middle * half, 41)


def _draw_histogram(ax: Axes, result: Result, column: str, edges: NDArray[np.floating]) -> None:
    for side, color, line in (("observed", OBSERVED, "-"), ("predicted", PREDICTED, "--")):
        values = result.cells.loc[result.cells["side"] == side, column]
        if len(values) and np.ptp(values) <= 1e-3 * abs(values.mean()):
            ax.axvline(values.mean(), color=color, linestyle=line, linewidth=1.6, label=side)
            continue
        bins: dict[str, Any] = {"bins": list(edges), "weights": np.full(len(values), 1 / max(len(values), 1))}
        ax.hist(values, histtype="step", linestyle=line, linewidth=1.6, label=side, color=color, **bins)
        ax.hist(values, alpha=0.15, color=color, **bins)
