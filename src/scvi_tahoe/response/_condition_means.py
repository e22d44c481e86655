"""Mean changes of conditions: of predicted cells against the controls they started from, and of observed cells.

From these comes the alarm on predictions that are all alike.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from scvi import settings

from scvi_tahoe._constants import STREAMS
from scvi_tahoe.evaluate import EvaluationWarning, check_collapse, mean_cosine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from scvi_tahoe.data import CellStore, Condition, ConditionIndex, LabelParser, Output

# a mean cosine needs no more than a sample of perturbations and cells, and predictions may have millions of cells
_MOST_CELLS, _MOST_CONTROLS, _MOST_PERTURBATIONS, _MOST_CONTEXTS = 128, 1024, 32, 4
# deltas of fewer observed cells are mostly noise, which makes them look more different than they are
_FEWEST_CELLS = 30


def means_by_code(cells_CG: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Mean of the cells of each code from 0 on, ``[K, G]``; every code has cells."""
    return np.stack([cells_CG[codes == k].mean(axis=0, dtype=np.float64) for k in range(codes.max() + 1)])


def observed_cosines(
    cells: CellStore, index: ConditionIndex, rows: np.ndarray, device: torch.device, *, parser: LabelParser, seed: int
) -> dict[str, float]:
    """How alike the observed deltas of different perturbations are: their mean cosine in each context.

    Doses of one perturbation are alike by nature; it counts once, with the mean over its doses.

    Parameters
    ----------
    cells
        Expression of the screen.
    index
        Its conditions.
    rows
        Perturbed cells that may be looked at.
    device
        Where rows become dense.
    parser
        Parser of the labels of conditions.
    seed
        Random seed for sampling conditions and cells.

    Returns
    -------
    Contexts with two or more perturbations that have a condition of 30 cells; at most four of them.
    """
    rng = np.random.default_rng((seed, STREAMS.CONDITION_MEANS))
    n_cells = np.bincount(index.condition_of_cell[rows], minlength=len(index.conditions))
    cosines: dict[str, float] = {}
    for context in rng.permutation(np.array(index.contexts)).tolist():
        controls = index.controls(context)
        doses: dict[str, list[int]] = {}
        for i, c in enumerate(index.conditions):
            if c.context == context and n_cells[i] >= _FEWEST_CELLS:
                doses.setdefault(parser.without_doses(c.perturbation), []).append(i)
        if len(doses) < 2 or not len(controls) or len(cosines) == _MOST_CONTEXTS:
            continue
        base = cells.mean(rng.permutation(controls)[:_MOST_CONTROLS], device)
        deltas = []
        for name in rng.permutation(list(doses))[:_MOST_PERTURBATIONS]:
            own = [rng.permutation(rows[index.condition_of_cell[rows] == i])[:_MOST_CELLS] for i in doses[name]]
            deltas.append(np.mean([cells.mean(r, device) for r in own], axis=0) - base)
        cosines[context] = mean_cosine(np.stack(deltas))
    return cosines


class CollapseAlarm:
    """Warns where predicted deltas of different perturbations are more alike than the observed ones of training.

    A perturbation counts once, with the mean over its doses, as in :func:`observed_cosines`.

    Parameters
    ----------
    cells
        Expression, from which control cells are read.
    device
        Where rows become dense.
    observed
        Result of :func:`observed_cosines`; other contexts are compared with the mean of these.
    parser
        Parser of the labels of conditions.
    output
        What the prediction holds.
    control_means
        Mean of all control cells of each context, ``[G]``, where predictions start from a prior's cells; else None.
    """

    def __init__(
        self,
        cells: CellStore,
        device: torch.device,
        observed: Mapping[str, float],
        *,
        parser: LabelParser,
        output: Output,
        control_means: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._cells, self._device, self._parser, self._output = cells, device, parser, output
        self._control_means = control_means
        self._observed = {} if output == "embedding" else observed
        self._deltas: dict[str, dict[str, list[np.ndarray]]] = {}  # by context and perturbation, one a dose

    def see(self, predicted: np.ndarray, conditions: Sequence[Condition], controls: Sequence[np.ndarray]) -> None:
        """Look at some conditions.

        Parameters
        ----------
        predicted
            Predicted cells of the conditions, one condition after the other.
        conditions
            What was predicted.
        controls
            Rows of the control cells that each condition started from.
        """
        if not self._observed:
            return
        stops = np.cumsum([len(rows) for rows in controls])
        for condition, rows, stop in zip(conditions, controls, stops, strict=True):
            known = self._deltas.setdefault(condition.context, {})
            name = self._parser.without_doses(condition.perturbation)
            if name in known or len(known) < _MOST_PERTURBATIONS:
                start = rows[:_MOST_CELLS]
                first = stop - len(rows)
                mean = predicted[first : first + len(start)].mean(axis=0, dtype=np.float64)
                base = self._cells.mean(start, self._device)
                if self._output == "delta":
                    mean += base
                delta = mean - (base if self._control_means is None else self._control_means[condition.context])
                known.setdefault(name, []).append(delta)

    def ring(self) -> None:
        """Warn of what was seen."""
        for context, deltas in self._deltas.items():
            cosine = self._observed.get(context, float(np.mean(list(self._observed.values()))))
            means = np.stack([np.mean(of_doses, axis=0) for of_doses in deltas.values()])
            check = check_collapse(means, cosine, of="observed in training")
            if check.status == "warning":
                warnings.warn(
                    f"{check.name} in {context!r}: {check.message} Too few training steps have this effect, too.",
                    EvaluationWarning,
                    stacklevel=settings.warnings_stacklevel,
                )


def move_to_mean(cells_CG: np.ndarray, mean_G: np.ndarray, wanted_G: np.ndarray) -> None:
    """Multiply each gene in place, so that its mean becomes the wanted one; genes that no cell expresses stay."""
    cells_CG *= np.divide(wanted_G, mean_G, out=np.ones_like(wanted_G), where=mean_G > 0).astype(cells_CG.dtype)
