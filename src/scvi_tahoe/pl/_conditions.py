"""Figures of conditions: volcano plots, dose responses, interactions, and targets' own expression."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe._arguments import checked
from scvi_tahoe.pl._figure import BASELINE, OBSERVED, PREDICTED, label_points, new_figure, style

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.figure import Figure


@checked()
def volcano(effects: AnnData, condition: str, *, n_genes: int = 10) -> Figure:
    """Draw the change of every gene in a condition against how sure its direction is.

    Parameters
    ----------
    effects
        Changes of conditions with ``layers["sd"]``; see :mod:`scvi_tahoe.effects`.
    condition
        Name of the condition, one of ``effects.obs_names``.
    n_genes
        How many of the surest genes are named.

    Raises
    ------
    KeyError
        If there is no such condition, or no standard deviations.
    """
    if condition not in effects.obs_names:
        raise KeyError(f"there is no condition {condition!r}; the first are {effects.obs_names[:5].tolist()}.")
    if "sd" not in effects.layers:
        raise KeyError("effects has no layers['sd'], which says how sure a change is.")
    row = effects[condition]
    change = np.asarray(row.X, dtype=np.float64).ravel()
    ratio = np.abs(change) / np.maximum(np.asarray(row.layers["sd"], dtype=np.float64).ravel(), 1e-12)
    top = np.argsort(-ratio)[:n_genes]
    with style():
        figure = new_figure(3.6, 3.0)
        ax = figure.subplots()
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


@checked()
def dose_response(effects: AnnData, fits: pd.DataFrame, gene: str, *, dose_key: str, perturbation_key: str) -> Figure:
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
        Columns of ``obs`` with doses and perturbations.

    Raises
    ------
    KeyError
        If the gene is not in ``fits``.
    """
    fits = fits[fits["gene"] == gene]
    if fits.empty:
        raise KeyError(f"gene {gene!r} was not fitted; give it to scvi_tahoe.effects.dose_response().")
    of_gene = np.asarray(effects[:, gene].X, dtype=np.float64).ravel()
    sd = np.asarray(effects[:, gene].layers["sd"], dtype=np.float64).ravel() if "sd" in effects.layers else None
    dose = effects.obs[dose_key].to_numpy(dtype=np.float64)
    names = effects.obs[perturbation_key].astype(str).to_numpy()
    with style():
        figure = new_figure(3.8, 2.8)
        ax = figure.subplots()
        low, high = dose[dose > 0].min(), dose.max()
        grid = np.geomspace(low / 10, high * 10, 200)
        colors = [PREDICTED, OBSERVED, "#009E73", "#CC79A7", "#D55E00", "#56B4E9"]
        for k, (_, fit) in enumerate(fits.iterrows()):
            here, color = (names == str(fit[perturbation_key])) & (dose > 0), colors[k % len(colors)]
            ax.errorbar(dose[here], of_gene[here], None if sd is None else sd[here], fmt="o", markersize=3, color=color)
            curve = fit["emax"] / (1 + (grid / fit["ec50"]) ** -fit["slope"])
            ax.plot(grid, curve, color=color, label=f"{fit[perturbation_key]}, EC50 {fit['ec50']:.2g}")
        for edge in ((grid[0], low), (high, grid[-1])):
            ax.axvspan(*edge, color=BASELINE, alpha=0.15, linewidth=0)
        ax.axhline(0, color="black", linewidth=0.6)
        ax.set_xscale("log")
        ax.set_xlim(grid[0], grid[-1])
        ax.set_xlabel("dose (shaded: not measured)")
        ax.set_ylabel(f"change of {gene}")
        ax.legend()
    return figure


@checked()
def interactions(pairs: AnnData, *, score: str = "magnitude") -> Figure:
    """Draw a score of pairs as a heat map of first against second perturbation; pairs that are not there are empty.

    Parameters
    ----------
    pairs
        AnnData of :func:`scvi_tahoe.effects.interactions`, of one context.
    score
        Column of ``pairs.obs``, such as ``"magnitude"`` (1.41 where parts add up) or ``"dominance"``.

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
        figure = new_figure(side + 0.6, side)
        ax = figure.subplots()
        ax.set_facecolor("#E6E6E6")  # pairs that are not there
        image = ax.imshow(table, cmap="RdBu_r", vmin=additive - reach, vmax=additive + reach)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_ticks(range(len(names)), names)
        ax.tick_params(axis="x", rotation=90)
        figure.colorbar(image, ax=ax, shrink=0.8, label=score)
    return figure


@checked()
def knock_downs(report: pd.DataFrame) -> Figure:
    """Draw how much each perturbation changed the expression of its own target, largest fall first.

    Parameters
    ----------
    report
        Table of :func:`scvi_tahoe.screen_quality`.

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
        figure = new_figure(4.2, 0.16 * len(table) + 0.9)
        ax = figure.subplots()
        for marked, color, label in ((~unchanged, PREDICTED, "changed"), (unchanged, OBSERVED, "unchanged (p > .05)")):
            if marked.any():
                ax.barh(rows[marked], table["target_change"].to_numpy()[marked], color=color, height=0.7, label=label)
        ax.axvline(0, color="black", linewidth=0.6)
        ax.set_yticks(rows, names)
        ax.set_ylim(-0.7, len(table) - 0.3)
        ax.set_xlabel("change of the target's mean log1p expression")
        ax.legend(loc="best")
    return figure
