"""What a baseline may look at: training cells, the controls of the scored contexts, and how many cells are asked for.

Shapes: **C** cells, **G** genes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe.evaluate._cells import CellTable, dense

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from scvi_tahoe.evaluate._cells import Matrix

__all__ = ["BaselineTask", "assemble", "baseline_task"]


@dataclass(frozen=True)
class BaselineTask:
    """Everything a baseline knows; the observed cells of held-out conditions are not part of it.

    Attributes
    ----------
    train
        Training cells over the same genes, or ``None``.
    controls
        Real control cells of each context to predict, ``[C, G]``.
    n_cells
        Cells to predict for each perturbation of each context.
    control
        Label of control cells.
    genes
        Gene names, ``[G]``.
    embeddings
        Vector of each perturbation, for the baselines that use them.
    """

    train: CellTable | None
    controls: Mapping[str, Matrix]
    n_cells: Mapping[str, Mapping[str, int]]
    control: str
    genes: NDArray[np.str_]
    embeddings: Mapping[str, NDArray[np.float64]] | None = None
    _deltas: dict[tuple[str, str], NDArray[np.float64]] = field(default_factory=dict, repr=False)

    @property
    def training(self) -> CellTable:
        """Training cells.

        Raises
        ------
        ValueError
            If there are none.
        """
        if self.train is None:
            msg = (
                "This baseline is computed from training data: pass train=<AnnData the model was trained on>, "
                'or choose baseline="control" or baseline=None.'
            )
            raise ValueError(msg)
        return self.train

    @cached_property
    def seen(self) -> dict[str, tuple[str, ...]]:
        """Training perturbations of each training context."""
        train = self.training
        return {context: train.perturbations(context, control=self.control) for context in train.contexts}

    def train_controls(self, context: str) -> Matrix:
        """Control cells of a context in the training data, else the real ones that the prediction starts from."""
        train = self.training
        if (context, self.control) in train.rows:
            return train.block(context, self.control)
        if context in self.controls:
            return self.controls[context]
        msg = f"The training data have no control cells ({self.control!r}) in context {context!r}."
        raise ValueError(msg)

    def delta(self, context: str, perturbation: str) -> NDArray[np.float64]:
        """Mean of the training cells of a condition minus the mean of the controls of its context, ``[G]``."""
        key = (context, perturbation)
        if key not in self._deltas:
            control = (context, self.control)
            if control not in self._deltas:
                self._deltas[control] = column_mean(self.train_controls(context))
            self._deltas[key] = column_mean(self.training.block(*key)) - self._deltas[control]
        return self._deltas[key]


def baseline_task(
    held_out: CellTable,
    train: CellTable | None,
    *,
    control: str,
    embeddings: Mapping[str, NDArray[np.float64]] | None = None,
) -> BaselineTask:
    """Take from the held-out cells their controls and counts, and nothing else.

    Parameters
    ----------
    held_out
        Cells to be scored against, with the controls of each context.
    train
        Training cells over the same genes.
    control
        Label of control cells.
    embeddings
        Vector of each perturbation.
    """
    return BaselineTask(
        train=train,
        controls={context: held_out.block(context, control) for context in held_out.contexts},
        n_cells={
            context: {p: len(held_out.rows[context, p]) for p in held_out.perturbations(context, control=control)}
            for context in held_out.contexts
        },
        control=control,
        genes=held_out.genes,
        embeddings=embeddings,
    )


def assemble(task: BaselineTask, predict: Callable[[str, str, int], Matrix]) -> CellTable:
    """Stack what ``predict(context, perturbation, n_cells)`` returns for every condition of the task, sorted."""
    n_cells = sum(n for wanted in task.n_cells.values() for n in wanted.values())
    # filled in place: the parts must not exist beside the whole
    expression = np.empty((n_cells, len(task.genes)), dtype=np.float32)
    perturbations: list[str] = []
    contexts: list[str] = []
    for context, wanted in task.n_cells.items():
        for perturbation, n in wanted.items():
            start = len(perturbations)
            expression[start : start + n] = dense(predict(context, perturbation, n))
            perturbations += [perturbation] * n
            contexts += [context] * n
    names = np.array([f"predicted_{i}" for i in range(n_cells)])
    return CellTable(expression, np.array(perturbations), np.array(contexts), task.genes, names)


def column_mean(matrix: Matrix) -> NDArray[np.float64]:
    """Mean over cells in float64, ``[G]``."""
    return np.asarray(matrix.mean(axis=0, dtype=np.float64)).ravel()
