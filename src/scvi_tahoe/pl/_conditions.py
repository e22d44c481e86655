"""Figures of conditions: volcano and ranked plots, maps, dose responses, interactions, targets' own expression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import numpy as np
import pandas as pd

from scvi_tahoe._arguments import checked
from scvi_tahoe.pl._figure import (
    BASELINE,
    COLORS,
    OBSERVED,
    PREDICTED,
    drawn,
    label_points,
    one_panel,
    style,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scvi_tahoe.pl._figure import FigureOutput


def _row(effects: AnnData, condition: str | None) -> AnnData:
    if condition not in effects.obs_names:
        raise KeyError(f"there is no condition {condition!r}; the first are {effects.obs_names[:5].tolist()}.")
    return effects[condition]


@drawn
@checked()
def volcano(
    effects: AnnData, condition: str, *, n_genes: int = 10, ax: Axes | None = None, **output: Unpack[FigureOutput]
) -> Figure:
    """Draw the change of every gene in a condition against the certainty of its direction.

    Parameters
    ----------
    effects
        Changes of conditions with ``layers["sd"]``; see :mod:`scvi_tahoe.effects`.
    condition
        Name of the condition, one of ``effects.obs_names``.
    n_genes
        Number of genes with the most certain direction that are named.
    ax
        Axes to draw into. If None, a new figure is made.
    **output
        ``show``, ``save`` and ``return_fig``, see :mod:`scvi_tahoe.pl`.

    Raises
    ------
    KeyError
        If there is no such condition, or no standard deviations.
    """
    row = _row(effects, condition)
    if "sd" not in effects.layers:
        raise KeyError("effects has no layers['sd'], which says how sure a change is.")
    change = np.asarray(row.X, dtype=np.float64).ravel()
    ratio = np.abs(change) / np.maximum(np.asarray(row.layers["sd"], dtype=np.float64).ravel(), 1e-12)
    top = np.argsort(-ratio)[:n_genes]
    with style():
        figure, ax = one_panel(ax, 3.6, 3.0)
        ax.scatter(change, ratio, s=5, color=BASELINE, linewidth=0, alpha=0.6)
        ax.scatter(change[top], ratio[top], s=10, color=PREDICTED, linewidth=0)
        ax.axvline(0, color="black", linewidth=0.6)
        ax.axhline(1.96, color=BASELINE, linewidth=0.8, linestyle="--")
        ax.set_xlabel("change of mean log1p expression")
        ax.set_ylabel("|change| / sd")
        ax.set_title(condition)
        figure.draw_without_rendering()
        points = np.column_stack([change, ratio])
        label_points(ax, change[top], ratio[top], effects.var_names[top].tolist(), avoid=points)
    return figure


@drawn
@checked()
def ranked(
    effects: AnnData | pd.DataFrame, condition: str | None = None, *, n: int = 10, ax: Axes | None = None,
    **output: Unpack[FigureOutput],
) -> Figure:  # fmt: skip
    """Draw the largest values of a condition, up and down, or the first and last rows of a ranking.

    Parameters
    ----------
    effects
        Changes of conditions (see :mod:`scvi_tahoe.effects`), scores of gene sets
        (:func:`~scvi_tahoe.effects.gene_set_scores`), or a ranking of conditions
        (:func:`~scvi_tahoe.effects.rank_reversals`). Standard deviations are drawn where they are known.
    condition
        Name of the condition, one of ``effects.obs_names``; not for a ranking.
    n
        Number of the largest and of the smallest values that are drawn.
    ax
        Axes to draw into. If None, a new figure is made.
    **output
        ``show``, ``save`` and ``return_fig``, see :mod:`scvi_tahoe.pl`.

    Raises
    ------
    KeyError
        If there is no such condition.
    """
    if isinstance(effects, pd.DataFrame):
        values, sd, title = effects["score"], effects.get("sd"), "how far a signature is undone"
    else:
        row, title = _row(effects, condition), str(condition)
        values = pd.Series(np.asarray(row.X, dtype=np.float64).ravel(), index=effects.var_names)
        sd = pd.Series(np.asarray(row.layers["sd"]).ravel(), index=values.index) if "sd" in row.layers else None
    order = np.argsort(-values.to_numpy(), kind="stable")
    shown = order if len(order) <= 2 * n else np.concatenate([order[:n], order[-n:]])
    place = -np.arange(len(shown), dtype=float) - (0 if len(order) <= 2 * n else 0.7 * (np.arange(len(shown)) >= n))
    with style():
        figure, ax = one_panel(ax, 3.6, 0.15 * len(shown) + 0.8)
        colors = [PREDICTED if values.iloc[i] > 0 else OBSERVED for i in shown]
        ax.barh(place, values.iloc[shown], color=colors, height=0.75)
        if sd is not None and np.isfinite(sd.iloc[shown]).all():
            ax.errorbar(values.iloc[shown], place, xerr=sd.iloc[shown], fmt="none", ecolor="black", elinewidth=0.6)
        ax.axvline(0, color="black", linewidth=0.6)
        ax.set_yticks(place, [str(values.index[i]) for i in shown])
        ax.set_xlabel("score" if isinstance(effects, pd.DataFrame) or "n_genes" in effects.var else "change")
        ax.set_title(title)
    return figure


@drawn
@checked()
def condition_map(
    embedding: AnnData, color: str | None = None, *, n_names: int = 12, ax: Axes | None = None,
    **output: Unpack[FigureOutput],
) -> Figure:  # fmt: skip
    """Draw conditions as points, large where they change much and pale where little is known of them.

    Parameters
    ----------
    embedding
        AnnData of :meth:`~scvi_tahoe.TahoeST.get_condition_embedding`. If scanpy added ``obsm["X_umap"]``, this is
        drawn, else the first two components.
    color
        Column of ``obs`` with at most eight values, such as the contexts. If None, all points have one colour.
    n_names
        Number of conditions with the largest changes that are named.
    ax
        Axes to draw into. If None, a new figure is made.
    **output
        ``show``, ``save`` and ``return_fig``, see :mod:`scvi_tahoe.pl`.

    Raises
    ------
    KeyError, ValueError
        If there is no such column, it has more than eight values, or there is only one component.
    """
    if color is not None and color not in embedding.obs:
        raise KeyError(f"embedding.obs has no column {color!r}; it has {list(embedding.obs)}.")
    is_umap = "X_umap" in embedding.obsm
    points = np.asarray(embedding.obsm["X_umap"] if is_umap else embedding.X)[:, :2]
    if points.shape[1] < 2:
        raise ValueError("the embedding has one component; a map needs two.")
    groups = np.full(len(points), "") if color is None else embedding.obs[color].astype(str).to_numpy()
    if len(kinds := sorted(set(groups))) > len(COLORS):
        raise ValueError(f"obs[{color!r}] has {len(kinds)} values; at most {len(COLORS)} have a colour of their own.")
    size = embedding.obs["effect_size"].to_numpy()
    support = embedding.obs["support"].to_numpy(float) if "support" in embedding.obs else np.ones(len(points))
    with style():
        figure, ax = one_panel(ax, 4.2, 3.6)
        for kind, shade in zip(kinds, COLORS, strict=False):
            here = groups == kind
            ax.scatter(
                points[here, 0], points[here, 1], s=6 + 60 * (size[here] / max(size.max(), 1e-12)),
                color=shade, linewidth=0, alpha=0.25 + 0.65 * np.clip(support[here], 0, 1),
                label=kind or None,
            )  # fmt: skip
        name = "UMAP" if is_umap else "component"
        ax.set_xlabel(f"{name} 1")
        ax.set_ylabel(f"{name} 2")
        if color is not None:
            ax.legend(title=color, loc="best")
        figure.draw_without_rendering()
        top = np.argsort(-size)[:n_names]
        label_points(ax, points[top, 0], points[top, 1], embedding.obs_names[top].tolist(), avoid=points)
    return figure


@drawn
@checked()
def dose_response(
    effects: AnnData,
    fits: pd.DataFrame,
    gene: str,
    *,
    dose_key: str | None = None,
    perturbation_key: str | None = None,
    ax: Axes | None = None,
    **output: Unpack[FigureOutput],
) -> Figure:
    """Draw the change of a gene over the doses of each perturbation, with its Hill curve.

    Doses beyond those of the data are shaded: the curve is extrapolated there.

    Parameters
    ----------
    effects
        Changes at several doses; see :mod:`scvi_tahoe.effects`.
    fits
        Table of :func:`scvi_tahoe.effects.dose_response`.
    gene
        Gene to draw.
    dose_key, perturbation_key
        Columns of ``obs`` with doses and perturbations. If None, those that ``fits`` was made with.
    ax
        Axes to draw into. If None, a new figure is made.
    **output
        ``show``, ``save`` and ``return_fig``, see :mod:`scvi_tahoe.pl`.

    Raises
    ------
    KeyError
        If the gene is not in ``fits``, or ``effects.obs`` has no such column.
    ValueError
        If neither ``dose_key`` nor ``fits`` says which column has the doses.
    """
    labels = list(fits.columns[: list(fits.columns).index("gene")])
    if (dose_key := dose_key or fits.attrs.get("dose_key")) is None:
        raise ValueError("fits does not say which column has the doses, as tables from a file never do; give dose_key.")
    if dose_key not in effects.obs:
        raise KeyError(f"effects.obs has no column {dose_key!r} (dose_key); it has {list(effects.obs)}.")
    if perturbation_key not in (None, *labels):
        raise KeyError(f"fits has no column {perturbation_key!r} (perturbation_key); it is of {labels}.")
    fits = fits[fits["gene"] == gene]
    if fits.empty:
        raise KeyError(f"gene {gene!r} was not fitted; give it to scvi_tahoe.effects.dose_response().")
    of_gene = np.asarray(effects[:, gene].X, dtype=np.float64).ravel()
    sd = np.asarray(effects[:, gene].layers["sd"], dtype=np.float64).ravel() if "sd" in effects.layers else None
    dose = effects.obs[dose_key].to_numpy(dtype=np.float64)
    texts = effects.obs[labels].astype(str)
    with style():
        figure, ax = one_panel(ax, 3.8, 2.8)
        low, high = dose[dose > 0].min(), dose.max()
        grid = np.geomspace(low / 10, high * 10, 200)
        for k, (_, fit) in enumerate(fits.iterrows()):
            mine, color = [str(fit[name]) for name in labels], COLORS[k % len(COLORS)]
            here = (texts == mine).all(axis=1).to_numpy() & (dose > 0)
            ax.errorbar(dose[here], of_gene[here], None if sd is None else sd[here], fmt="o", markersize=3, color=color)
            curve = fit["emax"] / (1 + (grid / fit["ec50"]) ** -fit["slope"])
            ax.plot(grid, curve, color=color, label=f"{' in '.join(mine)}, EC50 {fit['ec50']:.2g}")
        for edge in ((grid[0], low), (high, grid[-1])):
            ax.axvspan(*edge, color=BASELINE, alpha=0.15, linewidth=0)
        ax.axhline(0, color="black", linewidth=0.6)
        ax.set_xscale("log")
        ax.set_xlim(grid[0], grid[-1])
        ax.set_xlabel("dose (shaded: not measured)")
        ax.set_ylabel(f"change of {gene}")
        ax.legend()
    return figure


@drawn
@checked()
def interactions(
    pairs: AnnData, *, score: str = "magnitude", ax: Axes | None = None, **output: Unpack[FigureOutput]
) -> Figure:
    """Draw a score of pairs as a heat map of first against second perturbation; missing pairs are left empty.

    Parameters
    ----------
    pairs
        AnnData of :func:`scvi_tahoe.effects.interactions`, of one context.
    score
        Column of ``pairs.obs``, such as ``"magnitude"`` (1.41 where parts add up) or ``"dominance"``.
    ax
        Axes to draw into. If None, a new figure is made.
    **output
        ``show``, ``save`` and ``return_fig``, see :mod:`scvi_tahoe.pl`.

    Raises
    ------
    KeyError
        If there is no such score.
    """
    if score not in pairs.obs:
        raise KeyError(f"pairs.obs has no column {score!r}; it has {list(pairs.obs)}.")
    first, second = (pairs.obs[side].astype(str).to_numpy() for side in ("first", "second"))
    names = sorted({*first, *second})
    position = {name: i for i, name in enumerate(names)}
    table = np.full((len(names), len(names)), np.nan)
    for a, b, value in zip(first, second, pairs.obs[score], strict=True):
        table[position[a], position[b]] = table[position[b], position[a]] = value
    additive = np.sqrt(2) if score == "magnitude" else np.nanmedian(table)
    reach = float(np.nanmax(np.abs(table - additive))) or 1.0
    with style():
        side = max(2.6, 0.16 * len(names) + 1.4)
        figure, ax = one_panel(ax, side + 0.6, side)
        ax.set_facecolor("#E6E6E6")  # pairs that are not there
        image = ax.imshow(table, cmap="RdBu_r", vmin=additive - reach, vmax=additive + reach)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_ticks(range(len(names)), names)
        ax.tick_params(axis="x", rotation=90)
        figure.colorbar(image, ax=ax, shrink=0.8, label=score)
    return figure


@drawn
@checked()
def knock_downs(report: pd.DataFrame, *, ax: Axes | None = None, **output: Unpack[FigureOutput]) -> Figure:
    """Draw how much each perturbation changed the expression of its own target, largest fall first.

    Parameters
    ----------
    report
        Table of :func:`scvi_tahoe.screen_quality`.
    ax
        Axes to draw into. If None, a new figure is made.
    **output
        ``show``, ``save`` and ``return_fig``, see :mod:`scvi_tahoe.pl`.

    Raises
    ------
    ValueError
        If no target is a gene of the data.
    """
    table = report[report["target"].notna()].sort_values("target_change")
    if table.empty:
        raise ValueError("no target of the report is a gene of the data, so there is nothing to draw.")
    unchanged = table["marks"].str.contains("target unchanged").to_numpy()
    names = table.iloc[:, 0].astype(str)
    if names.duplicated().any():  # several contexts
        names = names + ", " + table.iloc[:, 1].astype(str)
    rows = np.arange(len(table))[::-1]
    with style():
        figure, ax = one_panel(ax, 4.2, 0.16 * len(table) + 0.9)
        for marked, color, label in ((~unchanged, PREDICTED, "changed"), (unchanged, OBSERVED, "unchanged (p > .05)")):
            if marked.any():
                ax.barh(rows[marked], table["target_change"].to_numpy()[marked], color=color, height=0.7, label=label)
        ax.axvline(0, color="black", linewidth=0.6)
        ax.set_yticks(rows, names)
        ax.set_ylim(-0.7, len(table) - 0.3)
        ax.set_xlabel("change of the target's mean log1p expression")
        ax.legend(loc="best")
    return figure
