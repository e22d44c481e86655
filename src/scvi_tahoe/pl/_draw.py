"""Figures by name, for ``EvaluationResult.plot``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvi_tahoe.pl._bars import bars
from scvi_tahoe.pl._cells import cells
from scvi_tahoe.pl._delta_page import deltas
from scvi_tahoe.pl._fold_changes import fold_changes
from scvi_tahoe.pl._ranks import ranks
from scvi_tahoe.pl._similarity import similarity

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

    from scvi_tahoe.evaluate import EvaluationResult

__all__ = ["draw"]

_KINDS: dict[str, Callable[..., Figure]] = {
    "bars": bars,
    "cells": cells,
    "deltas": deltas,
    "fold_changes": fold_changes,
    "ranks": ranks,
    "similarity": similarity,
}


def draw(kind: str, result: EvaluationResult, **kwargs: Any) -> Figure:
    """Draw the figure of that name.

    Parameters
    ----------
    kind
        ``"bars"``, ``"cells"``, ``"deltas"``, ``"fold_changes"``, ``"ranks"`` or ``"similarity"``.
    result
        Result.
    **kwargs
        Handed to the function of that name.

    Raises
    ------
    ValueError
        If there is no such figure.
    """
    if kind not in _KINDS:
        msg = f"There is no figure {kind!r}; choose one of {sorted(_KINDS)}."
        raise ValueError(msg)
    return _KINDS[kind](result, **kwargs)
