"""Minibatches of a prediction: the cells that each holds, and those that complete conditions together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from scvi_tahoe.data import CellSetRequest


@dataclass(frozen=True)
class Minibatch:
    """A minibatch, the rows of the prediction that its valid cells are, and its sets that stay as the prior."""

    request: CellSetRequest
    first_row: int
    stop_row: int
    keeps_residual_input_S: np.ndarray


def grouped(minibatches: Sequence[Minibatch], stops: np.ndarray, n_at_once: int) -> list[list[Minibatch]]:
    """Group ``n_at_once`` minibatches, and further ones until each group completes at least one condition."""
    groups: list[list[Minibatch]] = [[]]
    done = 0
    for one in minibatches:
        complete = 0 if not groups[-1] else int(np.searchsorted(stops, groups[-1][-1].stop_row, side="right"))
        if len(groups[-1]) >= n_at_once and complete > done:
            done = complete
            groups.append([])
        groups[-1].append(one)
    return groups


def valid_cells(cells_SNG: Tensor, valid_S: np.ndarray) -> Tensor:
    """Return the leading cells of each set, without asking the device how many they are."""
    n = cells_SNG.shape[1]
    cells = cells_SNG.flatten(0, 1)
    if (valid_S[:-1] == n).all():
        return cells[: int(valid_S.sum())]
    wanted = np.flatnonzero(np.arange(n) < valid_S[:, None])
    return cells[torch.from_numpy(wanted).to(cells.device, non_blocking=True)]
