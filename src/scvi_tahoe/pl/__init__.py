"""Figures of an evaluation: colour-blind safe, returned as matplotlib figures, drawn without touching pyplot.

Every function takes results and returns a :class:`matplotlib.figure.Figure`; ``figure.savefig("page.png")`` writes it.
"""

from __future__ import annotations

from scvi_tahoe.pl._bars import bars
from scvi_tahoe.pl._cells import cells
from scvi_tahoe.pl._comparison import comparison
from scvi_tahoe.pl._delta_page import deltas
from scvi_tahoe.pl._draw import draw
from scvi_tahoe.pl._fold_changes import fold_changes
from scvi_tahoe.pl._learning_rate import learning_rate_test
from scvi_tahoe.pl._ranks import ranks
from scvi_tahoe.pl._similarity import similarity

__all__ = [
    "bars",
    "cells",
    "comparison",
    "deltas",
    "draw",
    "fold_changes",
    "learning_rate_test",
    "ranks",
    "similarity",
]
