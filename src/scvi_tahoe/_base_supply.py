"""The cells of a prior, made when a prediction comes to their condition: they are as many as the predicted ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from scvi_tahoe._sources import prior_and_targets

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from scvi_tahoe._model import TahoeST
    from scvi_tahoe._prediction import PredictionPlan
    from scvi_tahoe.data import CellPrior, ConditionIndex, EmbeddingTable, MinibatchSources, PriorTarget, Screen

__all__ = ["CONTROL_CELLS", "BaseSupply", "begin_prior", "left_as_prior"]

#: what a prediction without a prior starts from, in words as of :meth:`~scvi_tahoe.data.CellPrior.starts_from`
CONTROL_CELLS = "control cells"


@dataclass
class BaseSupply:
    """Makes the prior's cells of the conditions of a plan, and forgets them when later ones are asked for.

    The cells of condition ``k`` have the row numbers from ``stops[k - 1]`` to before ``stops[k]``, as predicted cells.
    """

    prior: CellPrior
    targets: Mapping[str, PriorTarget]
    plan: PredictionPlan
    table: EmbeddingTable
    seed: int
    device: torch.device
    _blocks: dict[int, sp.csr_matrix] = field(default_factory=dict)

    def of_conditions(self, first: int, stop: int) -> tuple[sp.csr_matrix, int]:
        """Cells of the conditions from ``first`` to before ``stop``: CSR float32 ``[rows, G]``, and the first row."""
        kept = {k: block for k, block in self._blocks.items() if first <= k < stop}
        missing = [k for k in range(first, stop) if k not in kept]
        if missing:
            sizes = self.plan.sizes
            base = self.prior.base_from(
                self.targets, [self.plan.conditions[k] for k in missing], self.table,
                n_cells=sizes, seed=self.seed, device=self.device,
            )  # fmt: skip
            if len(missing) == len(self.plan.tasks):
                return base.cells, 0  # type: ignore[return-value]  # all at once: nothing will be asked for again
            for k in missing:
                rows = base.rows[self.plan.conditions[k]]  # type: ignore[index]
                kept[k] = base.cells[rows[0] : rows[-1] + 1]  # type: ignore[index]
        self._blocks = kept
        stops = self.plan.stops
        cells = sp.vstack([kept[k] for k in range(first, stop)], format="csr")
        return cells, int(stops[first] - len(self.plan.tasks[first].controls))


def begin_prior(
    model: TahoeST,
    sources: MinibatchSources,
    plan: PredictionPlan,
    screen: Screen,
    index: ConditionIndex,
    *,
    table: EmbeddingTable,
    seed: int,
    device: torch.device,
) -> tuple[MinibatchSources, PredictionPlan, BaseSupply | None, list[str]]:
    """What the model's prior adds to a prediction.

    Returns
    -------
    Sources with the shift of a prior of means; the plan, its tasks with the rows of a prior of cells, and whether these
    are the prediction; the supply of these cells, None without such a prior; and what each condition starts from, in
    words.

    Raises
    ------
    ValueError
        If the model has a prior that was not learned yet.
    """
    if model.prior == "none":
        return sources, plan, None, [CONTROL_CELLS] * len(plan.tasks)
    prior, targets = prior_and_targets(model, screen, index, plan.conditions)
    words, corrected = prior.starts_from(plan.conditions, table), prior.is_corrected(plan.conditions, table)
    has_cells = prior.kind == "cells"
    tasks = tuple(
        replace(task, keeps_base=not yes, base=np.arange(stop - len(task.controls), stop) if has_cells else None)
        for task, yes, stop in zip(plan.tasks, corrected.tolist(), plan.stops, strict=True)
    )
    plan = replace(plan, tasks=tasks)
    if has_cells:
        return sources, plan, BaseSupply(prior, targets, plan, table, seed, device), words
    base = prior.base_from(targets, plan.conditions, table, n_cells=plan.sizes, seed=seed, device=device)
    return replace(sources, shift_of_condition=base.shift), plan, None, words


def left_as_prior(plan: PredictionPlan) -> list[str]:
    """Labels of a plan whose prior the network does not correct, see :meth:`~scvi_tahoe.data.CellPrior.is_corrected`.

    Parameters
    ----------
    plan
        Of :func:`begin_prior`.
    """
    return sorted({label for label, task in zip(plan.labels, plan.tasks, strict=True) if task.keeps_base})
