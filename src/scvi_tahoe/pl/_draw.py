"""Figures by name, for ``EvaluationResult.plot``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvi_tahoe.pl._cells import cells
from scvi_tahoe.pl._effects import deltas, fold_changes, similarity
from scvi_tahoe.pl._scores import bars, ranks

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

    from scvi_tahoe.pl._result import Result

_FUNCTIONS: tuple[Callable[..., Figure], ...] = (bars, cells, deltas, fold_changes, ranks, similarity)
_FIGURES = {function.__name__: function for function in _FUNCTIONS}


def draw(kind: str, result: Result, **kwargs: Any) -> Figure:
    """Draw the figure with the given name.

    Parameters
    ----------
    kind
        ``"bars"``, ``"cells"``, ``"deltas"``, ``"fold_changes"``, ``"ranks"`` or ``"similarity"``.
    result
        Evaluation result.
    **kwargs
        Passed to the function with that name.

    Raises
    ------
    ValueError
        If there is no such figure.
    """
    if kind not in _FIGURES:
        raise ValueError(f"There is no figure {kind!r}; choose one of {sorted(_FIGURES)}.")
    return _FIGURES[kind](result, **kwargs)
