"""What a context makes of responses: changes here, by ridge regression on what perturbations do elsewhere.

Perturbations move the same programmes in all contexts, and each context translates programmes to genes in its own way.
The translation is learned from the perturbations that were measured here and elsewhere, and applied to others. It is
regressed either as the change itself or as what it differs from the change elsewhere, whichever predicts left-out
perturbations better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.utils.extmath import randomized_svd

from scvi_tahoe.evaluate import RidgeFit

if TYPE_CHECKING:
    from scvi_tahoe.evaluate import SeenChanges

_COMPONENTS = 32
_FEWEST = 12  # perturbations that are measured here and elsewhere


@dataclass(frozen=True)
class Translation:
    """Ridge regression of changes in a context.

    Attributes
    ----------
    fit
        Maps scores ``[T, Q]`` to changes ``[T, G]``, or to their differences from changes elsewhere.
    of_differences
        Which of both.
    mean_G, basis_QG
        Mean of changes elsewhere, and their components.
    row_of
        Row of each perturbation that it was fitted to.
    """

    fit: RidgeFit
    of_differences: bool
    mean_G: np.ndarray
    basis_QG: np.ndarray
    row_of: dict[str, int]

    @classmethod
    def of(cls, seen: SeenChanges, context: str) -> Translation | None:
        """Fit a context; None if too few of its perturbations were measured elsewhere."""
        names = [name for name in np.unique(seen.perturbations).tolist() if len(seen.elsewhere(name, context))]
        here = [name for name in names if seen.row(name, context) is not None]
        if len(here) < _FEWEST:
            return None
        elsewhere = np.stack([_elsewhere(seen, name, context) for name in names])
        mean = elsewhere.mean(axis=0)
        _, _, basis = randomized_svd(elsewhere - mean, min(_COMPONENTS, len(names) - 1), random_state=0)
        row_of = {name: i for i, name in enumerate(here)}
        elsewhere = elsewhere[[name in row_of for name in names]]
        changes = seen.of_perturbations(context, here)
        scores = (elsewhere - mean) @ basis.T
        found = [RidgeFit.of(scores, changes), RidgeFit.of(scores, changes - elsewhere)]
        errors = [np.square(found[0].left_out_TG - changes).sum()]
        errors.append(np.square(found[1].left_out_TG + elsewhere - changes).sum())
        best = int(np.argmin(errors))
        return cls(found[best], best == 1, mean, basis, row_of)

    def change(self, seen: SeenChanges, perturbation: str, context: str, *, without_itself: bool) -> np.ndarray:
        """Predict a perturbation that was measured elsewhere, ``[G]``, without its own change here if that is asked."""
        elsewhere = _elsewhere(seen, perturbation, context)
        row = self.row_of.get(perturbation) if without_itself else None
        if row is None:
            found = self.fit.predict(((elsewhere - self.mean_G) @ self.basis_QG.T)[None])[0]
        else:
            found = self.fit.left_out_TG[row]
        return found + elsewhere if self.of_differences else found


def _elsewhere(seen: SeenChanges, perturbation: str, context: str) -> np.ndarray:
    """Mean change in other contexts, float64 ``[G]``."""
    return seen.changes[seen.elsewhere(perturbation, context)].mean(axis=0, dtype=np.float64)
