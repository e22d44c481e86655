"""Inverse of the covariance of conditions, and conditions that are left out: one matrix, or blocks of a larger one.

n conditions, m inducing conditions, b conditions of a block, q components.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

JITTER = 1e-6
_SMALL = 256  # conditions left out together up to which their matrix is inverted as it is
_PRODUCTS = 2**24  # values of such matrices that are made at once


@dataclass(frozen=True)
class Group:
    """Components that share weights.

    Attributes
    ----------
    start, stop
        Components from ``start`` to before ``stop``.
    weights
        Variance of each kernel, and last of the nugget (what is a condition's own), float64 ``[K + 1]``, for
        components of unit size.
    noise
        Sampling variance of each condition in these units, float64 ``[n]``.
    """

    start: int
    stop: int
    weights: np.ndarray
    noise: np.ndarray


def factor_of(covariance: Tensor, diagonal: np.ndarray | Tensor) -> Tensor:
    """Cholesky factor of a covariance, to whose diagonal noise is added in place."""
    covariance.diagonal().add_(torch.as_tensor(diagonal + JITTER, device=covariance.device))
    return torch.linalg.cholesky(covariance)


@dataclass(frozen=True)
class DensePrecision:
    """Inverse of the covariance of all conditions, ``[n, n]``."""

    matrix: Tensor

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.matrix.device

    def solve(self, targets: Tensor) -> Tensor:
        """Multiply the inverse with targets, ``[n, m]``."""
        return self.matrix @ targets

    def left_out(self, blocks: np.ndarray, solved: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Residuals ``[blocks, k, m]`` and variances ``[blocks, k]`` of rows ``[blocks, k]`` that are left out."""
        rows = torch.as_tensor(blocks, device=solved.device)
        inner = torch.linalg.inv(self.matrix[rows[:, :, None], rows[:, None, :]])
        return (inner @ solved[rows]).cpu().numpy(), inner.diagonal(dim1=1, dim2=2).cpu().numpy()


@dataclass(frozen=True)
class InducingPrecision:
    """Inverse of the approximated covariance of one group of components.

    It is the inverse of its blocks less ``U' U``.

    Attributes
    ----------
    blocks
        Conditions of each block.
    inverse_nb
        Row of each condition in the inverse of its block, padded with zeros.
    further_mn
        ``U``.
    whitened_mb
        Kernels of inducing conditions and of those of each block, in units in which inducing ones are independent.
    """

    blocks: Sequence[np.ndarray]
    inverse_nb: Tensor
    further_mn: Tensor
    whitened_mb: Sequence[Tensor]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.inverse_nb.device

    @cached_property
    def _place(self) -> tuple[Tensor, Tensor]:
        """Block of each condition, and its position there."""
        n, device = len(self.inverse_nb), self.inverse_nb.device
        block, local = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
        for k, rows in enumerate(self.blocks):
            block[rows], local[rows] = k, np.arange(len(rows))
        return torch.as_tensor(block, device=device), torch.as_tensor(local, device=device)

    def solve(self, targets: Tensor) -> Tensor:
        """Multiply the inverse with targets, ``[n, q]``."""
        result = torch.empty_like(targets)
        for rows in self.blocks:
            result[rows] = self.inverse_nb[rows, : len(rows)] @ targets[rows]
        return result - self.further_mn.T @ (self.further_mn @ targets)

    def of_inducing(self, solved: Tensor) -> Tensor:
        """Multiply the kernels of inducing conditions with what :meth:`solve` returns, ``[m, q]``."""
        return sum(v @ solved[rows] for v, rows in zip(self.whitened_mb, self.blocks, strict=True))  # type: ignore[return-value]

    def left_out(self, blocks: np.ndarray, solved: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Residuals ``[groups, k, q]`` and variances ``[groups, k]`` of rows ``[groups, k]`` that are left out."""
        n, k = blocks.shape
        if k > _SMALL:
            found = [self._many_left_out(rows, solved) for rows in blocks]
            return np.stack([r for r, _ in found]), np.stack([v for _, v in found])
        residuals, variances = [], []
        at_once = max(1, _PRODUCTS // (k * max(k, len(self.further_mn))))
        for start in range(0, n, at_once):
            rows = torch.as_tensor(blocks[start : start + at_once], device=solved.device)
            block, local = (side[rows] for side in self._place)
            own = self.inverse_nb[rows[:, :, None], local[:, None, :]] * (block[:, :, None] == block[:, None, :])
            further = self.further_mn[:, rows.flatten()].reshape(-1, *rows.shape).transpose(0, 1)
            inner = torch.linalg.inv(own - further.transpose(1, 2) @ further)
            residuals.append((inner @ solved[rows]).cpu().numpy())
            variances.append(inner.diagonal(dim1=1, dim2=2).cpu().numpy())
        return np.concatenate(residuals), np.concatenate(variances)

    def _many_left_out(self, rows: np.ndarray, solved: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Leave out many conditions together, by the lemma of Woodbury: what inducing conditions know without them."""
        block = self._place[0].cpu().numpy()
        parts = [rows[block[rows] == k] for k in np.unique(block[rows])]
        known = torch.eye(len(self.further_mn), dtype=torch.float64, device=solved.device)
        of_parts = []
        for part in parts:
            local = self._place[1][part]
            inverse = torch.linalg.inv(self.inverse_nb[part][:, local])
            further = self.further_mn[:, part]
            of_parts.append((inverse, further))
            known -= further @ inverse @ further.T
        factor = torch.linalg.cholesky(known)
        total = sum(f @ (i @ solved[p]) for p, (i, f) in zip(parts, of_parts, strict=True))
        carried = torch.cholesky_solve(total, factor)
        residual = np.empty((len(rows), solved.shape[1]))
        variance, position = np.empty(len(rows)), {row: k for k, row in enumerate(rows.tolist())}
        for part, (inverse, further) in zip(parts, of_parts, strict=True):
            mine = [position[row] for row in part.tolist()]
            residual[mine] = (inverse @ (solved[part] + further.T @ carried)).cpu().numpy()
            spread = torch.linalg.solve_triangular(factor, further @ inverse, upper=False)
            variance[mine] = (inverse.diagonal() + spread.square().sum(0)).cpu().numpy()
        return residual, variance


def same_size(blocks: Sequence[tuple[np.ndarray, np.ndarray]]) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Blocks of one size together, ``[blocks, size]``, so that they are inverted at once."""
    sizes: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for block in blocks:
        sizes.setdefault(len(block[0]), []).append(block)
    for size, found in sizes.items():
        of_one = max(1, 2**22 // size**2)
        for first in range(0, len(found), of_one):
            rows, wanted = zip(*found[first : first + of_one], strict=True)
            yield np.stack(rows), np.stack(wanted)
