"""What figures read of an evaluation result: tables and arrays only, so that ``pl`` knows nothing of an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import pandas as pd
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
