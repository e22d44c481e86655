"""Figures of an evaluation: colour-blind safe, returned as matplotlib figures, drawn without touching pyplot.

Every function returns a :class:`matplotlib.figure.Figure`, which a notebook shows as the result of a cell, and takes
three further arguments, as scanpy's functions do: ``save="page.png"`` writes it (png, pdf or svg, by the ending),
``show=True`` shows it at once, in a notebook or a window, and then returns nothing unless ``return_fig=True``. Figures
with a single panel take ``ax=...``, the axes to draw into.
"""

from __future__ import annotations

from scvi_tahoe.pl._conditions import condition_map, dose_response, interactions, knock_downs, ranked, volcano
from scvi_tahoe.pl._effects import cells, deltas, fold_changes, similarity
from scvi_tahoe.pl._figure import (
    BASELINE,
    CEILING,
    OBSERVED,
    PREDICTED,
    FigureName,
    draw,
    new_figure,
    save_figure,
    style,
)
from scvi_tahoe.pl._page import page
from scvi_tahoe.pl._scores import bars, comparison, learning_rate_test, ranks
from scvi_tahoe.pl._umap import umap

__all__ = [
    "bars",
    "cells",
    "comparison",
    "condition_map",
    "deltas",
    "dose_response",
    "draw",
    "fold_changes",
    "interactions",
    "knock_downs",
    "learning_rate_test",
    "ranked",
    "ranks",
    "similarity",
    "umap",
    "volcano",
]
