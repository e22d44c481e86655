"""Which conditions to measure next: those whose measurement tells the most about all that are not measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from scvi_tahoe.response._kernels import Conditions
from scvi_tahoe.response._response_model import with_contexts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from scvi_tahoe.response._fitted import Fitted

_MOST_CANDIDATES = 3000  # a matrix of all pairs for each group of components


def plan_next(
    fitted: Fitted,
    candidates: Sequence[tuple[str, str]],
    n: int,
    control_means: Mapping[str, np.ndarray],
    *,
    noise: float = 1.0,
) -> pd.DataFrame:
    r"""Choose conditions one after the other, each the one that lowers the expected squared error of the others most.

    With the posterior covariance :math:`C` of the candidates given what is measured, and the sampling variance
    :math:`\nu` of a new measurement, measuring :math:`j` lowers the sum of the others' variances by
    :math:`\sum_{i \neq j} C_{ij}^2 / (C_{jj} + \nu)`, summed over components of the response basis; then :math:`C` is
    the covariance given :math:`j`, too. The sum of variances is the criterion of A-optimal designs (Krause, Singh and
    Guestrin 2008, Journal of Machine Learning Research 9:235, discuss how near such greedy choices come to the best
    set). Errors of strong responses are larger, so a condition's errors are taken to be in proportion to the response
    that is expected of it, the root of the squared mean and variance over components.

    Parameters
    ----------
    fitted
        Response model.
    candidates
        Perturbation and context of each condition that can be measured, none of them measured.
    n
        Conditions to choose.
    control_means
        Mean control expression of contexts.
    noise
        Sampling variance of a new measurement, in units of the median over measured conditions.

    Returns
    -------
    One row for each choice, in order: ``candidate`` (its position), ``gain`` (share of the expected squared error of
    all candidates that it takes away from the others) and ``left`` (share that is left of those not chosen).

    Raises
    ------
    ValueError
        If there are no candidates, fewer than ``n``, or more than 3,000.
    """
    if not candidates:
        raise ValueError(
            "there is no condition to choose: none that is not measured can be predicted from others. Give a table of "
            "genes or drugs (scvi_tahoe.tables), so that perturbations measured nowhere can be chosen."
        )
    if not 1 <= n <= len(candidates):
        raise ValueError(
            f"n={n} conditions cannot be chosen: {len(candidates)} are not measured and can be predicted from others. "
            "Lower n, or give a table of genes or drugs, so that perturbations measured nowhere can be chosen."
        )
    if len(candidates) > _MOST_CANDIDATES:
        raise ValueError(
            f"{len(candidates)} conditions could be measured, of which at most {_MOST_CANDIDATES} are weighed against "
            "one another; name fewer perturbations or contexts."
        )
    kernels, regression, train = with_contexts(fitted.kernels, control_means), fitted.regression, fitted.conditions
    asked = Conditions.of([label for label, _ in candidates], [context for _, context in candidates], fitted.parser)
    m = len(candidates)
    covariances, noises, sizes = [], [], []
    for group in regression.groups:
        own, cross, prior = (
            _weighted(kernels.matrices(a, b, fitted.device), group.weights)
            for a, b in ((train, train), (asked, train), (asked, asked))
        )
        own.diagonal().add_(torch.as_tensor(group.weights[-1] + group.noise + 1e-6, device=fitted.device))
        explained = torch.linalg.solve_triangular(torch.linalg.cholesky(own), cross.T, upper=False)
        prior.diagonal().add_(group.weights[-1])
        covariances.append(prior - explained.T @ explained)
        noises.append(float(np.median(group.noise)) * noise + 1e-9)
        sizes.append(float(np.square(regression.size_Q[group.start : group.stop]).sum()))
    size_g = torch.tensor(sizes, dtype=torch.float64, device=fitted.device)
    covariance_gmm = torch.stack(covariances) * size_g[:, None, None]
    noise_g = torch.tensor(noises, dtype=torch.float64, device=fitted.device) * size_g
    mean_mQ = torch.as_tensor(regression.predict(kernels, asked, train, fitted.device), device=fitted.device)
    response_m = mean_mQ.square().sum(1) + covariance_gmm.diagonal(dim1=1, dim2=2).sum(0)
    relative_m = (response_m / response_m.mean()).sqrt()
    covariance_gmm *= relative_m[:, None] * relative_m
    start = float(covariance_gmm.diagonal(dim1=1, dim2=2).sum())
    free, rows = torch.ones(m, dtype=torch.bool, device=fitted.device), []
    for _ in range(n):
        own_gm = covariance_gmm.diagonal(dim1=1, dim2=2)
        total_gm = own_gm + noise_g[:, None]
        others_gm = (covariance_gmm.square() * free[None, :, None]).sum(1) - own_gm.square()
        gain_m = (others_gm / total_gm).sum(0)
        j = int(torch.where(free, gain_m, -torch.inf).argmax())
        column_gm = covariance_gmm[:, :, j].clone()
        covariance_gmm -= column_gm[:, :, None] * column_gm[:, None] / total_gm[:, j, None, None]
        free[j] = False
        left = float((covariance_gmm.diagonal(dim1=1, dim2=2) * free).sum())
        rows.append({"candidate": j, "gain": float(gain_m[j]) / start, "left": left / start})
    return pd.DataFrame(rows)


def _weighted(matrices: Iterator[tuple[str, torch.Tensor]], weights: np.ndarray) -> torch.Tensor:
    """Sum of kernels; the last weight is the nugget's."""
    total = torch.zeros(())
    for weight, (_, kernel) in zip(weights[:-1], matrices, strict=True):
        total = kernel * float(weight) + total.to(kernel.device)
    return total
