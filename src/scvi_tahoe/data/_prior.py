"""What the network's change is added to: nothing more than controls, a change known from elsewhere, or moved cells.

A perturbation that was seen in other contexts is mostly predicted by what it did there. So the prediction starts from
that, and the network learns what is different here. While training, the prior of a condition is made from *other*
conditions only, exactly as it is for a condition that nobody measured.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp

from scvi_tahoe.data._conditions import Condition

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi_tahoe.data._conditions import ConditionIndex
    from scvi_tahoe.data._embedding_table import EmbeddingTable

__all__ = ["PRIORS", "CellPrior", "Prior", "PriorBase"]

Prior = Literal["none", "mean", "transfer", "cells"]
PRIORS: tuple[Prior, ...] = ("none", "mean", "transfer", "cells")

_QUANTILES = 512
_CHUNK = 512  # genes made dense at once


@dataclass(frozen=True)
class PriorBase:
    """The prior of some conditions, ready to be handed to the network.

    Attributes
    ----------
    cells
        CSR float32 ``[rows, G]`` of a prior of cells; None otherwise.
    rows
        Which rows each condition draws from; None otherwise.
    shift
        float32 ``[conditions, G]`` of a prior of means; None otherwise.
    sources
        For each condition, in words, what its prior was made from.
    """

    cells: sp.csr_matrix | None
    rows: dict[Condition, np.ndarray] | None
    shift: np.ndarray | None
    sources: dict[Condition, str]


@dataclass(frozen=True)
class CellPrior:
    """What a prior keeps of the training data, saved with the model.

    Attributes
    ----------
    kind
        ``'mean'``, ``'transfer'`` or ``'cells'``.
    conditions
        Training conditions.
    deltas
        float32 ``[conditions, G]``: mean of the perturbed minus mean of the control cells of the context.
    n_cells
        Cells behind each.
    contexts
        Contexts with controls.
    control_quantiles
        float32 ``[contexts, Q, G]``: expression of the controls at evenly spaced quantiles.
    donors
        CSR float32 ``[rows, G]``: perturbed training cells, at most ``max_donors`` a condition; empty unless the kind
        is ``'cells'``.
    donor_condition
        Condition of each donor.
    """

    kind: Prior
    conditions: tuple[Condition, ...]
    deltas: np.ndarray
    n_cells: np.ndarray
    contexts: tuple[str, ...]
    control_quantiles: np.ndarray
    donors: sp.csr_matrix
    donor_condition: np.ndarray

    @classmethod
    def from_cells(
        cls,
        kind: Prior,
        expression: sp.csr_matrix | np.ndarray,
        index: ConditionIndex,
        rows: np.ndarray,
        *,
        max_donors: int = 1024,
        seed: int = 0,
    ) -> CellPrior:
        """Keep of the training cells what the prior needs.

        Parameters
        ----------
        kind
            Which prior.
        expression
            Cells x genes of the whole screen.
        index
            Its conditions.
        rows
            Training cells; no other perturbed cell is looked at.
        max_donors
            Most cells kept of a condition.
        seed
            Which, where there are more.
        """
        rng = np.random.default_rng(seed)
        contexts = tuple(c for c in index.contexts if len(index.controls(c)))
        controls = {c: _dense(expression[index.controls(c)]) for c in contexts}
        means = {c: block.mean(0) for c, block in controls.items()}
        present = np.unique(index.condition_of_cell[rows])
        deltas, n_cells, donors, owner = [], [], [], []
        for position, condition in enumerate(present):
            cells = rows[index.condition_of_cell[rows] == condition]
            block = expression[cells]
            deltas.append(np.asarray(block.mean(0)).ravel() - means[index.conditions[condition].context])
            n_cells.append(len(cells))
            if kind == "cells":
                chosen = rng.permutation(len(cells))[:max_donors]
                donors.append(sp.csr_matrix(block[chosen], dtype=np.float32))
                owner.append(np.full(len(chosen), position))
        return cls(
            kind=kind,
            conditions=tuple(index.conditions[c] for c in present),
            deltas=np.asarray(deltas, dtype=np.float32),
            n_cells=np.asarray(n_cells),
            contexts=contexts,
            control_quantiles=np.stack([_quantiles(controls[c]) for c in contexts]),
            donors=sp.vstack(donors, format="csr")
            if donors
            else sp.csr_matrix((0, expression.shape[1]), dtype=np.float32),
            donor_condition=np.concatenate(owner) if owner else np.empty(0, dtype=np.int64),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values and arrays, for saving."""
        donors = self.donors
        return {
            **{k: getattr(self, k) for k in ("kind", "deltas", "n_cells", "contexts", "control_quantiles")},
            "conditions": [tuple(c) for c in self.conditions],
            "donor_condition": self.donor_condition,
            "donors": {"data": donors.data, "indices": donors.indices, "indptr": donors.indptr, "shape": donors.shape},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CellPrior:
        """What :meth:`to_dict` gave."""
        donors = values["donors"]
        matrix = sp.csr_matrix((donors["data"], donors["indices"], donors["indptr"]), shape=donors["shape"])
        conditions = tuple(Condition(*c) for c in values["conditions"])
        return cls(**{**values, "conditions": conditions, "contexts": tuple(values["contexts"]), "donors": matrix})

    def base(
        self,
        conditions: Sequence[Condition],
        controls: dict[str, np.ndarray],
        table: EmbeddingTable,
        *,
        max_cells: int = 1024,
        seed: int = 0,
    ) -> PriorBase:
        """The prior of conditions, each made from other conditions only.

        Parameters
        ----------
        conditions
            To be predicted or trained on.
        controls
            Control cells of each context among them, dense.
        table
            Perturbation embeddings, by which the nearest perturbations are found where no other context has the
            perturbation itself.
        max_cells
            Most cells of a condition.
        seed
            Of the draws.
        """
        weights = {c: self._sources(c, controls, table) for c in conditions}
        words = {c: how for c, (_, how) in weights.items()}
        if self.kind != "cells":
            shift = np.stack([w @ self.deltas for w, _ in weights.values()]).astype(np.float32)
            return PriorBase(None, None, shift, words)
        target_quantiles = {c: _quantiles(block) for c, block in controls.items()}
        blocks, rows, n = [], {}, 0
        for condition, (weight, _) in weights.items():
            # a generator for each condition, so that its cells do not depend on what else is asked
            rng = np.random.default_rng((seed, 3, *(zlib.crc32(label.encode()) for label in condition)))
            moved = self._moved_cells(weight, target_quantiles[condition.context], max_cells, rng)
            blocks.append(moved)
            rows[condition] = np.arange(n, n + moved.shape[0])
            n += moved.shape[0]
        return PriorBase(sp.vstack(blocks, format="csr"), rows, None, words)

    def _sources(
        self, condition: Condition, controls: dict[str, np.ndarray], table: EmbeddingTable
    ) -> tuple[np.ndarray, str]:
        """Weight of each training condition, and in words what was taken."""
        here = np.array([c.context == condition.context for c in self.conditions])
        same = np.array([c.perturbation == condition.perturbation for c in self.conditions])
        if self.kind == "mean":
            return _normalised(
                (here if (here & ~same).any() else ~same) & ~same, self.n_cells > 0
            ), "mean of the others"
        elsewhere = same & ~here
        if elsewhere.any():
            likeness = self._context_likeness(controls[condition.context])
            by_context = np.array([likeness[c.context] for c in self.conditions])
            return _normalised(elsewhere, by_context), "the same perturbation in other contexts"
        others = ~same
        if table.one_hot or condition.perturbation not in table.names:
            chosen = here & others if (here & others).any() else others
            return _normalised(chosen, np.ones(len(chosen))), "the mean of other perturbations"
        near = _nearest(condition.perturbation, [c.perturbation for c in self.conditions], table, others)
        return near, "the nearest perturbations by embedding"

    def _context_likeness(self, controls: np.ndarray) -> dict[str, float]:
        """How alike the controls of each training context are to these: inverse squared distance of the means."""
        mean = controls.mean(0)
        distance = {
            c: float(np.square(q.mean(0) - mean).mean())
            for c, q in zip(self.contexts, self.control_quantiles, strict=True)
        }
        floor = 1e-3 + 0.1 * float(np.mean(list(distance.values())))
        return {c: 1.0 / (floor + d) for c, d in distance.items()}

    def _moved_cells(
        self, weight: np.ndarray, target_QG: np.ndarray, max_cells: int, rng: np.random.Generator
    ) -> sp.csr_matrix:
        """Donors of the weighted conditions, each moved through the quantiles of the two control populations."""
        blocks = []
        for position in np.flatnonzero(weight):
            donors = np.flatnonzero(self.donor_condition == position)
            n = min(len(donors), max(1, round(max_cells * float(weight[position]))))
            cells = self.donors[rng.permutation(donors)[:n]]
            source = self.control_quantiles[self.contexts.index(self.conditions[position].context)]
            blocks.append(move_through_quantiles(cells, source, target_QG, rng))
        return sp.vstack(blocks, format="csr")


def move_through_quantiles(
    cells: sp.csr_matrix, source_QG: np.ndarray, target_QG: np.ndarray, rng: np.random.Generator
) -> sp.csr_matrix:
    """Cells as they would look in another population: each value goes to the same quantile of its gene there.

    A value that many cells share (zero above all) occupies an interval of quantiles; a point of it is drawn. The
    spread and the zeros of real cells are kept, which adding a mean change loses.

    Parameters
    ----------
    cells
        CSR ``[C, G]``.
    source_QG, target_QG
        Sorted values of each gene in the population that the cells come from, and in the one they go to, at evenly
        spaced quantiles.
    rng
        For the draws.
    """
    blocks = []
    n_source, n_target = len(source_QG), len(target_QG)
    for start in range(0, cells.shape[1], _CHUNK):
        columns = slice(start, start + _CHUNK)
        block = _dense(cells[:, columns])
        draw = rng.random(block.shape)
        moved = np.empty_like(block)
        for g, (source, target) in enumerate(zip(source_QG[:, columns].T, target_QG[:, columns].T, strict=True)):
            low, high = (np.searchsorted(source, block[:, g], side) for side in ("left", "right"))
            place = (low + (high - low) * draw[:, g]) / n_source * (n_target - 1)
            moved[:, g] = np.interp(place, np.arange(n_target), target)
        blocks.append(sp.csr_matrix(moved))
    return sp.hstack(blocks, format="csr")


def _dense(block: Any) -> np.ndarray:
    return np.asarray(block.toarray() if sp.issparse(block) else block, dtype=np.float32)


def _quantiles(cells: np.ndarray) -> np.ndarray:
    """Values of each gene at 512 evenly spaced quantiles; values of cells, never between two."""
    ordered = np.sort(cells, axis=0)
    return ordered[np.round(np.linspace(0, len(ordered) - 1, _QUANTILES)).astype(np.int64)].astype(np.float32)


def _normalised(chosen: np.ndarray, weight: np.ndarray) -> np.ndarray:
    weighted = np.where(chosen, weight, 0).astype(np.float64)
    return weighted / max(weighted.sum(), 1e-12)


def _nearest(
    perturbation: str, known: Sequence[str], table: EmbeddingTable, allowed: np.ndarray, n_nearest: int = 5
) -> np.ndarray:
    """Softmax of the cosine over the nearest perturbations, spread evenly over their conditions."""
    matrix = table.matrix / np.maximum(np.linalg.norm(table.matrix, axis=1, keepdims=True), 1e-12)
    target = matrix[table.position(perturbation)]
    names = sorted({name for name, ok in zip(known, allowed, strict=True) if ok and name in table.names})
    cosine = np.array([matrix[table.position(n)] @ target for n in names])
    best = np.argsort(-cosine)[:n_nearest]
    share = np.exp(10 * (cosine[best] - cosine[best].max()))
    by_name = {names[i]: s for i, s in zip(best, share, strict=True)}
    weight = np.array([by_name.get(n, 0.0) / known.count(n) for n in known])
    return _normalised(allowed, weight)
