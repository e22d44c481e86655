"""Figures of a result by name, and what they read of it: tables and arrays only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from scvi_tahoe._names import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


class Effects(Protocol):
    """Deltas ``[conditions, genes]`` of (context, perturbation) pairs, as in :class:`scvi_tahoe.evaluate.Effects`."""

    @property
    def conditions(self) -> tuple[tuple[str, str], ...]: ...
    @property
    def genes(self) -> NDArray[np.str_]: ...
    @property
    def observed(self) -> NDArray[np.float32]: ...
    @property
    def predicted(self) -> NDArray[np.float32]: ...


class Result(Protocol):
    """Scores and effects of one prediction, as in :class:`scvi_tahoe.evaluate.EvaluationResult`."""

    @property
    def summary(self) -> pd.DataFrame: ...
    @property
    def per_perturbation(self) -> pd.DataFrame: ...
    @property
    def effects(self) -> Effects: ...
    @property
    def cells(self) -> pd.DataFrame: ...
    @property
    def de_observed(self) -> pd.DataFrame | None: ...
    @property
    def de_predicted(self) -> pd.DataFrame | None: ...
    @property
    def provenance(self) -> Mapping[str, Any]: ...
    def metric_label(self, metric: str) -> str: ...
    @staticmethod
    def comparison(results: Mapping[str, Any], *, metrics: Sequence[str] | None = None) -> pd.DataFrame: ...


Draw = TypeVar("Draw", bound="Callable[..., Figure]")

FIGURES: Registry[Callable[..., Figure]] = Registry("figure")


def register_figure(function: Draw) -> Draw:
    """Register a function that draws a result under its own name."""
    FIGURES.register(function.__name__, function)
    return function


def draw(kind: str, result: Result, **kwargs: Any) -> Figure:
    """Draw ``"bars"``, ``"cells"``, ``"deltas"``, ``"fold_changes"``, ``"ranks"`` or ``"similarity"``.

    ``kwargs`` are those of the function with that name; a ValueError if there is none.
    """
    return FIGURES.find(kind)(result, **kwargs)
