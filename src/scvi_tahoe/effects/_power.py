"""Number of cells that show a change."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import norm

from scvi_tahoe._arguments import checked

if TYPE_CHECKING:
    import pandas as pd


@checked()
def cells_needed(
    sd: np.ndarray | pd.Series,
    change: float | np.ndarray,
    *,
    power: float = 0.8,
    level: float = 0.05,
    n_controls: int | None = None,
) -> np.ndarray:
    r"""Return how many perturbed cells show a change of mean expression.

    By the normal approximation of a two-sided test of two means,

    .. math:: n = \frac{(z_{1 - \alpha / 2} + z_{power})^2 \sigma^2}{\delta^2 - (z_{1 - \alpha / 2} + z_{power})^2
              \sigma^2 / n_{controls}}.

    Parameters
    ----------
    sd
        Standard deviation of each gene over control cells, log1p expression, ``[G]``.
    change
        Change of the mean to be found, in the same unit; one number or ``[G]``.
    power
        Probability of finding it.
    level
        Probability of finding one where there is none. For a false discovery rate over many genes give a smaller one,
        such as the rate times the expected share of genes that change.
    n_controls
        Number of control cells. If None, there are many.

    Returns
    -------
    Cells, float64 ``[G]``, rounded up; infinite where no number of perturbed cells suffices, as controls are too few.

    Raises
    ------
    ValueError
        If a probability is not between 0 and 1, a standard deviation is negative, or a change is 0.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_tahoe.effects import cells_needed
    >>> cells_needed(np.array([0.5, 1.0]), 0.25)
    array([ 32., 126.])
    """
    for name, value in (("power", power), ("level", level)):
        if not 0 < value < 1:
            raise ValueError(f"{name}={value!r} has to lie between 0 and 1.")
    if n_controls is not None and n_controls < 1:
        raise ValueError(f"n_controls={n_controls!r} has to be at least 1.")
    deviation, wanted = np.atleast_1d(np.asarray(sd, dtype=np.float64)), np.asarray(change, dtype=np.float64)
    if not (np.isfinite(deviation) & (deviation >= 0)).all():
        raise ValueError("sd has to be finite and not negative.")
    if not (np.isfinite(wanted) & (wanted != 0)).all():
        raise ValueError("change has to be finite and other than 0.")
    variance = np.square(deviation) * (norm.ppf(1 - level / 2) + norm.ppf(power)) ** 2
    left = np.square(wanted) - variance / (math.inf if n_controls is None else n_controls)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(left > 0, np.maximum(np.ceil(variance / left - 1e-9), 1.0), np.inf)
