"""Presets: what an evaluation scores, and how the scores become one number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scvi_tahoe._names import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What an evaluation scores.

    Attributes
    ----------
    cell_eval_profile
        Profile of cell-eval whose metrics are computed, with differential expression. If ``None``, neither is done.
    scores_cells
        Whether metrics of single cells are computed.
    from_counts
        Whether both sides hold raw counts. They are checked as such, and scored after log1p.
    aggregate
        Makes the overall score, ``EvaluationResult.vcc``, of the scores of the prediction and of the baseline, one row
        for each (context, perturbation); returns ``None`` if they do not suffice.
    extend
        Called with the finished :class:`~scvi_tahoe.evaluate.EvaluationResult`, the predicted cells and the
        reference as they were given; returns the result with further scores.
    """

    cell_eval_profile: str | None = None
    scores_cells: bool = False
    from_counts: bool = False
    aggregate: Callable[[pd.DataFrame, pd.DataFrame | None], dict[str, Any] | None] = lambda scores, baseline: None
    extend: Callable[..., Any] | None = None

    @property
    def needs_de(self) -> bool:
        """Whether differential expression is tested."""
        return self.cell_eval_profile is not None


#: names that ``preset=...`` takes
PRESETS: Registry[Preset] = Registry("preset")
