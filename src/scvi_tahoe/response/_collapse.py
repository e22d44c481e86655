"""Whether predicted changes of different perturbations are more alike than the observed ones of training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scvi_tahoe._constants import STREAMS
from scvi_tahoe._messages import warn
from scvi_tahoe.evaluate import EvaluationWarning, check_collapse, likeness

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from scvi_tahoe.data import CellStore, Condition, ConditionIndex, LabelParser, Output
    from scvi_tahoe.evaluate import Check

# a mean cosine needs no more than a sample of perturbations and cells, and predictions may have millions of cells
_MOST_CELLS, _MOST_CONTROLS, _MOST_PERTURBATIONS, _MOST_CONTEXTS = 128, 1024, 32, 4
# deltas of fewer observed cells are mostly noise, which makes them look more different than they are
_FEWEST_CELLS = 30


def observed_likeness(
    cells: CellStore, index: ConditionIndex, rows: np.ndarray, device: torch.device, *, parser: LabelParser, seed: int
) -> dict[str, dict[str, float]]:
    """Return how alike the observed deltas of different perturbations are, by context, as ``likeness`` has it.

    Doses of one perturbation are alike by nature; it counts once, with the mean over its doses. Looked at are the
    perturbed cells in ``rows``, of at most four contexts with two or more perturbations that have a condition of 30
    cells.
    """
    rng = np.random.default_rng((seed, STREAMS.CONDITION_MEANS))
    n_cells = np.bincount(index.condition_of_cell[rows], minlength=len(index.conditions))
    found: dict[str, dict[str, float]] = {}
    for context in rng.permutation(np.array(index.contexts)).tolist():
        controls = index.controls(context)
        doses: dict[str, list[int]] = {}
        for i, c in enumerate(index.conditions):
            if c.context == context and n_cells[i] >= _FEWEST_CELLS:
                doses.setdefault(parser.without_doses(c.perturbation), []).append(i)
        if len(doses) < 2 or not len(controls) or len(found) == _MOST_CONTEXTS:
            continue
        base = cells.mean(rng.permutation(controls)[:_MOST_CONTROLS], device)
        deltas, noise = [], []
        for name in rng.permutation(list(doses))[:_MOST_PERTURBATIONS]:
            own = [rng.permutation(rows[index.condition_of_cell[rows] == i])[:_MOST_CELLS] for i in doses[name]]
            blocks = [cells.dense(cells.fetch(r), device) for r in own]
            means = [block.mean(0).cpu().numpy().astype(np.float64) for block in blocks]
            deltas.append(np.mean(means, axis=0) - base)
            noise.append(sum(float(block.var(0).sum()) / len(block) for block in blocks) / len(blocks) ** 2)
        found[context] = likeness(np.stack(deltas), np.array(noise))._asdict()
    return found


@dataclass
class CollapseAlarm:
    """Warns where predicted deltas of different perturbations are more alike than the observed ones of training.

    The rule is that of :func:`~scvi_tahoe.evaluate.check_collapse`. A perturbation counts once, with the mean over its
    doses, as in :func:`observed_likeness`, which makes ``observed``; models of version 0.1 have only the cosines.
    Contexts that are not in there are compared with the mean of the others. ``control_means`` are means of all control
    cells of each context, ``[G]``, where predictions start from a prior's cells.
    """

    cells: CellStore
    device: torch.device
    observed: Mapping[str, Mapping[str, float]]
    parser: LabelParser
    output: Output
    control_means: Mapping[str, np.ndarray] | None = None
    _deltas: dict[str, dict[str, list[np.ndarray]]] = field(default_factory=dict)  # by context and perturbation

    def see(self, predicted: np.ndarray, conditions: Sequence[Condition], controls: Sequence[np.ndarray]) -> None:
        """Look at predicted cells of some conditions, one after the other, and the control rows they started from."""
        if not self.observed or self.output == "embedding":
            return
        stops = np.cumsum([len(rows) for rows in controls])
        for condition, rows, stop in zip(conditions, controls, stops, strict=True):
            known = self._deltas.setdefault(condition.context, {})
            name = self.parser.without_doses(condition.perturbation)
            if name in known or len(known) < _MOST_PERTURBATIONS:
                start = rows[:_MOST_CELLS]
                first = stop - len(rows)
                mean = predicted[first : first + len(start)].mean(axis=0, dtype=np.float64)
                base = self.cells.mean(start, self.device)
                if self.output == "delta":
                    mean += base
                delta = mean - (base if self.control_means is None else self.control_means[condition.context])
                known.setdefault(name, []).append(delta)

    def ring(self) -> None:
        """Warn of what was seen, once."""
        found = {context: self._check(context, deltas) for context, deltas in self._deltas.items()}
        if wrong := [context for context, check in found.items() if check.status == "warning"]:
            others = f" (and {len(wrong) - 1} more contexts)" if len(wrong) > 1 else ""
            cause = "" if self.output == "prior" else " Too few training steps have this effect, too."
            warn(f"{found[wrong[0]].name} in {wrong[0]!r}{others}: {found[wrong[0]].message}{cause}", EvaluationWarning)

    def _check(self, context: str, deltas: Mapping[str, Sequence[np.ndarray]]) -> Check:
        """Check one context."""
        known = [self.observed[context]] if context in self.observed else list(self.observed.values())
        cosine = float(np.mean([of["cosine"] for of in known]))
        return check_collapse(
            np.stack([np.mean(of_doses, axis=0) for of_doses in deltas.values()]),
            cosine,
            largest=max(of.get("largest", cosine) for of in known),
            noise=float(np.mean([of.get("noise", 0.0) for of in known])),
            of="expected from the training cells",
        )
