"""Hill curves of dose responses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import chi2
from scipy.stats import f as f_distribution

from scvi_tahoe._arguments import checked
from scvi_tahoe.effects._effects_adata import key_of, positions_of_genes, read_effects

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

_BEYOND = 1.0  # decades beyond the doses in which the EC50 may lie
_GRID = 0.025  # decades between values of EC50 that are tried
_SLOPES = np.exp(np.linspace(np.log(0.3), np.log(6.0), 31))
_LEVEL = 0.95
_FEWEST = 4  # doses: three parameters and one more


@checked()
def hill(
    dose: float | np.ndarray, emax: float | np.ndarray, ec50: float | np.ndarray, slope: float | np.ndarray
) -> np.ndarray:
    r"""Return the Hill curve :math:`E_{max} d^h / (EC_{50}^h + d^h)`.

    Parameters
    ----------
    dose
        Doses, any shape; 0 gives 0.
    emax, ec50, slope
        Change at high doses; dose of half of it, in the unit of ``dose``; steepness :math:`h`.
    """
    with np.errstate(divide="ignore"):
        return emax / (1 + np.power(np.asarray(dose, dtype=np.float64) / ec50, -slope))


@checked()
def dose_response(
    effects: AnnData,
    genes: Sequence[str],
    *,
    perturbation_key: str | None = None,
    dose_key: str | None = None,
    context_key: str | None = None,
) -> pd.DataFrame:
    r"""Fit a Hill curve to the change of each gene over the doses of each perturbation.

    The fit is least squares, weighted by ``layers["sd"]`` where it is there, over a grid of EC50 (up to a decade beyond
    the doses) and slope (0.3 to 6), with the best :math:`E_{max}` for each in closed form; so it finds the global
    optimum. Intervals of 95 % are those of the profile likelihood: values with which the best curve fits almost as
    well. An EC50 whose interval reaches the end of the grid is not determined by these doses, and that end is then
    infinite or 0.

    Parameters
    ----------
    effects
        Changes of perturbations at several doses; see :mod:`scvi_tahoe.effects`.
    genes
        Genes to fit.
    perturbation_key, dose_key, context_key
        Columns of ``obs`` with perturbations (without doses), doses and contexts. If None, those that ``effects`` was
        made with.

    Returns
    -------
    One row for each perturbation, context and gene: ``emax``, ``ec50`` and ``slope``, each with ``_low`` and ``_high``;
    ``r2``; ``n_doses``; and ``responds``: whether the curve explains significantly more (5 %) than three parameters do
    by chance.

    Raises
    ------
    ValueError
        If no perturbation has four doses above 0.

    Examples
    --------
    >>> from scvi_tahoe.effects import dose_response
    >>> effects = model.predict_effects(as_adata=True)
    >>> dose_response(effects, ["CDKN1A", "MDM2"])
    """
    changes, sd = read_effects(effects)
    columns = effects.obs
    names = [key_of(effects, "perturbation_key", perturbation_key)]
    if (of_context := key_of(effects, "context_key", context_key, needed=False)) is not None:
        names.append(of_context)
    dose_key = key_of(effects, "dose_key", dose_key)
    dose = pd.to_numeric(columns[dose_key], errors="coerce").to_numpy(dtype=np.float64)
    positions = positions_of_genes(effects, genes)
    found, n_of = [], {}
    for label, rows in columns.groupby(names, observed=True, sort=True).indices.items():
        rows = rows[np.isfinite(dose[rows]) & (dose[rows] > 0)]
        n_of[label] = len(np.unique(dose[rows]))
        if n_of[label] < _FEWEST:
            continue
        deviation = None if sd is None else sd[np.ix_(rows, positions)]
        table = _fit(dose[rows], changes[np.ix_(rows, positions)], deviation)
        table.insert(0, "gene", list(genes))
        for name, value in reversed(list(zip(names, label if isinstance(label, tuple) else (label,), strict=True))):
            table.insert(0, name, value)
        table["n_doses"] = n_of[label]
        found.append(table)
    if not found:
        raise ValueError(
            f"no perturbation has {_FEWEST} doses above 0, which a curve with three parameters needs; the most is "
            f"{max(n_of.values(), default=0)}."
        )
    result = pd.concat(found, ignore_index=True)
    result.attrs["dose_key"] = dose_key
    return result


def _fit(dose_n: np.ndarray, changes_nG: np.ndarray, sd_nG: np.ndarray | None) -> pd.DataFrame:
    """Fit all genes of one perturbation. E values of EC50 by H slopes are tried."""
    log = np.log10(dose_n)
    ec50_E = np.arange(log.min() - _BEYOND, log.max() + _BEYOND + _GRID / 2, _GRID)
    exponent = (log[:, None, None] - ec50_E[None, :, None]) * _SLOPES[None, None]
    curve_nK = (1 / (1 + np.power(10.0, -exponent))).reshape(len(dose_n), -1)
    weight_nG = np.ones_like(changes_nG) if sd_nG is None else 1 / np.maximum(np.square(sd_nG), 1e-12)
    squares_GK = weight_nG.T @ np.square(curve_nK)
    products_GK = (weight_nG * changes_nG).T @ curve_nK
    emax_GK = products_GK / np.maximum(squares_GK, 1e-300)
    total_G = (weight_nG * np.square(changes_nG)).sum(axis=0)
    error_GK = np.maximum(total_G[:, None] - emax_GK * products_GK, 0)
    best_G = error_GK.argmin(axis=1)
    rows = np.arange(len(best_G))
    least_G = error_GK[rows, best_G]
    if sd_nG is not None:
        allowed_G = np.full(len(best_G), chi2.ppf(_LEVEL, 1))
        by_chance_G = np.full(len(best_G), chi2.ppf(_LEVEL, 3))
    else:
        free = max(len(dose_n) - 3, 1)
        noise_G = np.maximum(least_G / free, 1e-12)
        allowed_G = noise_G * f_distribution.ppf(_LEVEL, 1, free)
        by_chance_G = noise_G * 3 * f_distribution.ppf(_LEVEL, 3, free)
    excess_GEH = (error_GK - least_G[:, None]).reshape(len(best_G), len(ec50_E), len(_SLOPES))
    e_G, h_G = np.divmod(best_G, len(_SLOPES))
    columns = {"emax": emax_GK[rows, best_G]}
    # the emax that each curve allows, and then the union of these intervals
    spare_GK = allowed_G[:, None] - (error_GK - least_G[:, None])
    half = np.sqrt(np.maximum(spare_GK, 0) / np.maximum(squares_GK, 1e-300))
    columns["emax_low"] = np.where(spare_GK >= 0, emax_GK - half, np.inf).min(axis=1)
    columns["emax_high"] = np.where(spare_GK >= 0, emax_GK + half, -np.inf).max(axis=1)
    columns["ec50"] = np.power(10.0, ec50_E[e_G])
    low, high = _interval(excess_GEH.min(axis=2), allowed_G, ec50_E)
    columns["ec50_low"] = np.where(low == ec50_E[0], 0.0, np.power(10.0, low))
    columns["ec50_high"] = np.where(high == ec50_E[-1], np.inf, np.power(10.0, high))
    columns["slope"] = _SLOPES[h_G]
    low, high = _interval(excess_GEH.min(axis=1), allowed_G, np.log(_SLOPES))
    columns["slope_low"], columns["slope_high"] = np.exp(low), np.exp(high)
    mean_G = (weight_nG * changes_nG).sum(axis=0) / weight_nG.sum(axis=0)
    spread_G = (weight_nG * np.square(changes_nG - mean_G)).sum(axis=0)
    columns["r2"] = 1 - least_G / np.maximum(spread_G, 1e-300)
    columns["responds"] = total_G - least_G > by_chance_G
    return pd.DataFrame(columns)


def _interval(excess_GE: np.ndarray, allowed_G: np.ndarray, grid_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the values of a grid whose excess error is allowed, interpolated between its points."""
    is_allowed, rows, last = excess_GE <= allowed_G[:, None], np.arange(len(excess_GE)), len(grid_E) - 1

    def end(inner: np.ndarray, outer: np.ndarray) -> np.ndarray:
        rise = np.maximum(excess_GE[rows, outer] - excess_GE[rows, inner], 1e-300)
        share = np.clip((allowed_G - excess_GE[rows, inner]) / rise, 0, 1)
        return grid_E[inner] + share * (grid_E[outer] - grid_E[inner])

    low, high = is_allowed.argmax(axis=1), last - is_allowed[:, ::-1].argmax(axis=1)
    return end(low, np.maximum(low - 1, 0)), end(high, np.minimum(high + 1, last))
