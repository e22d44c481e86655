"""What an evaluation gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scvi_tahoe.evaluate._html import result_html
from scvi_tahoe.evaluate._metric_info import metric_info
from scvi_tahoe.evaluate._storage import load_result, save_result
from scvi_tahoe.evaluate._strata import strata
from scvi_tahoe.evaluate._text import result_text

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["Effects", "EvaluationResult"]


@dataclass(frozen=True)
class Effects:
    """Observed and predicted deltas of every condition.

    Attributes
    ----------
    conditions
        (context, perturbation) of each row.
    genes
        Gene of each column.
    observed, predicted
        Mean log1p expression minus that of the controls, ``[conditions, genes]``, float32.
    """

    conditions: tuple[tuple[str, str], ...]
    genes: NDArray[np.str_]
    observed: NDArray[np.float32]
    predicted: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Scores of one prediction, with all that is needed to judge them.

    Attributes
    ----------
    summary
        One row a metric: ``value``, ``low``, ``high`` (95 % bootstrap interval over perturbations), ``baseline``,
        ``ceiling``, ``scaled`` (share of the way from baseline to ceiling), ``scaled_low``, ``scaled_high`` (its
        interval, prediction and baseline resampled together), ``direction``, ``n_perturbations``, ``n_missing``.
        Contexts are scored one by one and then averaged.
    per_perturbation
        One row a (context, perturbation): its cells, its differentially expressed genes and its scores.
    vcc
        Overall score of the challenge with its year, raw and scaled terms, and the value of each context; ``None``
        where the preset or the baseline does not give it.
    checks
        One row a check, the gravest first: ``status``, ``value``, ``allowed``, ``message``.
    provenance
        Versions, hashes, settings: two results can be compared if those of the truth agree.
    effects
        Observed and predicted deltas.
    cells
        Totals and share of zeros of a sample of cells of both sides, columns ``side`` and ``context``.
    baseline_per_perturbation, halves_per_perturbation
        Scores of the baseline and of the split halves, like ``per_perturbation``.
    de_observed, de_predicted
        Differential expression, one row a (context, perturbation, gene), if it was tested.
    """

    summary: pd.DataFrame
    per_perturbation: pd.DataFrame
    vcc: Mapping[str, Any] | None
    checks: pd.DataFrame
    provenance: Mapping[str, Any]
    effects: Effects
    cells: pd.DataFrame
    baseline_per_perturbation: pd.DataFrame | None = None
    halves_per_perturbation: pd.DataFrame | None = None
    de_observed: pd.DataFrame | None = None
    de_predicted: pd.DataFrame | None = None

    def __repr__(self) -> str:
        return result_text(self)

    def _repr_html_(self) -> str:
        return result_html(self)

    def strata(self, *, n_groups: int = 3) -> pd.DataFrame:
        """Return the mean scores of weak, medium and strong perturbations, by observed effect size.

        Parameters
        ----------
        n_groups
            Groups of equal size.
        """
        return strata(self, n_groups=n_groups)

    def compare(self, other: EvaluationResult, *, names: tuple[str, str] = ("this", "other")) -> pd.DataFrame:
        """Put two results side by side, one row each and the ceiling, one column a score.

        Parameters
        ----------
        other
            Result against the same truth under the same settings.
        names
            What to call the two.

        Raises
        ------
        ValueError
            If they differ in truth, settings or release of cell-eval; the message names in what.
        """
        return self.comparison({names[0]: self, names[1]: other})

    @staticmethod
    def comparison(results: Mapping[str, EvaluationResult], *, metrics: Sequence[str] | None = None) -> pd.DataFrame:
        """Put named results side by side, see :func:`~scvi_tahoe.evaluate.compare_results`."""
        from scvi_tahoe.evaluate._comparison import compare_results

        return compare_results(results, metrics=metrics)

    def metric_label(self, metric: str) -> str:
        """Return the short name of a metric, for tables and figures."""
        return metric_info(metric).label

    def plot(self, kind: str = "bars", **kwargs: Any) -> Figure:
        """Draw one of the figures of :mod:`scvi_tahoe.pl`.

        Parameters
        ----------
        kind
            ``"bars"``, ``"deltas"``, ``"ranks"``, ``"similarity"``, ``"fold_changes"`` or ``"cells"``.
        **kwargs
            Handed to the plot.
        """
        from scvi_tahoe import pl

        return pl.draw(kind, self, **kwargs)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the result to a folder: CSV for the scores, parquet for large tables, JSON and NPZ for the rest.

        The folder appears complete or not at all; an earlier result of the same name is replaced.
        """
        save_result(self, folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> EvaluationResult:
        """Read a result that :meth:`save` wrote.

        Raises
        ------
        FileNotFoundError
            If the folder holds no result.
        """
        return cls(**load_result(folder, Effects))
