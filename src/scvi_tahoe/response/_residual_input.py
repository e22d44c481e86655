"""What the network's change is added to: the prior of some conditions, ready for minibatches, made on demand.

Without a prior these are the control cells, and nothing here is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import scipy.sparse as sp

from scvi_tahoe.data import aligned_expression, dense_rows, make_store
from scvi_tahoe.response._prior import CellPrior

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import torch

    from scvi_tahoe.data import CellSetDataset, Condition, ConditionIndex, DataSpec, EmbeddingTable, Screen, ScreenKeys
    from scvi_tahoe.response._prior import Prior, PriorTarget

_CELLS_UP_TO = 5_000_000  # conditions x genes whose prior is made in minutes


def choose_prior(index: ConditionIndex, keys: ScreenKeys, n_genes: int) -> Prior:
    """Choose cells if most conditions can be made from others and there are not too many conditions to keep."""
    is_small = len(index.conditions) * n_genes <= _CELLS_UP_TO
    components = [keys.parser.components(label) for label in index.perturbations]
    has_parts = keys.combination_separator is not None and sum(len(of_label) == 1 for of_label in components) > 1
    return "cells" if is_small and (index.perturbations_recur or has_parts) else "none"


def learn_prior(kind: Prior, spec: DataSpec, screen: Screen, rows: np.ndarray, *, seed: int) -> dict[str, Any]:
    """Return what a prior keeps of its training cells, as plain values."""
    return CellPrior.from_cells(kind, aligned_expression(spec, screen), screen.index, rows, seed=seed).to_dict()


def prior_and_targets(
    learned: Mapping[str, Any], spec: DataSpec, screen: Screen, conditions: Sequence[Condition]
) -> tuple[CellPrior, dict[str, PriorTarget]]:
    """Return a learned prior, and what it needs to know of the contexts of these conditions."""
    expression = aligned_expression(spec, screen)
    contexts = sorted({condition.context for condition in conditions})
    controls = ((c, dense_rows(expression, screen.index.controls(c))) for c in contexts)  # in memory one at a time
    prior = CellPrior.from_dict(dict(learned))
    return prior, prior.targets(controls)


def with_prior(
    dataset: CellSetDataset,
    learned: Mapping[str, Any] | None,
    spec: DataSpec,
    screen: Screen,
    *,
    device: torch.device,
    seed: int,
    progress: bool = False,
) -> CellSetDataset:
    """Return the dataset with what a learned prior says of all conditions of a screen."""
    if learned is None:
        return dataset
    conditions = screen.index.conditions
    prior, targets = prior_and_targets(learned, spec, screen, conditions)
    table = spec.with_composed(screen).table
    base = prior.base_from(targets, conditions, table, seed=seed, device=device, progress=progress)
    if base.cells is None:
        return replace(dataset, residual_shift=base.shift)
    return replace(dataset, residual_input=make_store(base.cells, device), residual_input_rows=base.rows)


@dataclass
class ResidualCells:
    """Makes the prior's cells of the conditions of a prediction, and forgets them when later ones are asked for.

    Attributes
    ----------
    prior, targets
        Result of :func:`prior_and_targets`.
    conditions
        What is predicted, in this order.
    sizes
        Number of cells of each condition.
    table
        Perturbation embeddings that cover the conditions.
    seed
        Random seed for drawing cells.
    device
        Where quantiles are computed.
    """

    prior: CellPrior
    targets: Mapping[str, PriorTarget]
    conditions: Sequence[Condition]
    sizes: Mapping[Condition, int]
    table: EmbeddingTable
    seed: int
    device: torch.device
    _blocks: dict[int, sp.csr_matrix] = field(default_factory=dict)

    @property
    def control_means(self) -> dict[str, np.ndarray]:
        """Mean of the control cells of each context, ``[G]``."""
        return {context: target.mean for context, target in self.targets.items()}

    def of_conditions(self, first: int, stop: int) -> tuple[sp.csr_matrix, int]:
        """Cells of the conditions from ``first`` to before ``stop``: CSR float32 ``[rows, G]``, and the first row."""
        kept = {k: block for k, block in self._blocks.items() if first <= k < stop}
        missing = [k for k in range(first, stop) if k not in kept]
        if missing:
            base = self.prior.base_from(
                self.targets, [self.conditions[k] for k in missing], self.table,
                n_cells=self.sizes, seed=self.seed, device=self.device,
            )  # fmt: skip
            if len(missing) == len(self.conditions):
                return base.cells, 0  # type: ignore[return-value]  # all at once: nothing will be asked for again
            for k in missing:
                rows = base.rows[self.conditions[k]]  # type: ignore[index]
                kept[k] = base.cells[rows[0] : rows[-1] + 1]  # type: ignore[index]
        self._blocks = kept
        cells = sp.vstack([kept[k] for k in range(first, stop)], format="csr")
        return cells, sum(self.sizes[condition] for condition in self.conditions[:first])
