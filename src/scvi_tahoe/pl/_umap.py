"""Populations of cells next to each other on one map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import numpy as np

from scvi_tahoe._arguments import checked
from scvi_tahoe.pl._figure import BASELINE, COLORS, drawn, new_figure, style

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from scvi_tahoe.pl._figure import FigureOutput


@drawn
@checked(n_components=(2, None), seed=(0, None))
def umap(
    populations: Mapping[str, AnnData], color: str, *, labels: Sequence[str] | None = None, n_components: int = 20,
    seed: int = 0, **output: Unpack[FigureOutput],
) -> Figure:  # fmt: skip
    """Draw populations of cells on one UMAP, each in a panel of its own, with the others in grey behind it.

    Parameters
    ----------
    populations
        Cells by name, e.g. ``{"observed": held_out, "predicted": predicted}``. The map is made of principal components
        of the first population, onto which the others are projected. Genes are matched by name.
    color
        Column of ``obs`` with labels, such as the perturbation.
    labels
        Labels to draw, at most eight. If None, all labels that every population has.
    n_components
        Number of principal components.
    seed
        Random seed of the map.
    **output
        ``show``, ``save`` and ``return_fig``, see :mod:`scvi_tahoe.pl`.

    Raises
    ------
    KeyError
        If a population has no such column or lacks a gene of the first one.
    ValueError
        If there are no cells with the labels, or more than eight labels.
    """
    import anndata as ad
    import scanpy as sc

    genes = next(iter(populations.values())).var_names
    for name, cells in populations.items():
        if color not in cells.obs:
            raise KeyError(f"{name}: obs has no column {color!r}; it has {list(cells.obs)}.")
        if missing := set(genes) - set(cells.var_names):
            raise KeyError(f"{name} lacks {len(missing)} genes of the first population, such as {min(missing)!r}.")
    if labels is None:
        labels = sorted(set.intersection(*(set(cells.obs[color].astype(str)) for cells in populations.values())))
    labels = [str(label) for label in labels]
    if not 0 < len(labels) <= len(COLORS):
        raise ValueError(f"{len(labels)} labels to draw; 1 to {len(COLORS)} have a colour of their own: give labels.")
    chosen = {name: cells[cells.obs[color].astype(str).isin(labels), genes] for name, cells in populations.items()}
    if empty := [name for name, cells in chosen.items() if cells.n_obs == 0]:
        raise ValueError(f"{empty[0]} has no cell with one of the labels {labels}.")
    first = next(iter(chosen.values())).copy()
    sc.pp.pca(first, n_comps=min(n_components, first.n_obs - 1, first.n_vars - 1), random_state=seed)
    axes, center = first.varm["PCs"], np.asarray(first.X.mean(axis=0)).ravel()
    both = ad.concat(chosen, label="population", index_unique="-")
    both.obsm["X_pca"] = np.asarray(both.X @ axes) - center @ axes
    sc.pp.neighbors(both, n_neighbors=15, use_rep="X_pca", random_state=seed)
    sc.tl.umap(both, random_state=seed)
    return _drawn(both.obsm["X_umap"], both.obs, color, labels)


def _drawn(points: NDArray[np.floating], obs: pd.DataFrame, color: str, labels: Sequence[str]) -> Figure:
    """Draw cells at ``points``, ``[C, 2]``, in one panel for each population of ``obs``."""
    of, names = obs[color].astype(str).to_numpy(), obs["population"].unique()
    with style():
        figure = new_figure(2.6 * len(names) + 1.3, 2.7)
        panels = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
        for panel, name in zip(panels, names):
            mine = (obs["population"] == name).to_numpy()
            panel.scatter(*points[~mine].T, s=3, color=BASELINE, alpha=0.25, linewidth=0)
            for label, shade in zip(labels, COLORS):
                panel.scatter(*points[mine & (of == label)].T, s=6, color=shade, linewidth=0, label=label)
            panel.set(xticks=[], yticks=[], title=f"{name} ({mine.sum():,} cells)", xlabel="UMAP 1")
        panels[0].set_ylabel("UMAP 2")
        panels[-1].legend(title=color, loc="center left", bbox_to_anchor=(1.02, 0.5), markerscale=2)
    return figure
