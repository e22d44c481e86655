"""Regression on more conditions than one matrix can hold: blocks of conditions, and some that all are compared by.

Conditions are dealt out to blocks that hold a perturbation whole. Within a block the covariance is exact, between
blocks it is what a subset of conditions, the *inducing* ones, explain of it (the partially independent conditional of
Snelson and Ghahramani 2007, AISTATS, after Quiñonero-Candela and Rasmussen 2005, JMLR 6:1939). What a perturbation
shows in other contexts is thus used exactly, and kernels that are smooth over perturbations, contexts and tables nearly
so. Cost grows linearly with conditions. Conditions are left out in closed form here as well.

n conditions, m inducing conditions, b conditions of a block, Q components, K kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from scvi_tahoe.response._precision import JITTER, InducingPrecision, factor_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from scvi_tahoe.response._kernels import ConditionKernels, Conditions
    from scvi_tahoe.response._precision import Group

_BLOCK = 1000  # conditions of a block, or more where one perturbation has more, but not twice as many


def choose_inducing(conditions: Conditions, n: int, rng: np.random.Generator) -> np.ndarray:
    """Choose ``n`` random conditions, as many of each context as can be."""
    order = rng.permutation(len(conditions))
    rank = np.empty(len(order), dtype=np.int64)  # of a condition among those of its context
    for context in range(len(conditions.context_names)):
        mine = order[conditions.context[order] == context]
        rank[mine] = np.arange(len(mine))
    return np.sort(order[np.argsort(rank[order], kind="stable")[:n]])


def blocks_of(conditions: Conditions, size: int = _BLOCK) -> list[np.ndarray]:
    """Deal conditions out to blocks of about this size; those whose first component is the same stay together."""
    first = _first_components(conditions)[conditions.label]
    order = np.lexsort((conditions.context, conditions.label, first))
    starts = np.flatnonzero(np.append(True, first[order][1:] != first[order][:-1]))
    ends, found, start = np.append(starts[1:], len(order)), [], 0
    for end in ends.tolist():
        while end - start >= 2 * size:
            found.append(order[start : start + size])
            start += size
        if end - start >= size or end == len(order):
            found.append(order[start:end])
            start = end
    return [block for block in found if len(block)]


def _first_components(conditions: Conditions) -> np.ndarray:
    """Position, among the names of components, of the first one of each label."""
    names = {name: k for k, name in enumerate(dict.fromkeys(conditions.components))}
    position = np.array([names[name] for name in conditions.components], dtype=np.int64)
    counts = conditions.counts_LA.sorted_indices()
    return position[counts.indices[counts.indptr[:-1]]]


@dataclass(frozen=True)
class InducingConditions:
    """What a prediction needs to know of the training conditions.

    Attributes
    ----------
    conditions
        The inducing conditions.
    train
        All training conditions.
    groups
        Groups of components.
    blocks
        Training conditions of each block.
    factors_mm
        Cholesky factor of the kernels of inducing conditions, for each group.
    """

    conditions: Conditions
    train: Conditions
    kernels: ConditionKernels
    groups: Sequence[Group]
    blocks: Sequence[np.ndarray]
    factors_mm: Sequence[Tensor]
    device: torch.device

    @classmethod
    def of(
        cls,
        rows: np.ndarray,
        kernels: ConditionKernels,
        train: Conditions,
        groups: Sequence[Group],
        device: torch.device,
    ) -> InducingConditions:
        """Compare some training conditions with one another."""
        some = train.take(rows, kernels.parser)
        own = kernels.sums(some, some, [group.weights for group in groups], device)
        # relative to their size, as nothing else is added
        factors = [factor_of(matrix, JITTER * float(matrix.diagonal().mean()) * np.ones(len(rows))) for matrix in own]
        return cls(some, train, kernels, groups, blocks_of(train), factors, device)

    def precisions(self) -> Iterator[InducingPrecision]:
        """Yield the inverse covariance of each group."""
        n, width = len(self.train), max(map(len, self.blocks))
        for k in range(len(self.groups)):
            inverse = torch.zeros((n, width), dtype=torch.float64, device=self.device)
            known, whitened = self._nothing(), []
            further = torch.empty((len(known), n), dtype=torch.float64, device=self.device)
            for rows in self.blocks:
                ((v, of_block),) = self._of_block(rows, [k])
                inverse[rows, : len(rows)] = of_block
                further[:, rows] = v @ of_block
                known += further[:, rows] @ v.T
                whitened.append(v)
            further = torch.linalg.solve_triangular(torch.linalg.cholesky(known), further, upper=False)
            yield InducingPrecision(self.blocks, inverse, further, whitened)
            del inverse, further, whitened, known

    def _nothing(self) -> Tensor:
        """Return what inducing conditions know without data."""
        return torch.eye(len(self.conditions), dtype=torch.float64, device=self.device)

    def _of_block(self, rows: np.ndarray, groups: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Return whitened kernels ``[m, b]`` and the inverse covariance ``[b, b]`` of a block, for groups."""
        block = self.train.take(rows, self.kernels.parser)
        weights, found = [self.groups[k].weights for k in groups], []
        crosses = self.kernels.sums(self.conditions, block, weights, self.device)
        owns = self.kernels.sums(block, block, weights, self.device)
        for k, cross, own in zip(groups, crosses, owns, strict=True):
            v = torch.linalg.solve_triangular(self.factors_mm[k], cross, upper=False)
            factor = factor_of(own - v.T @ v, self.groups[k].weights[-1] + self.groups[k].noise[rows])
            found.append((v, torch.cholesky_inverse(factor)))
        return found

    @cached_property
    def _known_mm(self) -> list[Tensor]:
        """What inducing conditions know, for each group: the identity, and what each block adds to it."""
        every = list(range(len(self.groups)))
        known = [self._nothing() for _ in every]
        for rows in self.blocks:
            for total, (v, inverse) in zip(known, self._of_block(rows, every), strict=True):
                total += v @ inverse @ v.T
        return known

    def _asked(self, rows: Conditions) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield conditions that are asked for, and the block that each of them belongs to; empty for new ones."""
        block_of = {}
        for k, block in enumerate(self.blocks):
            names = np.array(self.train.labels, dtype=object)[np.unique(self.train.label[block])]
            block_of.update(dict.fromkeys((self._first(name) for name in names), k))
        mine = np.array([block_of.get(self._first(label), -1) for label in rows.perturbations.tolist()], dtype=int)
        for k in np.unique(mine).tolist():
            yield np.flatnonzero(mine == k), self.blocks[k] if k >= 0 else np.zeros(0, dtype=np.int64)

    def _first(self, label: str) -> str:
        return str(min(part.name for part in self.kernels.parser.components(label)))

    def _compared(
        self, rows: Conditions, asked: np.ndarray, block: np.ndarray
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield, for each group, whitened kernels ``[m, asked]`` and ``[m, b]`` and what they lack, ``[asked, b]``."""
        some, weights = rows.take(asked, self.kernels.parser), [group.weights for group in self.groups]
        with_inducing = self.kernels.sums(self.conditions, some, weights, self.device)
        train = self.train.take(block, self.kernels.parser)
        with_block = self.kernels.sums(some, train, weights, self.device)
        of_block = self.kernels.sums(self.conditions, train, weights, self.device)
        for factor, cross, own, others in zip(self.factors_mm, with_inducing, with_block, of_block, strict=True):
            v = torch.linalg.solve_triangular(factor, cross, upper=False)
            of_train = torch.linalg.solve_triangular(factor, others, upper=False)
            yield v, of_train, own - v.T @ of_train

    def predict(self, rows: Conditions, inducing_mQ: np.ndarray, coefficients_nQ: np.ndarray) -> np.ndarray:
        """Predict components of unit size of conditions, float64 ``[rows, Q]``."""
        result = np.empty((len(rows), inducing_mQ.shape[1]))
        known, coefficients = (torch.as_tensor(side, device=self.device) for side in (inducing_mQ, coefficients_nQ))
        for asked, block in self._asked(rows):
            for group, (v, _, apart) in zip(self.groups, self._compared(rows, asked, block), strict=True):
                s = slice(group.start, group.stop)
                found = v.T @ known[:, s] + apart @ coefficients[block, s]
                result[asked, s] = found.cpu().numpy()
        return result

    def explained(self, rows: Conditions, measured: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the variance of each group that the training conditions explain, ``[rows]``.

        ``measured`` has the training condition that each row is, whose nugget is known too, or -1.
        """
        result = np.empty((len(self.groups), len(rows)))
        for asked, block in self._asked(rows):
            inverses = self._of_block(block, list(range(len(self.groups)))) if len(block) else None
            own = np.flatnonzero(np.isin(measured[asked], block) & (measured[asked] >= 0))
            column = {row: k for k, row in enumerate(block.tolist())}
            mine = [column[row] for row in measured[asked][own].tolist()]
            for k, (v, of_train, apart) in enumerate(self._compared(rows, asked, block)):
                further = self._known_mm[k] @ v - v  # of the covariance with the others of all blocks
                explained = (v * further).sum(0)
                if inverses is not None:
                    apart[own, mine] += self.groups[k].weights[-1]
                    z = of_train @ inverses[k][1]
                    explained = explained + 2 * (v * (z @ apart.T)).sum(0) + ((apart @ inverses[k][1]) * apart).sum(1)
                    further = further + z @ apart.T
                factor = torch.linalg.cholesky(self._known_mm[k])
                explained = explained - torch.linalg.solve_triangular(factor, further, upper=False).square().sum(0)
                result[k, asked] = explained.cpu().numpy()
        yield from result
