"""The observed cells of one context, with everything about them that is computed once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from scvi_tahoe.evaluate._cache import TruthCache, content_hash, installed_versions
from scvi_tahoe.evaluate._differential_expression import differential_expression
from scvi_tahoe.evaluate._group_statistics import GroupStatistics, gene_weights, group_statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl
    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import CellTable

T = TypeVar("T")


@dataclass(eq=False)
class ContextTruth:
    """Observed cells of one context and what follows from them, each part computed when first asked for."""

    #: observed cells of one context, controls included
    cells: CellTable
    #: label of the control cells
    control: str
    #: keeps differential expression
    cache: TruthCache
    #: how differential expression is tested
    de_backend: Literal["cpu", "gpu"]
    num_threads: int | None
    progress: bool

    def __post_init__(self) -> None:
        (self.context,) = self.cells.contexts
        self.perturbations = self.cells.perturbations(self.context, control=self.control)
        self._computed: dict[Callable[..., Any], Any] = {}

    @cached_property
    def statistics(self) -> GroupStatistics:
        """Means, variances and zeros of every perturbation."""
        return group_statistics(self.cells, self.context, self.perturbations, control=self.control)

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """Gene weights of the weighted scores, ``[P, G]``."""
        return gene_weights(self.statistics)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the cells and the control label."""
        return content_hash(self.cells) + f"-{self.control}"

    @cached_property
    def differential_expression(self) -> pl.DataFrame:
        """Differential expression of the observed cells."""
        key: dict[str, object] = {
            "table": "observed de",
            "truth": self.fingerprint,
            "backend": self.de_backend,
            "versions": installed_versions(),
        }
        return self.cache.table(key, lambda: self.test(self.cells))

    @property
    def controls(self) -> CellTable:
        """Observed control cells."""
        return self.cells.take(self.cells.rows[self.context, self.control])

    def test(self, cells: CellTable, *, controls: CellTable | None = None) -> pl.DataFrame:
        """Test differential expression of other cells of this context under the same settings."""
        return differential_expression(
            cells,
            control=self.control,
            controls=controls,
            backend=self.de_backend,
            num_threads=self.num_threads,
            progress=self.progress,
        )

    def once(self, compute: Callable[[CellTable], T]) -> T:
        """Return what a function makes of the observed cells; it is called for the first prediction only."""
        if compute not in self._computed:
            self._computed[compute] = compute(self.cells)
        return self._computed[compute]

    def halves(self, *, split_controls: bool, seed: int) -> tuple[ContextTruth, CellTable]:
        """Split the cells of every perturbation into two disjoint halves of ``n // 2`` cells: a truth and a prediction.

        A perturbation with fewer than two cells is in neither; unless they are split too, all controls are in both.

        Notes
        -----
        With controls split these are the halves of cell-eval 0.8.2 (``compute_ceiling``) for the same seed.
        """
        rng = np.random.default_rng(seed)
        first, second = [], []
        for (_, perturbation), rows in self.cells.rows.items():
            shuffled = rng.permutation(rows)
            if perturbation == self.control and not split_controls:
                first.append(rows)
                second.append(rows)
            elif (n := len(rows) // 2) > 0:
                first.append(shuffled[:n])
                second.append(shuffled[n : 2 * n])
        observed, predicted = (self.cells.select(np.concatenate(rows)) for rows in (first, second))
        if not observed.perturbations(self.context, control=self.control) or self.control not in observed.perturbation:
            raise ValueError(
                f"Context {self.context!r} has too few cells to split into halves, so it has no ceiling; "
                "pass ceiling=False to score without one."
            )
        return replace(self, cells=observed, cache=TruthCache()), predicted
