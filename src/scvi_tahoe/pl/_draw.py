"""Figures of a result by name, for ``EvaluationResult.plot``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from scvi_tahoe._names import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

    from scvi_tahoe.pl._result import Result

Draw = TypeVar("Draw", bound="Callable[..., Figure]")

FIGURES: Registry[Callable[..., Figure]] = Registry("figure")


def register_figure(function: Draw) -> Draw:
    """Register a function that draws a result under its own name."""
    FIGURES.register(function.__name__, function)
    return function


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
    return FIGURES.find(kind)(result, **kwargs)
