"""Number of cells that show a change, or tell it as exactly as wanted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import norm

from scvi_tahoe._arguments import checked

if TYPE_CHECKING:
    from collections.abc import Sequence


@checked()
def power(
    sd: np.ndarray | pd.Series,
    n_cells: int | Sequence[int],
    *,
    change: float | np.ndarray,
    level: float = 0.05,
    n_controls: int | None = None,
) -> pd.DataFrame:
    r"""Tabulate how precisely numbers of perturbed cells estimate changes, and how many of them are detected.

    The mean of :math:`n` cells has the standard error :math:`\sigma \sqrt{1 / n + 1 / n_{controls}}`; a change is
    detected by the normal approximation of a two-sided test of two means.

    Parameters
    ----------
    sd
        Standard deviation of each gene over control cells, log1p expression, ``[G]``.
    n_cells
        Numbers of cells per condition.
    change
        Change of the mean, in the same unit; one number or ``[G]``, such as a row of predicted effects. Genes whose
        change is 0 do not count.
    level, n_controls
        As for :func:`cells_needed`.

    Returns
    -------
    One row for each number of cells, index = ``n_cells``: ``error``, the root mean square over genes of the standard
    error of a change; ``detected``, the share of changes that is found, as expected; ``smallest``, the change that is
    found in half of the genes with a probability of 80 %.

    Raises
    ------
    ValueError
        As :func:`cells_needed`, or if a number of cells is below 1.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_tahoe.effects import power
    >>> power(np.array([0.5, 1.0]), [25, 100], change=0.25)["detected"].round(2).tolist()
    [0.47, 0.85]
    """
    numbers = np.atleast_1d(np.asarray(n_cells, dtype=np.float64))
    if not (np.isfinite(numbers) & (numbers >= 1)).all():
        raise ValueError(f"n_cells={n_cells!r} has to be at least 1.")
    deviation, wanted = _verified(sd, change, 0.8, level, n_controls)
    error_nG = deviation * np.sqrt(1 / numbers[:, None] + 1 / (math.inf if n_controls is None else n_controls))
    threshold, size = norm.ppf(1 - level / 2), np.abs(wanted) / np.maximum(error_nG, 1e-300)
    found = (norm.sf(threshold - size) + norm.sf(threshold + size))[:, np.broadcast_to(wanted != 0, size.shape[1])]
    return pd.DataFrame(
        {
            "error": np.sqrt(np.square(error_nG).mean(axis=1)), "detected": found.mean(axis=1),
            "smallest": np.median(error_nG, axis=1) * (threshold + norm.ppf(0.8)),
        },
        index=pd.Index(numbers.astype(np.int64), name="n_cells"),
    )  # fmt: skip


@checked()
def cells_needed(
    sd: np.ndarray | pd.Series,
    change: float | np.ndarray | None = None,
    *,
    error: float | None = None,
    power: float = 0.8,
    level: float = 0.05,
    n_controls: int | None = None,
) -> np.ndarray:
    r"""Return how many perturbed cells are needed to detect a change of mean expression, or to estimate it.

    By the normal approximation of a two-sided test of two means,

    .. math:: n = \frac{(z_{1 - \alpha / 2} + z_{power})^2 \sigma^2}{\delta^2 - (z_{1 - \alpha / 2} + z_{power})^2
              \sigma^2 / n_{controls}},

    and for a standard error :math:`\epsilon` of the change the same with :math:`\epsilon` for :math:`\delta` and 1 for
    the sum of the quantiles.

    Parameters
    ----------
    sd
        Standard deviation of each gene over control cells, log1p expression, ``[G]``.
    change
        Change of the mean to be detected, in the same unit; one number or ``[G]``. A change of 0 is never detected.
    error
        Desired standard error of the change instead, one number in the same unit.
    power
        Probability of detecting the change.
    level
        Probability of detecting a change where there is none. To control a false discovery rate over many genes, give a
        smaller one, such as the rate times the expected share of genes that change.
    n_controls
        Number of control cells. If None, their number is taken to be infinite.

    Returns
    -------
    Cells, float64 ``[G]``, rounded up; infinite where no number of perturbed cells suffices, as controls are too few.

    Raises
    ------
    ValueError
        If a probability is not between 0 and 1, a standard deviation is negative, all changes or the error are 0, or
        both or neither of them are given.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_tahoe.effects import cells_needed
    >>> cells_needed(np.array([0.5, 1.0]), 0.25)
    array([ 32., 126.])
    >>> cells_needed(np.array([0.5, 1.0]), error=0.1)
    array([ 25., 100.])
    """
    if (change is None) == (error is None):
        raise ValueError("one of change and error has to be given: the change to find, or how exactly it is wanted.")
    deviation, wanted = _verified(sd, error if change is None else change, power, level, n_controls)
    quantiles = 1.0 if change is None else norm.ppf(1 - level / 2) + norm.ppf(power)
    variance = np.square(deviation * quantiles)
    left = np.square(wanted) - variance / (math.inf if n_controls is None else n_controls)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(left > 0, np.maximum(np.ceil(variance / left - 1e-9), 1.0), np.inf)


def _verified(
    sd: np.ndarray | pd.Series,
    change: float | np.ndarray | None,
    power: float,
    level: float,
    n_controls: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    for name, value in (("power", power), ("level", level)):
        if not 0 < value < 1:
            raise ValueError(f"{name}={value!r} has to lie between 0 and 1.")
    if n_controls is not None and n_controls < 1:
        raise ValueError(f"n_controls={n_controls!r} has to be at least 1.")
    deviation, wanted = np.atleast_1d(np.asarray(sd, dtype=np.float64)), np.asarray(change, dtype=np.float64)
    if not (np.isfinite(deviation) & (deviation >= 0)).all():
        raise ValueError("sd has to be finite and not negative.")
    if not (np.isfinite(wanted).all() and wanted.any()):
        raise ValueError("the change or error has to be finite and other than 0.")
    if wanted.ndim and deviation.shape != (1,) and wanted.shape != deviation.shape:
        raise ValueError(f"sd has {len(deviation)} genes and change has {wanted.size}; give both for the same genes.")
    return deviation, wanted
