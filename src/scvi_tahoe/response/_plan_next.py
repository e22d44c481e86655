"""Which conditions to measure next: those whose measurement tells the most about all that are not measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from scvi_tahoe.response._kernels import Conditions
from scvi_tahoe.response._regression import factors_of_groups
from scvi_tahoe.response._response_model import with_contexts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scvi_tahoe.response._fitted import Fitted

_MOST = 3000  # conditions: a matrix of all pairs for each group of components


def plan_next(
    fitted: Fitted,
    candidates: Sequence[tuple[str, str]],
    n: int,
    control_means: Mapping[str, np.ndarray],
    *,
    to_predict: Sequence[tuple[str, str]] | None = None,
    noise: float = 1.0,
) -> pd.DataFrame:
    r"""Choose conditions one after the other, each the one that lowers the expected squared error of the others most.

    With the posterior covariance :math:`C` given what is measured, and the sampling variance :math:`\nu` of a new
    measurement, measuring :math:`j` lowers the sum of the variances of the conditions to predict by
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
    to_predict
        Conditions whose errors count, none of them measured. If None, the candidates.
    noise
        Sampling variance of a new measurement, in units of the median over measured conditions.

    Returns
    -------
    One row for each choice, in order: ``candidate`` (its position), ``gain`` (share of the expected squared error of
    all conditions that count, which it takes away from the others) and ``left`` (share left of those not chosen).

    Raises
    ------
    ValueError
        If there are fewer candidates than ``n``, nothing to predict, or more than 3,000 conditions in all.
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
    counted = candidates if to_predict is None else to_predict
    if not counted:
        raise ValueError("to_predict names measured conditions only; name some that were not measured.")
    everything = list(dict.fromkeys([*candidates, *counted]))
    if (m := len(everything)) > _MOST:
        raise ValueError(
            f"{m} conditions could be measured or are to be predicted, of which at most {_MOST} are weighed "
            "against one another; name fewer perturbations or contexts."
        )
    kernels, regression, train = with_contexts(fitted.kernels, control_means), fitted.regression, fitted.conditions
    asked = Conditions.of([label for label, _ in everything], [context for _, context in everything], fitted.parser)
    weights, device = [group.weights for group in regression.groups], fitted.device
    covariance_gmm = torch.stack(kernels.sums(asked, asked, weights, device))
    crosses = kernels.sums(asked, train, weights, device)
    sizes, noises = [], []
    factors = factors_of_groups(kernels, train, regression.groups, device)
    of_groups = zip(regression.groups, factors, crosses, covariance_gmm, strict=True)
    for group, factor, cross, covariance_mm in of_groups:
        explained = torch.linalg.solve_triangular(factor, cross.T, upper=False)
        covariance_mm -= explained.T @ explained
        covariance_mm.diagonal().add_(group.weights[-1])
        noises.append(float(np.median(group.noise)) * noise + 1e-9)
        sizes.append(float(np.square(regression.size_Q[group.start : group.stop]).sum()))
    size_g = torch.tensor(sizes, dtype=torch.float64, device=device)
    covariance_gmm *= size_g[:, None, None]
    noise_g = torch.tensor(noises, dtype=torch.float64, device=device) * size_g
    mean_mQ = torch.as_tensor(regression.predict(kernels, asked, train, device), device=device)
    response_m = mean_mQ.square().sum(1) + covariance_gmm.diagonal(dim1=1, dim2=2).sum(0)
    relative_m = (response_m / response_m.mean()).sqrt()
    covariance_gmm *= relative_m[:, None] * relative_m
    counting, free_m = set(counted), torch.arange(m, device=device) < len(candidates)
    counts_m = torch.tensor([float(one in counting) for one in everything], dtype=torch.float64, device=device)
    start = float((covariance_gmm.diagonal(dim1=1, dim2=2) * counts_m).sum())
    rows = []
    for _ in range(n):
        own_gm = covariance_gmm.diagonal(dim1=1, dim2=2)
        total_gm = own_gm + noise_g[:, None]
        others_gm = (covariance_gmm.square() * counts_m[None, :, None]).sum(1) - own_gm.square() * counts_m
        gain_m = (others_gm / total_gm).sum(0)
        j = int(torch.where(free_m, gain_m, -torch.inf).argmax())
        column_gm = covariance_gmm[:, :, j].clone()
        covariance_gmm -= column_gm[:, :, None] * column_gm[:, None] / total_gm[:, j, None, None]
        free_m[j], counts_m[j] = False, 0
        left = float((covariance_gmm.diagonal(dim1=1, dim2=2) * counts_m).sum())
        rows.append({"candidate": j, "gain": float(gain_m[j]) / start, "left": left / start})
    return pd.DataFrame(rows)
