"""Figures of an evaluation: colour-blind safe, returned as matplotlib figures, drawn without touching pyplot.

Every function takes results and returns a :class:`matplotlib.figure.Figure`; ``figure.savefig("page.png")`` writes it.
"""

from __future__ import annotations

from scvi_tahoe.pl._conditions import condition_map, dose_response, interactions, knock_downs, ranked, volcano
from scvi_tahoe.pl._effects import cells, deltas, fold_changes, similarity
from scvi_tahoe.pl._figure import BASELINE, CEILING, OBSERVED, PREDICTED, draw, new_figure, style
from scvi_tahoe.pl._page import page
from scvi_tahoe.pl._scores import bars, comparison, learning_rate_test, ranks

__all__ = [
    "BASELINE",
    "CEILING",
    "OBSERVED",
    "PREDICTED",
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
    "new_figure",
    "page",
    "ranked",
    "ranks",
    "similarity",
    "style",
    "volcano",
]
