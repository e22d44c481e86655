"""Does a training loss repeat itself from epoch to epoch?

A loader that composes its cell sets once and keeps their order shows the network the same sets at the same place of
every epoch. A log with one value every few dozen steps then fluctuates with a period, which is easily taken for a
learning rate that does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Repetition", "epoch_length", "repetition"]

_MIN_PAIRS = 20
_MAX_PAIRS = 20_000


class Repetition(NamedTuple):
    """How alike losses at the same place of different epochs are.

    Attributes
    ----------
    period
        Steps of an epoch.
    correlation
        Of the log losses of all pairs of values at the same place of two epochs, slow changes removed.
    n_pairs
        Number of those pairs.
    """

    period: int
    correlation: float
    n_pairs: int


def epoch_length(epoch: pd.Series) -> int | None:
    """Steps of an epoch, from the epoch number that was logged at each step; None where the log does not fix it.

    Parameters
    ----------
    epoch
        Number of the epoch, counted from 0, by step, counted from 0. With steps ``s`` and epochs ``e`` the length
        ``L`` is bounded by ``(s + 1) / (e + 1) <= L <= (s + 1) / e``.
    """
    values = epoch.to_numpy(dtype=float)
    steps = epoch.index.to_numpy(dtype=float)
    if not len(values) or values.max() < 1:
        return None
    lower = ((steps + 1) / (values + 1)).max()
    later = values > 0
    upper = ((steps[later] + 1) / values[later]).min()
    length = math.ceil(lower - 1e-9)
    return length if length <= upper + 1e-9 and length > 1 else None


def repetition(train: pd.Series, period: int | None) -> Repetition | None:
    """Correlation of training losses at the same place of different epochs; None if too few can be compared.

    Parameters
    ----------
    train
        Training loss by step.
    period
        Steps of an epoch.
    """
    if period is None or len(train) < _MIN_PAIRS:
        return None
    # the first tenth falls steeply, and a running median takes the slow rest away
    kept = train[train > 0].iloc[len(train) // 10 :]
    logarithm = np.log(kept)
    residual = (logarithm - logarithm.rolling(21, center=True, min_periods=5).median()).to_numpy()
    place = kept.index.to_numpy() % period
    first, second = np.triu_indices(len(place), k=1)
    same = np.flatnonzero(place[first] == place[second])[:_MAX_PAIRS]
    if len(same) < _MIN_PAIRS:
        return None
    a, b = residual[first[same]], residual[second[same]]
    if a.std() == 0 or b.std() == 0:
        return None
    return Repetition(period, float(np.corrcoef(a, b)[0, 1]), len(same))
