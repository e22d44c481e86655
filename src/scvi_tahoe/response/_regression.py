"""Gaussian process regression of responses on conditions, with known noise and predictions by leave-out.

Responses are regressed in a basis (a singular value decomposition in which noisy conditions count less). Components of
the basis are regressed in groups, each with its own weights of the kernels and its own nugget: the first components one
by one, later ones, of which each says less, together. Weights maximise the marginal likelihood, and what a condition
looks like without itself, without its perturbation or without its context follows from the inverse of one matrix
(Rasmussen and Williams 2006, *Gaussian Processes for Machine Learning*, chapter 5; Sundararajan and Keerthi 2001,
Neural Computation 13:1103, for one row; the block inverse for several).

n conditions, G genes, Q components of the basis, K kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import minimize

from scvi_tahoe.response._basis import response_basis
from scvi_tahoe.response._inducing import InducingConditions
from scvi_tahoe.response._precision import JITTER, DensePrecision, Group, InducingPrecision, factor_of, same_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from scvi_tahoe.response._basis import BasesOfFolds
    from scvi_tahoe.response._kernels import ConditionKernels, Conditions

#: up to so many conditions: first components with weights of their own, and how much larger the next group ends
_GROUPS = ((150, 12, 1.2), (3000, 6, 1.5), (float("inf"), 2, 2.5))
_TOLERANCE = 1e-4  # relative change of the likelihood at which its search ends
_START, _SPREAD = -2.0, 1.5  # logarithms of weights before the data are seen
LOWEST, _HIGHEST = -14.0, 5.0
_SUMMED = 2**25  # values of sums of kernels that are held at once
_NEGLIGIBLE = 1e-3  # share of a group's variance below which a kernel is left out when more conditions refine weights


@dataclass(frozen=True)
class LeftOut:
    """Predictions of conditions by others, in components of a basis.

    Attributes
    ----------
    mean_nQ, variance_nQ
        float64 ``[n, Q]``; NaN for conditions that were not asked for.
    bases
        Bases, ``[Q, G]`` or with fewer rows: weights and basis of a fold are learned from the other folds.
    basis_n
        Which of them each condition has.
    """

    mean_nQ: np.ndarray
    variance_nQ: np.ndarray
    bases: tuple[np.ndarray, ...]
    basis_n: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """Conditions that were asked for."""
        return np.flatnonzero(np.isfinite(self.mean_nQ[:, 0]))

    def changes(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of the changes of conditions, ``[rows, G]`` each."""
        width = self.bases[0].shape[1]
        mean, variance = np.empty((len(rows), width)), np.empty((len(rows), width))
        for b, basis in enumerate(self.bases):
            mine = np.flatnonzero(self.basis_n[rows] == b)
            mean[mine] = self.mean_nQ[rows[mine], : len(basis)] @ basis
            variance[mine] = self.variance_nQ[rows[mine], : len(basis)] @ np.square(basis)
        return mean, variance

    @classmethod
    def joined(cls, parts: Sequence[LeftOut]) -> LeftOut:
        """Join the predictions of folds."""
        width = max(part.mean_nQ.shape[1] for part in parts)
        n = len(parts[0].mean_nQ)
        mean, variance, owner = np.full((n, width), np.nan), np.full((n, width), np.nan), np.zeros(n, dtype=np.int64)
        for b, part in enumerate(parts):
            rows, q = part.rows, part.mean_nQ.shape[1]
            mean[rows, :q], variance[rows, :q], owner[rows] = part.mean_nQ[rows], part.variance_nQ[rows], b
        return cls(mean, variance, tuple(part.bases[0] for part in parts), owner)


@dataclass(frozen=True)
class Regression:
    """A fitted regression.

    Attributes
    ----------
    basis_QG
        Orthonormal rows, float64.
    size_Q
        Root mean square of each component over the training conditions.
    groups
        Groups of components and their weights.
    coefficients_nQ
        What kernels are multiplied with, in units of ``size_Q``.
    inducing
        Training conditions by which others are compared, if there are too many for the inverse of one matrix.
    inducing_mQ
        What is known of these, see :class:`InducingConditions`.
    """

    basis_QG: np.ndarray
    size_Q: np.ndarray
    groups: tuple[Group, ...]
    coefficients_nQ: np.ndarray
    inducing: np.ndarray | None = None
    inducing_mQ: np.ndarray | None = None

    @property
    def learned(self) -> Weights:
        """Basis and weights alone."""
        slices = tuple(slice(group.start, group.stop) for group in self.groups)
        return Weights(self.basis_QG, self.size_Q, slices, tuple(np.log(group.weights) for group in self.groups))

    @property
    def nugget_Q(self) -> np.ndarray:
        """Variance of each component that is a condition's own."""
        nuggets = [np.full(group.stop - group.start, group.weights[-1]) for group in self.groups]
        return np.concatenate(nuggets) * np.square(self.size_Q)

    def predict(
        self,
        kernels: ConditionKernels,
        rows: Conditions,
        train: Conditions,
        device: torch.device,
        measured: np.ndarray | None = None,
    ) -> np.ndarray:
        """Predict components of conditions, float64 ``[rows, Q]``.

        ``measured`` has the training condition that each row is, whose nugget is known from its own response, or -1.
        """
        if self.inducing is not None and self.inducing_mQ is not None:
            inducing = InducingConditions.of(self.inducing, kernels, train, self.groups, device)
            found = inducing.predict(rows, self.inducing_mQ, self.coefficients_nQ) * self.size_Q
        else:
            found = self._by_all(kernels, rows, train, device) * self.size_Q
        if measured is not None:
            known = measured >= 0
            found[known] += self.coefficients_nQ[measured[known]] * self.nugget_Q / self.size_Q
        return found

    def _by_all(
        self, kernels: ConditionKernels, rows: Conditions, train: Conditions, device: torch.device
    ) -> np.ndarray:
        """Predict components of unit size by all training conditions."""
        result = torch.zeros((len(rows), len(self.size_Q)), dtype=torch.float64, device=device)
        coefficients = torch.as_tensor(self.coefficients_nQ, device=device)
        for k, (_, kernel) in enumerate(kernels.matrices(rows, train, device)):
            of_component = np.concatenate([np.full(g.stop - g.start, g.weights[k]) for g in self.groups])
            result += (kernel @ coefficients) * torch.as_tensor(of_component, device=device)
        return result.cpu().numpy()

    def variance(
        self,
        kernels: ConditionKernels,
        rows: Conditions,
        train: Conditions,
        device: torch.device,
        measured: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Posterior and prior variance of the components of conditions, float64 ``[rows, Q]`` each.

        ``measured`` is as in :meth:`predict`.
        """
        posterior, prior = (np.empty((len(rows), len(self.size_Q))) for _ in range(2))
        own, explained = kernels.diagonals(rows), self._explained(kernels, rows, train, device, measured)
        for group, of_group in zip(self.groups, explained, strict=True):
            columns = slice(group.start, group.stop)
            total = group.weights[:-1] @ own + group.weights[-1]
            squared = np.square(self.size_Q[columns])
            posterior[:, columns] = np.maximum(total - of_group, 0)[:, None] * squared
            prior[:, columns] = total[:, None] * squared
        return posterior, prior

    def _explained(
        self,
        kernels: ConditionKernels,
        rows: Conditions,
        train: Conditions,
        device: torch.device,
        measured: np.ndarray | None,
    ) -> Iterator[np.ndarray]:
        """Yield the variance of each group that the training conditions explain, ``[rows]``."""
        if self.inducing is not None:
            inducing = InducingConditions.of(self.inducing, kernels, train, self.groups, device)
            yield from inducing.explained(rows, -np.ones(len(rows), int) if measured is None else measured)
            return
        crosses = kernels.sums(rows, train, [group.weights for group in self.groups], device)
        known = np.flatnonzero(measured >= 0) if measured is not None else np.zeros(0, int)
        factors = factors_of_groups(kernels, train, self.groups, device)
        for group, factor, cross in zip(self.groups, factors, crosses, strict=True):
            if known.size:
                cross[known, measured[known]] += group.weights[-1]  # type: ignore[index]
            solved = torch.linalg.solve_triangular(factor, cross.T, upper=False)
            yield solved.square().sum(0).cpu().numpy()


def group_ends(n_components: int, n_conditions: int, *, pooled: bool = False) -> list[int]:
    """Where groups of components end: fewer groups of more conditions, whose matrices are costly.

    If pooled, the first component is alone and all others are one group.
    """
    if pooled:
        return sorted({1, n_components})
    alone, growth = next((alone, growth) for most, alone, growth in _GROUPS if n_conditions <= most)
    ends = list(range(1, min(alone, n_components) + 1))
    while ends[-1] < n_components:
        ends.append(min(n_components, max(ends[-1] + 1, int(ends[-1] * growth))))
    return ends


@dataclass(frozen=True)
class Weights:
    """Basis and weights, before coefficients are solved for.

    Attributes
    ----------
    basis_QG, size_Q
        As in :class:`Regression`.
    slices
        Components of each group.
    logs
        Logarithms of each group's weights, ``[K + 1]``.
    """

    basis_QG: np.ndarray
    size_Q: np.ndarray
    slices: tuple[slice, ...]
    logs: tuple[np.ndarray, ...]


def learn_weights(
    kernels: ConditionKernels,
    train: Conditions,
    responses_nG: np.ndarray,
    noise_nG: np.ndarray,
    *,
    n_components: int,
    chosen: Sequence[np.ndarray],
    seed: int,
    tick: Callable[[], None],
    pooled: bool = False,
    after: Weights | None = None,
    used: np.ndarray | None = None,
) -> Weights:
    """Learn the basis and the weights of kernels.

    Parameters
    ----------
    kernels, train
        Kernels, and the conditions to learn from.
    responses_nG, noise_nG
        Changes, and their sampling variance (0 where it is not known).
    n_components
        Most components of the basis.
    chosen
        Conditions that weights are fitted to: some, and then more to refine them.
    seed
        Random seed.
    tick
        Called after each group of components.
    pooled
        Whether all components but the first share their weights.
    after
        Basis and weights that are refined; ``chosen`` are further conditions.
    used
        Which kernels may have weight, ``[K]``. If None, all of them.
    """
    basis = response_basis(responses_nG.astype(np.float64), noise_nG, n_components, seed)
    scores, noise = responses_nG @ basis.T, noise_nG @ np.square(basis.T)
    size = np.maximum(np.sqrt(np.square(scores).mean(axis=0)), 1e-12)
    ends = group_ends(len(basis), len(train), pooled=pooled)
    slices = [slice(start, stop) for start, stop in zip([0, *ends[:-1]], ends, strict=True)]
    scaled = scores / size
    n_kernels = len(kernels.names)
    allowed = np.ones(n_kernels, bool) if used is None else used
    before = _start_of(kernels)
    logs = [before.copy() for _ in slices] if after is None else list(after.logs)
    for level, rows in enumerate(chosen, start=0 if after is None else 1):
        subset = train.take(rows, kernels.parser)
        stack = torch.stack([k for _, k in kernels.matrices(subset, subset)])
        for g, s in enumerate(slices):
            share = np.exp(logs[g]) / np.exp(logs[g]).sum()
            kept = np.flatnonzero(allowed & (share[:-1] > _NEGLIGIBLE) if level else allowed)
            parameters = [*kept, n_kernels]
            start = logs[g] if level or not g else logs[g - 1]  # neighbouring components have similar weights
            fitted = fit_weights(
                stack if len(kept) == n_kernels else stack[kept], scaled[rows, s],
                (noise[rows, s] / np.square(size[s])).mean(axis=1),
                start=start[parameters], before=before[parameters], n_iterations=15 if level else 40,
            )  # fmt: skip
            logs[g] = np.full(n_kernels + 1, LOWEST)
            logs[g][parameters] = fitted
            tick()
    return Weights(basis, size, tuple(slices), tuple(logs))


def _start_of(kernels: ConditionKernels) -> np.ndarray:
    """Logarithms of weights before the data are seen.

    With combinations, effects of components are expected to add up: what is a label's or a condition's own, or comes
    with the number of components, is little. Where nothing tells it from effects of components, it is the latter.
    """
    little = {"label": -8.0, "nugget": -8.0, "number of components": -6.0} if kernels.has_combinations else {}
    return np.array([little.get(name, _START) for name in [*kernels.names, "nugget"]])


def solve(
    learned: Weights,
    kernels: ConditionKernels,
    train: Conditions,
    responses_nG: np.ndarray,
    noise_nG: np.ndarray,
    *,
    blocks: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]],
    device: torch.device,
    tick: Callable[[], None],
    inducing: np.ndarray | None = None,
    folds: BasesOfFolds | None = None,
) -> tuple[Regression, dict[str, LeftOut]]:
    """Solve for the coefficients of all conditions, and predict conditions by leave-out.

    Parameters
    ----------
    learned
        Basis and weights.
    kernels, train, responses_nG, noise_nG
        As in :func:`learn_weights`.
    blocks
        For each way to leave out, groups of conditions that are left out together, and which of them are predicted so;
        each condition is predicted at most once.
    device
        Where matrices are inverted.
    tick
        Called after each group of components.
    inducing
        Conditions by which the others are compared (:class:`InducingConditions`). If None, the solution is exact.
    folds
        Bases that conditions are left out in. If None, that of ``learned``.

    Returns
    -------
    The regression, and for each way the predictions of the conditions in its blocks.
    """
    basis, size = learned.basis_QG, learned.size_Q
    scores, noise = responses_nG @ basis.T, noise_nG @ np.square(basis.T)
    scaled, coefficients, nothing = scores / size, np.empty_like(scores), np.full_like(scores, np.nan)
    bases: tuple[np.ndarray, ...] = (basis,)
    of_bases, owner = [(scores, size)], np.zeros(len(scores), dtype=np.int64)
    if folds is not None:
        bases, owner = tuple(of_fold[: len(basis)] for of_fold in folds.bases), folds.fold_n
        of_bases = [_scores(responses_nG, of_fold) for of_fold in bases]
    left = {way: LeftOut(nothing.copy(), nothing.copy(), bases, owner) for way in blocks}
    groups = [
        Group(s.start, s.stop, np.exp(log), (noise[:, s] / np.square(size[s])).mean(axis=1))
        for s, log in zip(learned.slices, learned.logs, strict=True)
    ]
    known = None if inducing is None else np.empty((len(inducing), len(size)))
    for group, precision in zip(groups, _precisions(kernels, train, groups, device, inducing), strict=True):
        s = slice(group.start, group.stop)
        solved = precision.solve(torch.as_tensor(scaled[:, s], device=device))
        coefficients[:, s] = solved.cpu().numpy()
        if known is not None and isinstance(precision, InducingPrecision):
            known[:, s] = precision.of_inducing(solved).cpu().numpy()
        for way, of_way in blocks.items():
            _leave_out(left[way], group, of_way, precision, of_bases)
        del precision, solved
        tick()
    return Regression(basis, size, tuple(groups), coefficients, inducing, known), left


def _scores(responses_nG: np.ndarray, basis_QG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Components in a basis, and their root mean squares."""
    scores = responses_nG @ basis_QG.T
    return scores, np.maximum(np.sqrt(np.square(scores).mean(axis=0)), 1e-12)


def _leave_out(
    left: LeftOut,
    group: Group,
    blocks: Sequence[tuple[np.ndarray, np.ndarray]],
    precision: DensePrecision | InducingPrecision,
    of_bases: Sequence[tuple[np.ndarray, np.ndarray]],
) -> None:
    """Write what the components of a group are without each block, each condition in its basis."""
    device = precision.device
    for b, (scores, size) in enumerate(of_bases):
        s = slice(group.start, min(group.stop, len(size)))
        solved = precision.solve(torch.as_tensor(scores[:, s] / size[s], device=device))
        mine = [(block, wanted & (left.basis_n[block] == b)) for block, wanted in blocks]
        for block, wanted in same_size([(block, wanted) for block, wanted in mine if wanted.any()]):
            residual, variance = precision.left_out(block, solved)
            found = block[wanted]
            left.mean_nQ[found, s] = scores[found, s] - (residual * size[s])[wanted]
            variance = np.maximum(variance - group.noise[block], 0)[wanted]
            left.variance_nQ[found, s] = variance[:, None] * np.square(size[s])


def _precisions(
    kernels: ConditionKernels,
    train: Conditions,
    groups: Sequence[Group],
    device: torch.device,
    inducing: np.ndarray | None,
) -> Iterator[DensePrecision | InducingPrecision]:
    """Yield the inverse covariance of each group."""
    if inducing is not None:
        yield from InducingConditions.of(inducing, kernels, train, groups, device).precisions()
        return
    factors = factors_of_groups(kernels, train, groups, device)
    while (factor := next(factors, None)) is not None:
        found = DensePrecision(torch.cholesky_inverse(factor))
        del factor
        yield found
        del found


def fit_weights(
    kernels: Tensor,
    targets_nm: np.ndarray,
    noise_n: np.ndarray,
    *,
    start: np.ndarray,
    before: np.ndarray,
    n_iterations: int,
) -> np.ndarray:
    """Fit logarithms of the weights of kernels and nugget by marginal likelihood.

    Parameters
    ----------
    kernels
        float64 ``[K, n, n]``.
    targets_nm
        Components of unit size, which share the weights.
    noise_n
        Their sampling variance.
    start
        Logarithms to start from, ``[K + 1]``.
    before
        What they are expected to be before the data are seen.
    n_iterations
        Most steps of L-BFGS.
    """
    n, m = targets_nm.shape
    flat = kernels.reshape(len(kernels), -1)
    targets = torch.as_tensor(targets_nm)
    noise = torch.as_tensor(noise_n) + JITTER

    def negative_log_likelihood(log: np.ndarray) -> tuple[float, np.ndarray]:
        weights = np.exp(log)
        covariance = (torch.as_tensor(weights[:-1]) @ flat).reshape(n, n)
        covariance.diagonal().add_(noise + weights[-1])
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if failed:
            return 1e12, np.zeros_like(log)
        precision = torch.cholesky_inverse(factor)
        solved = precision @ targets
        pull = (log - before) / _SPREAD**2
        value = 0.5 * (targets * solved).sum() + m * factor.diagonal().log().sum()
        slope = 0.5 * torch.addmm(precision, solved, solved.T, beta=m, alpha=-1)
        gradient = np.append((flat @ slope.flatten()).numpy(), float(slope.diagonal().sum())) * weights + pull
        return float(value) + 0.5 * float(((log - before) * pull).sum()), gradient

    found = minimize(
        negative_log_likelihood, start, jac=True, method="L-BFGS-B",
        options={"maxiter": n_iterations, "ftol": _TOLERANCE}, bounds=[(LOWEST, _HIGHEST)] * len(start),
    )  # fmt: skip
    return found.x


def factors_of_groups(
    kernels: ConditionKernels, train: Conditions, groups: Sequence[Group], device: torch.device
) -> Iterator[Tensor]:
    """Yield the Cholesky factor of each group's covariance; kernels of few conditions are made once for several."""
    at_once = max(1, _SUMMED // max(len(train) ** 2, 1))
    for first in range(0, len(groups), at_once):
        some = groups[first : first + at_once]
        sums = kernels.sums(train, train, [group.weights for group in some], device)
        for group in some:
            yield factor_of(sums.pop(0), group.weights[-1] + group.noise)
