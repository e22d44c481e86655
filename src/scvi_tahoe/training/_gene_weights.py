"""What the objective compares each condition with: mean control cells, and how strongly each gene responds.

Shapes: **X** features of a cell (genes, or the width of a cell embedding).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from scvi_tahoe._constants import STREAMS

if TYPE_CHECKING:
    from scvi_tahoe.data import AssignedSplit, CellStore

#: cells of a condition that its t scores are computed from, at most, and control cells of a context
_MOST_CELLS, _MOST_CONTROLS = 512, 2048


@dataclass(frozen=True)
class Moments:
    """Number, mean and variance of some cells, ``[X]`` each."""

    n: int
    mean: np.ndarray
    variance: np.ndarray

    @classmethod
    def of(cls, cells: CellStore, rows: np.ndarray, device: torch.device) -> Moments:
        """Of rows of a store."""
        block = cells.dense(cells.fetch(rows), device)
        variance, mean = torch.var_mean(block, dim=0, correction=1 if len(rows) > 1 else 0)
        return cls(len(rows), mean.cpu().numpy(), variance.cpu().numpy())


def de_weights(perturbed: Moments, control: Moments) -> np.ndarray:
    r"""Weight of each gene by how differentially expressed it is, ``[X]`` float32, summing to 1.

    .. math:: t = \frac{|\bar y - \bar c|}{\sqrt{s_y^2 / n_y + s_c^2 / n_c}}, \qquad
              w \propto \left(\frac{t - \min t}{\max t - \min t}\right)^2

    The weighting of Mejia et al. 2025 (arXiv 2506.22641): t scores, scaled to 0-1 over genes, squared, divided by
    their sum. There a perturbation is compared with all others; here with the control cells of its context, as in the
    differential expression that predictions are scored by. Where no gene stands out, all weigh the same.

    Parameters
    ----------
    perturbed, control
        Of the cells of a condition, and of the control cells of its context.
    """
    # a single cell has no variance of its own
    variance = perturbed.variance if perturbed.n > 1 else control.variance
    error = np.sqrt(variance / perturbed.n + control.variance / control.n)
    difference = np.abs(perturbed.mean - control.mean)
    t = np.divide(difference, error, out=np.zeros(len(error)), where=error > 0)
    spread = t.max() - t.min()
    scaled = ((t - t.min()) / spread) ** 2 if spread > 0 else np.ones(len(t))
    return (scaled / scaled.sum()).astype(np.float32)


def condition_moments(
    cells: CellStore, split: AssignedSplit, *, device: torch.device, seed: int
) -> tuple[list[Moments | None], dict[str, Moments]]:
    """Moments of each condition, and of the control cells of each context.

    A condition is described by its training cells. One without any takes no part in training, and is described by its
    validation cells, so that the loss of validation is the same function; test cells are never looked at.

    Parameters
    ----------
    cells
        Where the cells are read.
    split
        Which cells train.
    device
        Where the moments are computed.
    seed
        Which cells, where there are more than 512 of a condition or 2,048 controls of a context.

    Returns
    -------
    In the order of ``split.index.conditions``, None for conditions of test cells only; and by context.
    """
    index, rng = split.index, np.random.default_rng((seed, STREAMS.GENE_WEIGHTS))

    def moments(rows: np.ndarray, most: int) -> Moments:
        chosen = rows if len(rows) <= most else np.sort(rng.choice(rows, most, replace=False))
        return Moments.of(cells, chosen, device)

    controls = {context: moments(index.controls(context), _MOST_CONTROLS) for context in index.contexts}
    rows_of: dict[int, np.ndarray] = {}
    for rows in (split.validation, split.train):
        condition = index.condition_of_cell[rows]
        order = np.argsort(condition, kind="stable")
        present, starts = np.unique(condition[order], return_index=True)
        rows_of |= dict(zip(present.tolist(), np.split(rows[order], starts[1:]), strict=True))
    conditions = [moments(rows_of[c], _MOST_CELLS) if c in rows_of else None for c in range(len(index.conditions))]
    return conditions, controls
